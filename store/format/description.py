"""Creates a store: its description is written before anything else, and removed again if no shard follows."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from championship_sr.store.config import dump_yaml
from championship_sr.store.disk import files, leases
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import IMAGES_FILE, STORE_FILE, Image, images_bytes
from championship_sr.store.format.expert_files import EXPERTS_FILE
from championship_sr.store.format.layout import FORMAT_VERSION, LOCK_FILE, PAIRS, SOURCES_FILE, shard_number


def assign_shards(images: Iterable[Image], images_per_shard: int) -> tuple[Image, ...]:
    """The images, with shard numbers assigned in order."""
    return tuple(replace(image, shard=i // images_per_shard) for i, image in enumerate(images))


def begin_store(root: Path, scale: int, container: str, images: tuple[Image, ...]) -> None:
    """Write the description of a new store, unless another process has done so meanwhile.

    raises  StoreError if the folder holds anything else
    """
    root.mkdir(parents=True, exist_ok=True)
    with leases.held(root / LOCK_FILE, wait=True):
        if (root / STORE_FILE).exists():
            return
        foreign = sorted(name for name in os.listdir(root) if not name.startswith(("store.", IMAGES_FILE)))
        if foreign:
            raise StoreError(
                f"{root}: not a feature store and not empty (it holds {foreign[0]}): choose another folder"
            )
        describe_store(root, scale, container, images, FORMAT_VERSION)
        files.sync(root.parent)


def describe_store(root: Path, scale: int, container: str, images: tuple[Image, ...], version: int) -> None:
    """Write images.jsonl, then store.yaml, which holds its checksum."""
    lines = images_bytes(images)
    files.write_atomic(root / IMAGES_FILE, lines)
    about = {
        "format_version": version,
        "scale": scale,
        "container": container,
        "images": len(images),
        "images_sha256": hashlib.sha256(lines).hexdigest(),
    }
    files.write_atomic(root / STORE_FILE, dump_yaml(about).encode())


def take_back(root: Path, leave: bool) -> None:
    """Remove a store in which no process has begun a shard.

    leave  keep the folder itself, which existed before
    """
    with leases.held(root / LOCK_FILE, wait=True):
        begun = (shard_number(path.name) for path in (*root.glob(f"{PAIRS}/*"), *root.glob("experts/*/*")))
        if any(number is not None for number in begun):
            return
        files.remove(root / STORE_FILE)  # first: without this file, the folder is not a store
        for name in (IMAGES_FILE, SOURCES_FILE, EXPERTS_FILE, PAIRS, "experts"):
            files.remove(root / name)
    files.remove(root / LOCK_FILE)
    if not leave:
        with suppress(OSError):  # another process has created the store again in the meantime
            root.rmdir()
