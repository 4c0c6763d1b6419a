"""A dozen named damages, each with the sentence that tells of it."""

import errno
import os
import re
import shutil
import tracemalloc

import numpy as np
import pytest
import yaml

from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.live import compare_live
from championship_sr.store.operations.verify import _is_finite, recorded_bytes, verify
from championship_sr.store.shards import reader
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard
from tests.conftest import edit_record

SHARDS = {"zarr": "shard-00001.zarr", "hdf5": "shard-00001.h5"}


def data_file(root, container):
    shard = root / "experts/a" / SHARDS[container]
    return shard / "img002/features/c.0.0.0" if container == "zarr" else shard


def flip_bit(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def flip_a_value(root, container):
    store = Store(root)
    flip_bit(data_file(root, container), store.array(2, "a", "features").entry.offset + 11)


def truncate(root, container):
    path = data_file(root, container)
    os.truncate(path, path.stat().st_size - 100)


def remove_the_shard(root, container):
    path = root / "experts/a" / SHARDS[container]
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_the_record(root, container):
    (root / "experts/a/shard-00001.json").unlink()


def tear_the_record(root, container):
    path = root / "experts/a/shard-00001.json"
    path.write_bytes(path.read_bytes()[:200])


def shard_of_another_expert(root, container):
    for name in ("shard-00001.json", SHARDS[container]):
        target = root / "experts/a" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        source = root / "experts/b" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def shard_of_other_images(root, container):
    edit_record(root / "experts/a/shard-00001.json", lambda record: record["images"].update(img002="another"))


def entry_of_other_weights(root, container):
    path = root / "experts/a/expert.yaml"
    content = yaml.safe_load(path.read_text())
    content["identity"]["weights_sha256"] = "changed"
    path.write_text(yaml.safe_dump(content))


def record_of_a_newer_program(root, container):
    edit_record(root / "experts/a/shard-00001.json", lambda record: record.update(format_version=3))


def record_of_another_shape(root, container):
    change = {"shape": [64, 64, 4]}
    edit_record(root / "experts/a/shard-00001.json", lambda record: record["arrays"]["img002/sr"].update(change))


def record_without_an_array(root, container):
    edit_record(root / "experts/a/shard-00001.json", lambda record: record["arrays"].pop("img002/sr"))


def forget_the_expert(root, container):
    (root / "experts/a/expert.yaml").write_text("name: [")


DAMAGES = [
    (flip_a_value, r"img002/features is damaged: its bytes are not those that were written \(sha256\)"),
    (
        truncate,
        r"\d+ bytes, expected \d+ \(truncated, or from another store\)|chunk index is damaged|not a readable",
    ),
    (remove_the_shard, "missing, although it is recorded"),
    (remove_the_record, "without a record; the next extract removes it"),
    (tear_the_record, "shard-00001.json: damaged: Unterminated string"),
    (shard_of_another_expert, "records shard 1 of b, not this one"),
    (shard_of_other_images, "from another store: its images are not those of"),
    (entry_of_other_weights, "expert.yaml: damaged: identity.weights_sha256 is changed, its records say a0"),
    (record_of_a_newer_program, "format version 3, but this program only reads 1 and 2"),
    (
        record_of_another_shape,
        r"damaged: img002/sr: the shape is \(64, 64, 4\), expected \(64, 64, 3\)",
    ),
    (record_without_an_array, "does not record the expected arrays: no img002/sr"),
    (forget_the_expert, r"experts/a/expert.yaml: damaged"),
]


@pytest.mark.parametrize("container", SHARDS)
@pytest.mark.parametrize("damage, message", DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_damage_is_named_and_only_it(tmp_path, make_store, container, damage, message):
    root = make_store(tmp_path / "s", container=container)
    damage(root, container)
    faults = [fault.message for fault in verify(root).faults]
    assert any(re.search(message, fault) for fault in faults), faults
    assert not any("experts/b" in fault or "/pairs/" in fault for fault in faults), faults


@pytest.mark.parametrize("container", SHARDS)
def test_many_damages_are_one_report(tmp_path, make_store, container):
    root = make_store(tmp_path / "s", container=container)
    flip_a_value(root, container)
    (root / "experts/b/shard-00000.json").unlink()
    tear = root / "pairs/shard-00001.json"
    tear.write_text("{")
    messages = "\n".join(fault.message for fault in verify(root).faults)
    assert all(
        each in messages for each in ("img002/features is damaged", "experts/b/shard-00000", "pairs/shard-00001")
    )


@pytest.mark.parametrize("container", SHARDS)
def test_a_sound_store_has_no_fault(tmp_path, make_store, container):
    root = make_store(tmp_path / "s", container=container, variants=("identity", "rot90"), codecs={"sr": "uint8+zstd"})
    read = []
    report = verify(root, progress=read.append)
    assert not report.faults
    assert not any(report.missing.values())
    assert report.arrays == 3 * (2 + 2 * 2 * 2)
    assert sum(read) == report.n_bytes == recorded_bytes(root)


def test_missing_shards_are_counted_and_no_fault(tmp_path, make_store):
    report = verify(make_store(tmp_path / "s", shards=[1]))
    assert not report.faults
    assert report.missing == {PAIRS: 0, "a": 1, "b": 1}


def test_values_that_are_not_finite_are_found_although_the_checksum_is_right(tmp_path, make_store):
    import hashlib

    root = make_store(tmp_path / "s", codecs={"features": "bfloat16"})
    path = data_file(root, "zarr")
    raw = np.fromfile(path, np.uint16, 16 * 16 * 5)
    raw[3] = 0x7F80
    with open(path, "r+b") as file:
        file.write(raw.tobytes())
    sha256 = hashlib.sha256(raw.tobytes()).hexdigest()
    change = {"sha256": sha256}
    edit_record(root / "experts/a/shard-00001.json", lambda record: record["arrays"]["img002/features"].update(change))
    assert [fault.message.partition("zarr: ")[2] for fault in verify(root).faults] == [
        "img002/features holds non-finite values"
    ]


def test_changed_source_images_are_named(tmp_path, make_store):
    root = make_store(tmp_path / "s")

    def hashes(image):
        if image.id == "img001":
            raise FileNotFoundError(2, "No such file", "x.png")
        return ("other" if image.id == "img002" else image.lr_sha256), None

    messages = [fault.message for fault in verify(root, hashes).faults]
    assert len(messages) == 2
    assert "img001 (photo 1): can no longer be read" in messages[0]
    assert "img002 (photo 2): the LR image has changed since the store was made" in messages[1]


def test_a_shard_that_is_being_written_is_no_fault(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s", shards=[0])
    manifest = Manifest.load(root)
    with pytest.raises(KeyboardInterrupt), write_shard(manifest, "a", 1):
        assert not verify(root).faults
        raise KeyboardInterrupt
    (root / "experts/a/shard-00001.zarr.tmp").mkdir()
    assert "shard-00001.zarr.tmp: unfinished" in verify(root).faults[0].message


def test_a_truncated_shard_is_named_when_it_is_read(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    truncate(root, "zarr")
    with pytest.raises(StoreError, match=r"c.0.0.0: \d+ bytes, expected \d+ .truncated"):
        Store(root).array(2, "a", "features").read()


def test_a_entry_of_other_weights_is_never_read(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    entry_of_other_weights(root, "zarr")
    with pytest.raises(StoreError, match="a shard of another a: its weights or settings are not those in expert"):
        Store(root).array(2, "a", "features")


def test_a_compressed_chunk_with_a_flipped_bit_is_never_decoded(tmp_path, make_store):
    root = make_store(tmp_path / "s", codecs={"features": "float16+zstd"})
    flip_bit(data_file(root, "zarr"), 60)
    with pytest.raises(StoreError, match="img002/features: a zstd chunk is damaged"):
        Store(root).array(2, "a", "features").read()


@pytest.mark.parametrize("container", SHARDS)
def test_a_checking_store_finds_a_flipped_bit_at_the_first_touch(tmp_path, make_store, container):
    root = make_store(tmp_path / "s", container=container)
    flip_a_value(root, container)
    Store(root).array(2, "a", "features")
    store = Store(root, check=True)
    store.array(1, "a", "features")
    with pytest.raises(StoreError, match=r"a: img002/features is damaged: .* pipeline.py store verify --repair"):
        store.array(2, "a", "features")


def test_a_store_that_cannot_be_written_is_read_and_verified(tmp_path, make_store, monkeypatch):
    root = make_store(tmp_path / "s")

    def read_only(path, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, *args, **options)

    really_open = os.open
    monkeypatch.setattr(os, "open", read_only)
    assert not verify(root).faults
    manifest = Manifest.load(root)
    with pytest.raises(OSError, match=r"Read-only file system: .*store.lock"):
        manifest.remove_expert("a")
    with pytest.raises(OSError, match=r"Read-only file system: .*shard-00000.lock"), write_shard(manifest, "a", 0):
        pass


def fresh(samples, change=0.0):
    def recompute(expert, image, variant):
        seed, channels = {"a": (0, 5), "b": (1, 7)}[expert]
        arrays = samples.features(seed, int(image.id[3:]), image.lr_size, channels, 4)
        arrays["features"] = arrays["features"] + change * (image.id == "img002")
        return arrays

    return recompute


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8", "pca3-int8", "float16+zstd"])
def test_stored_equals_live_within_the_codecs_step(tmp_path, make_store, samples, codec):
    store = Store(make_store(tmp_path / "s", codecs={"features": codec, "sr": "uint8"}))
    found = compare_live(store, fresh(samples), 3)
    assert len(found) == 3 * 2 * 2
    assert all(each.within for each in found)
    again = compare_live(store, fresh(samples, 0.5), 3)
    assert {(each.image, each.array) for each in again if not each.within} == {("img002", "features")}


@pytest.mark.parametrize("codec, infinity", [("float16", 0x7C00), ("bfloat16", 0x7F80)])
def test_every_number_of_16_bits_is_known_as_finite_or_not(codec, infinity):
    numbers = np.arange(2**16, dtype=np.uint16)
    finite = numbers & 0x7FFF < infinity  # IEEE 754: an exponent of ones is infinite or not a number
    raw = numbers.view(np.float16) if codec == "float16" else numbers
    assert [_is_finite(raw[i : i + 1], codec) for i in range(2**16)] == finite.tolist()
    assert _is_finite(raw[finite], codec) and not _is_finite(raw, codec)


@pytest.mark.parametrize("chunks", ["rows", "tiles:8x8"])
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_bands_are_the_array(tmp_path, make_store, monkeypatch, container, chunks):
    monkeypatch.setattr(reader, "BAND_BYTES", 1500)
    store = Store(make_store(tmp_path / "s", container=container, chunks=chunks, sizes=[(20, 33)]))
    for name in ("sr", "features"):
        array = store.array(0, "a", name)
        bands = list(array.bands())
        assert len(bands) > 1 and (np.concatenate(bands) == array.read()).all()


@pytest.mark.parametrize("chunks", ["rows", "tiles:64x32", "default"])
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_no_array_is_read_into_memory_whole(tmp_path, make_store, monkeypatch, container, chunks):
    monkeypatch.setattr(reader, "BAND_BYTES", 1 << 15)
    root = make_store(tmp_path / "s", n_images=1, container=container, chunks=chunks, sizes=[(240, 300)])
    array = Store(root).array(0, "a", "features")
    n_bytes = int(np.prod(array.shape)) * array.raw_dtype.itemsize
    assert n_bytes > 16 << 15
    tracemalloc.start()
    try:
        array.read(100, 100, 64, 64)
        assert not verify(root, threads=1).faults
        assert tracemalloc.get_traced_memory()[1] < n_bytes / 2
    finally:
        tracemalloc.stop()
