"""One bit of any small file of a store, flipped: `verify` names it, or no reader sees another number."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import data, integers, sampled_from

from championship_sr.store.errors import StoreError
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store

SMALL = (".yaml", ".jsonl", ".json", ".safetensors")


@pytest.fixture(scope="module")
def store(tmp_path_factory, samples):
    """A store with a basis and scales, its small files, and what readers see in it."""
    root = tmp_path_factory.mktemp("fuzz") / "s"
    samples.build(root, {"a": 5}, 2, [(6, 7)], "zarr", {"sr": "int8", "features": "pca2-int8"}, images_per_shard=1)
    paths = sorted(path for path in root.rglob("*") if path.suffix in SMALL)
    return root, paths, seen(root)


def seen(root):
    found = Store(root)
    about = [(image.id, image.lr_size) for image in found.images]
    arrays = [(source, name) for source in ("pairs", *found.experts) for name in names(found, source)]
    return about, [found.array(i, *key).load().tobytes() for i in range(len(about)) for key in arrays]


def names(found, source):
    return ("lr", "hr") if source == "pairs" else [spec.name for spec in found.experts[source].arrays]


def named(root):
    """The lines in which verify tells of a fault."""
    try:
        return [fault.message for fault in verify(root, threads=1).faults]
    except StoreError as error:
        return [str(error)]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=data())
def test_a_flipped_bit_of_a_small_file_is_named_or_changes_nothing(store, data):
    root, paths, before = store
    path = data.draw(sampled_from(paths))
    whole = path.read_bytes()
    changed = bytearray(whole)
    bit = data.draw(integers(0, 8 * len(whole) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        faults = named(root)
        assert all(faults) and (faults or seen(root) == before)
    finally:
        path.write_bytes(whole)
