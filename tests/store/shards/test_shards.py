import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import data, integers, sampled_from

from championship_sr.store.disk import maps
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.variants import VARIANTS, variant_size
from championship_sr.store.shards.reader import Store, StoredArray

CONTAINERS = ("zarr", "hdf5")
CHUNKS = ("default", "rows", "tiles:8x16")
SIZES = ((33, 41), (9, 70), (16, 16))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("compression", ["", "+zstd", "+blosc"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_what_is_written_is_read_back(tmp_path, make_store, samples, container, compression, chunks):
    codecs = {"sr": "uint16" + compression, "features": "float32" + compression}
    store = Store(make_store(tmp_path / "s", container=container, codecs=codecs, chunks=chunks, sizes=SIZES))
    for i, image in enumerate(store.images):
        for name, expected in samples.image(i, image.lr_size, 4).items():
            assert (store.array(i, PAIRS, name).load() == expected).all()
        for seed, (expert, channels) in enumerate({"a": 5, "b": 7}.items()):
            expected = samples.features(seed, i, image.lr_size, channels, 4)
            assert (store.array(i, expert, "features").load() == expected["features"]).all()
            np.testing.assert_allclose(store.array(i, expert, "sr").load(), expected["sr"], atol=0.51 / 65535)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, samples):
    """A store of wide and narrow arrays for each container, chunking and compression, beside its uncut arrays."""
    result = []
    for number, (container, chunks, plus) in enumerate(
        [(c, k, p) for c in CONTAINERS for k in CHUNKS for p in ("", "+zstd")]
    ):
        root = tmp_path_factory.mktemp("stores") / str(number)
        codecs = {"sr": "uint8" + plus, "features": "float16" + plus}
        samples.build(root, {"a": 20}, 1, [(37, 45)], container, codecs, chunks=chunks)
        store = Store(root)
        arrays = [store.array(0, "a", "sr"), store.array(0, "a", "features"), store.array(0, PAIRS, "hr")]
        result += [(array, array.read()) for array in arrays]
    return result


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=data())
def test_any_window_is_that_window_of_the_whole(stores, data):
    array, whole = data.draw(sampled_from(stores))
    height, width, channels = array.shape
    y, x = data.draw(integers(0, height - 1)), data.draw(integers(0, width - 1))
    rows, cols = data.draw(integers(1, height - y)), data.draw(integers(1, width - x))
    out = np.zeros((rows + 2, cols + 3, channels), array.raw_dtype)
    array.prefetch(y, x, rows, cols)
    array.read_into(out[1:-1, 2:-1], y, x)  # a part of a batch's buffer
    assert (out[1:-1, 2:-1] == whole[y : y + rows, x : x + cols]).all()
    out[1:-1, 2:-1] = 0
    assert not out.any()


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 13, 2), (0, 16, 1, 2), (3, 3, 0, 1)])
def test_a_window_outside_the_array_is_refused(tmp_path, make_store, window):
    array = Store(make_store(tmp_path / "s")).array(0, "a", "features")
    with pytest.raises(ValueError, match="is not inside 12x17"):
        array.read(*window)


def test_rows_whose_numbers_lie_apart_are_refused(tmp_path, make_store):
    array = Store(make_store(tmp_path / "s", codecs={"sr": "uint8", "features": "float16"})).array(0, "a", "sr")
    out = np.zeros((8, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="contiguous rows"):
        array.read_into(out[:, ::2], 0, 0)


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "uint8", "uint16", "int8", "float16+zstd", "float16+blosc"])
def test_plain_zarr_reads_a_store(tmp_path, make_store, codec):
    root = make_store(tmp_path / "s", codecs={"sr": codec, "features": codec}, sizes=SIZES)
    group = zarr.open_group(root / "experts/a/shard-00000.zarr", mode="r")
    assert sorted(group) == ["img000", "img001"]
    store = Store(root)
    for name in ("sr", "features"):
        array = group["img001"][name]
        assert array.attrs["codec"] == codec
        assert array.attrs["image"] == "photo 1"
        assert (array[:] == store.array(1, "a", name).read()).all()
    if codec == "int8":
        decoded = group["img001/features"][:] * np.array(group["img001/features"].attrs["scale"], np.float32)
        assert (decoded == store.array(1, "a", "features").load()).all()


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "uint8", "uint16", "int8"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_plain_h5py_reads_a_store(tmp_path, make_store, codec, chunks):
    codecs = {"sr": codec, "features": codec}
    root = make_store(tmp_path / "s", container="hdf5", codecs=codecs, chunks=chunks, sizes=SIZES)
    store = Store(root)
    with h5py.File(root / "experts/a/shard-00000.h5") as file:
        assert sorted(file) == ["img000", "img001"]
        for name in ("sr", "features"):
            dataset = file["img001"][name]
            assert (dataset.attrs["codec"], dataset.attrs["image"]) == (codec, "photo 1")
            assert (dataset[:] == store.array(1, "a", name).read()).all()


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_plain_h5py_reads_compressed_chunks_with_the_usual_plugins(tmp_path, make_store, compression):
    pytest.importorskip("hdf5plugin")
    codecs = {"sr": f"uint8+{compression}", "features": f"float16+{compression}"}
    root = make_store(tmp_path / "s", container="hdf5", codecs=codecs, sizes=SIZES)
    store = Store(root)
    with h5py.File(root / "experts/a/shard-00000.h5") as file:
        for name in ("sr", "features"):
            assert (file[f"img001/{name}"][:] == store.array(1, "a", name).read()).all()


def test_zarr_files_of_other_programs_agree_with_ours_on_the_index(tmp_path):
    from championship_sr.store.containers import zarr as zarr_shard

    values = np.arange(20 * 30 * 3, dtype=np.uint16).reshape(20, 30, 3)
    options = {"chunks": (8, 16, 3), "shards": (24, 32, 3), "compressors": None}
    separator = {"name": "default", "separator": "."}
    array = zarr.create_array(tmp_path / "g.zarr/img/sr", data=values, chunk_key_encoding=separator, **options)
    table = zarr_shard.chunk_table(tmp_path / "g.zarr", "img/sr", 6)
    content = zarr_shard.data_file(tmp_path / "g.zarr", "img/sr").read_bytes()
    offset, n_bytes = table[3]
    chunk = np.frombuffer(content[offset : offset + n_bytes], np.uint16).reshape(8, 16, 3)
    assert (chunk[:, :14] == array[8:16, 16:30]).all()


def test_large_hdf5_arrays_begin_at_pages(tmp_path, make_store):
    store = Store(make_store(tmp_path / "s", container="hdf5", sizes=[(40, 40)]))
    offsets = [store.array(i, "a", name).entry.offset for i in range(3) for name in ("sr", "features")]
    assert all(offset % 4096 == 0 for offset in offsets)


@pytest.mark.parametrize("container", CONTAINERS)
def test_stored_variants_are_arrays_of_their_own(tmp_path, make_store, samples, container):
    variants = ("identity", "mirror_rot90", "rot180")
    store = Store(make_store(tmp_path / "s", container=container, variants=variants))
    for number, variant in enumerate(variants):
        size = variant_size(store.images[0].lr_size, variant)
        expected = samples.features(0, 1000 * number, size, 5, 4)["features"]
        np.testing.assert_allclose(store.array(0, "a", "features", variant).load(), expected, atol=2e-3)
    absent = next(variant for variant in VARIANTS if variant not in variants)
    with pytest.raises(StoreError, match=f"no img000/sr@{absent} .has: features, features@mirror_rot90"):
        store.array(0, "a", "sr", absent)


def test_experts_come_in_the_order_asked_for(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    assert list(Store(root, ["b", "a"]).experts) == ["b", "a"]
    assert list(Store(root, ["b"]).experts) == ["b"]


def test_a_missing_expert_is_named_with_the_command_that_makes_it(tmp_path, make_store):
    with pytest.raises(StoreError, match=r"no features for hat \(has: a, b\). Run: pipeline.py extract --expert hat"):
        Store(make_store(tmp_path / "s"), ["a", "hat"])


def test_missing_shards_are_named_with_the_command_that_makes_them(tmp_path, make_store):
    root = make_store(tmp_path / "s", shards=[0])
    with pytest.raises(StoreError, match=r"a lacks 1 of 2 shards, the first is 1. Run: pipeline.py extract --expert a"):
        Store(root)


def _sum(store: Store) -> float:
    return float(sum(store.array(i, "a", "features").load().sum() for i in range(len(store.images))))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_an_open_store_works_in_other_processes(tmp_path, make_store, container, method):
    store = Store(make_store(tmp_path / "s", container=container))
    expected = _sum(store)
    with get_context(method).Pool(1) as pool:
        assert pool.apply(_sum, (store,)) == expected
    assert _sum(pickle.loads(pickle.dumps(store))) == expected


def test_a_fork_while_another_thread_reads_does_not_hang(tmp_path, make_store):
    store = Store(make_store(tmp_path / "s"))
    _sum(store)
    with store._views._lock:  # as another thread would hold it
        child = os.fork()
        if child == 0:
            os._exit(0 if _sum(store) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_read_the_same_store(tmp_path, make_store):
    store = Store(make_store(tmp_path / "s", codecs={"features": "int8+zstd"}))
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: _sum(store), range(40)))) == 1


def _maps_and_files() -> tuple[int, int]:
    return len(Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/fd"))


def test_maps_and_open_files_are_bounded(tmp_path, make_store, monkeypatch):
    monkeypatch.setattr("championship_sr.store.shards.reader.MAX_VIEWS", 4)
    store = Store(make_store(tmp_path / "s", n_images=20, sizes=[(8, 8)]))
    before = _maps_and_files()
    for _ in range(3):
        for i in range(20):
            store.array(i, "a", "sr").read()
    after = _maps_and_files()
    assert after[0] - before[0] <= 6
    assert after[1] == before[1]


def test_a_map_lives_as_long_as_an_array_that_views_it(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(range(200)))
    view = maps.FileMap(path, 200).view((10, 10), np.dtype(np.uint8), 100)
    assert view.sum() == sum(range(100, 200))
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_decoded_chunks_are_kept_up_to_a_limit():
    cache = maps.Cache(100)
    made = []

    def make(key):
        made.append(key)
        return np.zeros(40, np.uint8)

    for key in (1, 2, 1, 3, 1, 2):
        cache.get(key, lambda key=key: make(key), lambda value: value.nbytes)
    assert made == [1, 2, 3, 2]  # 1 was used last whenever room was needed
    assert len(cache) == 2


def test_a_stored_array_says_what_it_is(tmp_path, make_store):
    array = Store(make_store(tmp_path / "s", codecs={"features": "pca3-int8"})).array(1, "b", "features")
    assert isinstance(array, StoredArray)
    assert (array.shape, array.raw_dtype, array.raw_channels) == ((9, 8, 7), np.int8, 3)
    assert set(array.params) == {"mean", "basis", "scale"}
