"""What is done to stores in these tests, and how their files are compared."""

import json

import pytest
import yaml

from championship_sr.store.shards.reader import Store

SHARD = {"zarr": "shard-00001.zarr", "hdf5": "shard-00001.h5"}


BOTH = pytest.mark.parametrize("container", SHARD)


def content(root):
    """Path -> bytes of a store, without what a repair has moved away and without locks."""
    below = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in below}
    return {name: there for name, there in found.items() if not name.startswith("damaged/")}


def flip(path, at=11):
    there = bytearray(path.read_bytes())
    there[at] ^= 4
    path.write_bytes(there)


def values_file(root, container):
    shard = root / "experts/a" / SHARD[container]
    return shard / "img002/features/c.0.0.0" if container == "zarr" else shard


def flip_values(root, container):
    flip(values_file(root, container), Store(root).array(2, "a", "features").entry.offset + 11)


def old_form(root):
    """The store as version 1 of the format wrote it."""
    for path in root.rglob("shard-*.json"):
        record = json.loads(path.read_text())
        for key in ("store", "expert", "listing", "checksum"):
            del record[key]
        path.write_text(json.dumps({**record, "format_version": 1}))
    about = yaml.safe_load((root / "store.yaml").read_text())
    (root / "store.yaml").write_text(yaml.safe_dump({**about, "format_version": 1}))
    return root
