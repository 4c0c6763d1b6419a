import multiprocessing
import shutil
import threading
from functools import cache
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import transform
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.store.shards.writer import write_shard
from championship_sr.train.data.loader import joined
from championship_sr.train.data.sampler import WindowPlace
from tests.train.loaders import loader_of

CROP, SCALE = 12, 2
OPTIONS = {"batch_size": 4, "crop_px": CROP, "seed": 9, "repeat_factor": 5}


@cache
def plain_arrays(root, source, image_id, container):
    """Array name -> numpy array, read by zarr or h5py and no line of ours."""
    folder = root / (source if source == "pairs" else f"experts/{source}")
    for shard in sorted(folder.glob("shard-*.h5" if container == "hdf5" else "shard-*.zarr")):
        if container == "hdf5":
            with h5py.File(shard) as file:
                if image_id in file:
                    return {name: array[...] for name, array in file[image_id].items()}
        elif image_id in (group := zarr.open_group(shard, mode="r")):
            return {name: array[...] for name, array in group[image_id].arrays()}
    raise AssertionError(f"{image_id} is in no shard of {source}")


def plain_window(root, source, name, place, container):
    image_id, y, x, variant = place
    step = 1 if name in ("lr", "features") else SCALE
    array = plain_arrays(root, source, image_id, container)[name]
    window = array[y * step : (y + CROP) * step, x * step : (x + CROP) * step]
    return transform(window, variant).transpose(2, 0, 1)


def equal(one, other):
    tensors = [(one.lr, other.lr), (one.hr, other.hr), (one.images, other.images)]
    tensors += [(one.features[name], other.features[name]) for name in one.features]
    return one.places == other.places and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("augment", ["none", "approximate"])
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_a_batch_is_what_plain_readers_and_cropping_give(written, container, augment):
    root = written(container=container)
    store = Store(root, ["gamma", "alpha"])
    seen = set()
    for batch in islice(loader_of(store, **OPTIONS, augment=augment).batches(), 6):
        for row, place in enumerate(batch.places):
            seen.add(place[3])
            for name, tensor in (("lr", batch.lr), ("hr", batch.hr)):
                expected = plain_window(root, "pairs", name, place, container) / np.float32(255)
                np.testing.assert_array_equal(tensor[row].numpy(), expected)
            for e, expert in enumerate(("gamma", "alpha")):
                sr = plain_window(root, expert, "sr", place, container) / np.float32(255)
                np.testing.assert_array_equal(batch.images[row, e].numpy(), sr)
                features = plain_window(root, expert, "features", place, container)
                np.testing.assert_array_equal(batch.features[expert][row].numpy(), features.astype(np.float32))
    assert len(seen) == 1 if augment == "none" else len(seen) > 4


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_stored_variants_are_read_and_the_pairs_turned_to_match(written, container):
    variants = ("identity", "mirror", "rot90", "rot180", "rot270", "mirror_rot90", "mirror_rot180", "mirror_rot270")
    root = written(container=container, variants=variants)
    seen = set()
    for batch in islice(loader_of(Store(root), **OPTIONS, augment="stored").batches(), 12):
        for row, place in enumerate(batch.places):
            image_id, y, x, variant = place
            seen.add(variant)
            lr = plain_window(root, "pairs", "lr", place, container) / np.float32(255)
            np.testing.assert_array_equal(batch.lr[row].numpy(), lr)
            name = "features" if variant == "identity" else f"features@{variant}"
            upright = plain_arrays(root, "beta", image_id, container)[name]
            turned_back = np.asarray(transform(upright, _inverse(variant)))
            expected = transform(turned_back[y : y + CROP, x : x + CROP], variant).transpose(2, 0, 1)
            np.testing.assert_array_equal(batch.features["beta"][row].numpy(), expected.astype(np.float32))
    assert seen == set(variants)


def _inverse(variant):
    """Found by trial, on an array without symmetry."""
    array = np.arange(6).reshape(2, 3)
    names = ("identity", "mirror", "rot90", "rot180", "rot270", "mirror_rot90", "mirror_rot180", "mirror_rot270")
    return next(name for name in names if np.array_equal(transform(transform(array, variant), name), array))


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_threads_and_resuming_change_nothing(written, threads):
    store = Store(written())
    truth = [loader_of(store, **OPTIONS).batch(step) for step in range(8)]
    with_threads = loader_of(store, **OPTIONS, threads=threads, augment="none")
    assert all(map(equal, truth, islice(with_threads.batches(), 8)))
    assert all(map(equal, truth[5:], islice(with_threads.batches(5), 3)))


@pytest.mark.parametrize("stop", [3, 16, 17, 40])
def test_steps_end_where_they_are_told_to(written, stop):
    """Their windows are drawn 16 steps at a time."""
    loader = loader_of(Store(written()), **OPTIONS)
    found = [slot.places for slot in loader.filled(2, stop)]
    assert found == [loader.places(step) for step in range(2, stop)]


def test_windows_that_touch_in_the_same_rows_are_asked_for_together():
    found = [(0, 4, 30, "mirror"), (1, 4, 12, "identity"), (0, 4, 8, "identity"), (0, 4, 20, "rot90")]
    places = [WindowPlace(*place) for place in [*found, (0, 5, 32, "identity"), (0, 4, 43, "identity")]]
    runs = [((first.image, first.y, first.x), cols) for first, cols in joined(places, CROP)]
    assert runs == [((0, 4, 8), 34), ((0, 4, 43), 12), ((0, 5, 32), 12), ((1, 4, 12), 12)]


def test_every_byte_of_a_batch_is_asked_for_before_it_is_read(written, monkeypatch):
    loader = loader_of(Store(written()), **OPTIONS, crops_per_visit=4, pool_visits=1)
    asked = []
    monkeypatch.setattr(StoredArray, "prefetch", lambda array, *window: asked.append((array.key, array.source, window)))
    loader._prefetch(0, loader.places(0))
    for place in loader.places(0):
        for field in loader.fields:
            array, y, x = loader._window(field, place)
            side = CROP * field.resolution
            assert any(
                (key, source) == (array.key, array.source)
                and (top, rows) == (y, side) and left <= x and x + side <= left + cols
                for key, source, (top, left, rows, cols) in asked
            )  # fmt: skip
    assert len(asked) < len(loader.places(0)) * len(loader.fields)


def test_the_windows_of_a_slot_share_no_memory(written):
    raws = loader_of(Store(written()), **OPTIONS).slot().raw
    for number, raw in enumerate(raws.values()):
        raw.view(torch.uint8).fill_(number)
    assert all((raw.view(torch.uint8) == number).all() for number, raw in enumerate(raws.values()))


@pytest.mark.parametrize("on_gpu", [True, False])
def test_buffers_are_pinned_where_there_is_a_gpu_and_ask_for_large_pages_elsewhere(written, monkeypatch, on_gpu):
    made, asked = [], []
    empty = torch.empty

    def recorded(*shape, pin_memory, **options):
        made.append(pin_memory)  # without a GPU nothing can be pinned
        return empty(*shape, **options)

    loader = loader_of(Store(written()), **OPTIONS)
    loader.on_gpu = on_gpu
    monkeypatch.setattr(torch, "empty", recorded)
    monkeypatch.setattr(
        "championship_sr.train.data.slots.prefer_large_pages", lambda address, n_bytes: asked.append(n_bytes)
    )
    slot = loader.slot()
    assert made == [on_gpu]
    assert len(asked) == (not on_gpu) and all(n_bytes >= loader.batch_bytes for n_bytes in asked)
    slot.places = loader.places(0)
    raws = {field: raw.numpy() for field, raw in slot.on(slot.memory).cut()[0].items()}
    assert {field: (raw.shape[1:], raw.dtype) for field, raw in raws.items()} == {
        field: (windows.shape, windows.dtype) for field, windows in loader.windows.items()
    }


def test_batches_stay_as_they_are_while_later_ones_are_read(written):
    store = Store(written())
    kept = list(islice(loader_of(store, **OPTIONS, threads=2).batches(), 30))
    assert all(equal(batch, loader_of(store, **OPTIONS).batch(step)) for step, batch in enumerate(kept))


def test_float32_batches_do_not_alias_the_ring(written):
    store = Store(written(sr="float32", features="float32"))
    kept = list(islice(loader_of(store, **OPTIONS, threads=0).batches(), 3))
    assert all(equal(batch, loader_of(store, **OPTIONS).batch(step)) for step, batch in enumerate(kept))


def test_ranks_share_the_global_batch(written):
    store = Store(written())
    whole = loader_of(store, **OPTIONS, augment="approximate").batch(3)
    parts = [loader_of(store, **OPTIONS, augment="approximate", rank=rank, world=2).batch(3) for rank in range(2)]
    assert [place for part in parts for place in part.places] == whole.places
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_ranks_that_cannot_share_evenly_are_refused(written):
    with pytest.raises(ConfigError, match="batch_size=4: 3 ranks"):
        loader_of(Store(written()), **OPTIONS, world=3)


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8", "pca2-int8", "float16+zstd"])
def test_every_codec_is_undone_as_the_store_undoes_it(written, codec):
    store = Store(written(features=codec))
    batch = loader_of(store, **OPTIONS).batch(1)
    ids = [image.id for image in store.images]
    for row, (image_id, y, x, _) in enumerate(batch.places):
        expected = store.array(ids.index(image_id), "alpha", "features").load(y, x, CROP, CROP)
        found = batch.features["alpha"][row].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_photographs_of_8_and_16_bits_may_be_mixed(tmp_path):
    most = {"deep": 65535, "plain": 255}
    images = [Image(name, "", (20, 20), name, name, 0, "file") for name in most]
    manifest = Manifest.create(tmp_path / "pairs", scale=SCALE, container="zarr", images=images)
    rng = np.random.default_rng(0)
    with write_shard(manifest, "pairs", 0) as out:
        for name, levels in most.items():
            hr = rng.integers(0, levels, (40, 40, 3), np.uint16, endpoint=True)
            out.add(name, {"lr": np.zeros((20, 20, 3), np.uint8), "hr": hr.astype(np.min_scalar_type(levels))})
    batch = loader_of(Store(manifest.root), **OPTIONS).batch(0)
    assert {place[0] for place in batch.places} == most.keys()
    for row, place in enumerate(batch.places):
        expected = plain_window(manifest.root, "pairs", "hr", place, "zarr") / most[place[0]]
        np.testing.assert_allclose(batch.hr[row].numpy(), expected, atol=1e-7)


def test_a_subset_of_images_and_no_experts_and_no_features(written):
    store = Store(written())
    batch = loader_of(store, (), **OPTIONS, images=[2, 0]).batch(0)
    assert {place[0] for place in batch.places} <= {"img000", "img002"}
    assert batch.images.shape == (4, 0, 3, CROP * SCALE, CROP * SCALE) and batch.features == {}
    batch = loader_of(store, **OPTIONS, features=False).batch(0)
    assert batch.images.shape[1] == 3 and batch.features == {}


def test_tensors_are_in_channels_last_order(written):
    batch = loader_of(Store(written()), **OPTIONS).batch(0)
    assert batch.lr.is_contiguous(memory_format=torch.channels_last)
    assert batch.features["alpha"].is_contiguous(memory_format=torch.channels_last)
    assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_stored_augmentation_without_variants_says_what_to_run(written):
    with pytest.raises(ConfigError, match=r"augment=stored: .* extract --variants"):
        loader_of(Store(written()), **OPTIONS, augment="stored")


@pytest.mark.parametrize("threads", [0, 2])
def test_a_truncated_shard_is_named_in_the_caller_and_threads_end(written, tmp_path, threads):
    root = Path(shutil.copytree(written(), tmp_path / "damaged"))
    damaged = root / "experts/beta/shard-00000.zarr/img001/features/c.0.0.0"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    before = threading.active_count()
    batches = loader_of(Store(root), **OPTIONS, threads=threads).batches()
    with pytest.raises(StoreError, match=r"img001/features.* bytes, expected"):
        list(islice(batches, 40))
    assert threading.active_count() == before


def test_closing_the_iterator_ends_its_threads(written):
    before = threading.active_count()
    batches = loader_of(Store(written()), **OPTIONS, threads=2).batches()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_in_memory_are_soon_left_alone_and_others_never(written, monkeypatch, in_memory):
    looked = []
    monkeypatch.setattr(StoredArray, "prefetch", lambda array, *window: bool(looked.append(window)) or not in_memory)
    loader = loader_of(Store(written()), **OPTIONS)
    list(loader.filled(0, 100))
    windows = sum(len(joined(loader.places(step), CROP)) for step in range(100))
    expected = 256 + (windows - 256) // 8 if in_memory else windows
    assert len(looked) == expected * len(loader.fields)


def _sums(loader, results):
    results.put([float(batch.images.double().sum()) for batch in islice(loader.batches(2), 3)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_works_in_a_child_process(written, method):
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    loader = loader_of(Store(written()), **OPTIONS, augment="approximate")
    expected = [float(batch.images.double().sum()) for batch in islice(loader.batches(2), 3)]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=_sums, args=(loader, results))
    child.start()
    assert results.get(timeout=60) == expected
    child.join()
