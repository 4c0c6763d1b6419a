import numpy as np
import pytest

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.info import info
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store

VARIANTS = ("identity", "rot90")


def same_numbers(one, other):
    for i in range(len(one.images)):
        for source in (PAIRS, *one.experts):
            for name in ("lr", "hr") if source == PAIRS else ("sr", "features"):
                for variant in ("identity",) if source == PAIRS else one.experts[source].variants:
                    a, b = (store.array(i, source, name, variant) for store in (one, other))
                    assert (a.read() == b.read()).all()
                    assert (a.load() == b.load()).all()


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8", "pca3-int8"])
def test_container_chunks_and_shards_change_without_a_number_changing(tmp_path, make_store, codec):
    options = {"codecs": {"sr": "uint8", "features": codec}, "n_images": 5, "variants": VARIANTS}
    one = Store(make_store(tmp_path / "one", **options))
    read = []
    convert(one.root, tmp_path / "b", container="hdf5", chunks="tiles:8x8", images_per_shard=3, progress=read.append)
    assert sum(read) == verify(one.root).n_bytes
    other = Store(tmp_path / "b")
    assert (other.manifest.container, other.manifest.n_shards, one.manifest.n_shards) == ("hdf5", 2, 3)
    same_numbers(one, other)
    convert(other.root, tmp_path / "c", container="zarr", images_per_shard=2)
    same_numbers(one, Store(tmp_path / "c"))
    for path in one.root.rglob("shard-*.json"):  # there and back: the same records
        assert (tmp_path / "c" / path.relative_to(one.root)).read_bytes() == path.read_bytes()
    merge([one.root, tmp_path / "c"], tmp_path / "d")


def test_compression_is_no_change_of_numbers(tmp_path, make_store):
    one = Store(make_store(tmp_path / "one"))
    convert(one.root, tmp_path / "b", codecs={"features": "float16+zstd", "sr": "float16+blosc"})
    other = Store(tmp_path / "b")
    same_numbers(one, other)
    assert "recoded" not in other.experts["a"].identity


@pytest.mark.parametrize("codec", ["int8", "pca5-int8"])
def test_a_changed_codec_is_within_its_step_and_said(tmp_path, make_store, codec):
    one = Store(make_store(tmp_path / "one", {"a": 5}, sizes=[(20, 30)]))
    convert(one.root, tmp_path / "b", codecs={"features": codec})
    other = Store(tmp_path / "b")
    old, new = (store.array(1, "a", "features") for store in (one, other))
    steps = new.codec.quantum(old.load(), new.params)
    assert (np.abs(new.load() - old.load()) <= 0.51 * steps + 1e-4).all()
    assert other.experts["a"].identity["recoded"] == {"features": ["float16", codec]}
    with pytest.raises(StoreError, match="recoded"):
        Manifest.load(tmp_path / "b").add_expert(one.experts["a"])


def test_a_conversion_that_was_killed_goes_on(tmp_path, make_store):
    one = make_store(tmp_path / "one")
    convert(one, tmp_path / "b", codecs={"features": "pca2-int8"})
    manifest = Manifest.load(tmp_path / "b")
    before = manifest.record_path("a", 1).read_bytes()
    manifest.record_path("a", 1).unlink()
    manifest.remove_expert("b")
    convert(one, tmp_path / "b", codecs={"features": "pca2-int8"})
    assert manifest.record_path("a", 1).read_bytes() == before
    assert not verify(tmp_path / "b").faults


def test_damage_is_not_given_a_new_checksum(tmp_path, make_store):
    one = make_store(tmp_path / "one")
    path = one / "experts/b/shard-00001.zarr/img002/sr/c.0.0.0"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="b: img002/sr is damaged; run store verify --repair"):
        convert(one, tmp_path / "b", container="hdf5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codecs": {"feature": "int8"}}, r"--codec feature: no expert has such an array \(has: features, sr\)"),
        ({"codecs": {"features": "int9"}}, r"codec 'int9': expected one of float32, float16"),
        ({"codecs": {"features": "pca6-int8"}}, r"--codec features=pca6-int8: a has 5 channels there"),
        ({"chunks": "tiles:8"}, r"chunks 'tiles:8': expected default, rows or tiles:ROWSxCOLUMNS"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(tmp_path, make_store, options, message):
    with pytest.raises(ConfigError, match=message):
        convert(make_store(tmp_path / "one", {"a": 5}), tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


def test_a_store_is_not_converted_into_itself(tmp_path, make_store):
    one = make_store(tmp_path / "one")
    with pytest.raises(StoreError, match="is the store itself"):
        convert(one, tmp_path / "." / "one", container="hdf5")


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_info_counts_what_is_there(tmp_path, make_store, container):
    found = info(make_store(tmp_path / "s", shards=[1], container=container, codecs={"features": "pca2-int8"}))
    assert (found.images, found.shards, found.lr_px) == (3, 2, 12 * 17 + 9 * 8 + 16 * 16)
    pairs, a, _ = found.sources
    assert (pairs.missing_shards, a.missing_shards, a.shards) == ((), (0,), 1)
    assert [each.bytes_per_lr_px for each in a.arrays] == [16 * 3 * 2, 2]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "s/experts/a").rglob("*") if path.is_file())
    assert a.n_bytes == on_disk
    assert a.bytes_per_lr_px == on_disk / 256
