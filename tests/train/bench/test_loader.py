import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from championship_sr.store.shards.reader import Store
from championship_sr.train.bench import loader as bench_loader
from championship_sr.train.bench import peers as bench_peers
from championship_sr.train.bench.loader import Runner, on_device, samples_per_second, useful_bytes, warm_figures
from championship_sr.train.bench.peers import PEERS, PatchFiles, Slices, installed_peers, raw_sample
from championship_sr.train.data.sampler import WindowPlace
from tests.train.loaders import loader_of


@pytest.fixture
def small(monkeypatch):
    """The bench at a size that takes a moment."""
    sizes = {
        "FULL_SIZE_CHANNELS": {"a": 20, "b": 17},
        "SCALE": 2,
        "CROP_PX": 8,
        "IMAGE_PX": 32,
        "PATCHES": 16,
        "COLD_STEPS": 2,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(bench_loader, name, value)
    monkeypatch.setattr(bench_loader, "_in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench_peers, "PEERS", {})


@pytest.fixture
def random_store(small, tmp_path):
    return partial(bench_loader.write_store, tmp_path / "made", n_images=1)


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_slicing_serves_the_windows_of_the_loader(random_store, container):
    store = Store(random_store(container))
    loader = loader_of(store, batch_size=3, crop_px=8, seed=1)
    sliced = Slices(store, loader.places(0), 8)
    slot = next(loader.filled())
    windows, _ = slot.on(slot.memory).cut()
    for row, place in enumerate(loader.places(0)):
        for field, raw in windows.items():
            name = f"{field.source}.{field.name}"
            np.testing.assert_array_equal(sliced[row][name], raw[row].numpy())
            np.testing.assert_array_equal(raw_sample(store, place, 8)[name], raw[row].numpy())


def test_patch_files_hold_the_decoded_windows(random_store, tmp_path):
    loader = loader_of(Store(random_store("zarr")), batch_size=1, crop_px=8, seed=1)
    PatchFiles.write(tmp_path, 0, raw_sample(loader.store, loader.places(0)[0], 8))
    patch, batch = PatchFiles(tmp_path)[0], loader.batch(0)
    torch.testing.assert_close(patch["hr"], batch.hr[0])
    for number, name in enumerate(("a", "b")):
        assert torch.equal(patch["expert_imgs"][name], batch.images[0, number])
        assert torch.equal(patch["expert_feats"][name], batch.features[name][0])


def test_the_bench_gives_every_figure(small, tmp_path):
    figures = bench_loader.bench_loader(tmp_path, rounds=2, seconds=0.01, batch_size=2, threads=1, n_images=2)
    names = {"store", "store_decoded", "memcpy", "pt_files", "zarr_slicing", "h5py_slicing"}
    for key in ("samples_per_second", "gbytes_per_second"):
        assert figures[key].keys() == names and all(value > 0 for value in figures[key].values())
    assert all(figures[key] > 0 for key in ("memcpy_ratio", "cold_disk_ratio", "disk_gbytes_per_second"))
    assert 50 < figures["peak_rss_mib"] < 10_000
    assert not list(tmp_path.iterdir())


def test_figures_are_medians_of_the_better_number_of_workers():
    runners = [
        Runner("memcpy", 0, iter, 1, 10, 0, [100.0, 400.0, 200.0]),
        Runner("store", 0, iter, 1, 10, 0, [90.0, 150.0, 160.0]),
        Runner("pt_files", 0, iter, 1, 20, 0, [30.0, 10.0, 10.0]),
        Runner("pt_files", 2, iter, 1, 20, 0, [20.0, 20.0, 5.0]),
    ]
    figures = warm_figures(runners)
    assert figures["samples_per_second"] == {"memcpy": 200.0, "store": 150.0, "pt_files": 20.0}
    assert figures["gbytes_per_second"]["pt_files"] == pytest.approx(400e-9)
    assert figures["workers"]["pt_files"] == 2
    assert figures["memcpy_ratio"] == 0.75


def test_bytes_that_windows_share_are_useful_once(random_store, monkeypatch):
    loader = loader_of(Store(random_store("zarr")), batch_size=2, crop_px=8, seed=1)
    sample_bytes = loader.batch_bytes // 2
    monkeypatch.setattr(
        loader, "places", lambda step: [WindowPlace(0, 4, 4, "identity"), WindowPlace(0, 4, 8, "identity")]
    )
    assert useful_bytes(loader, 3) == sample_bytes * 12 // 8


@pytest.mark.parametrize("broken", [None, "raise OSError('libexample.so.1: cannot open\\nshared object file')"])
def test_a_peer_that_cannot_be_imported_is_named_in_one_line(monkeypatch, caplog, tmp_path, broken):
    if broken:
        (tmp_path / "no_such_module_at_all.py").write_text(broken)
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bench_peers, "PEERS", {"litdata": "no_such_module_at_all", "numpy": "numpy"})
    with caplog.at_level(logging.WARNING):
        assert installed_peers() == ["numpy"]
    (line,) = caplog.messages
    reason = "libexample.so.1: cannot open shared object file" if broken else "No module named 'no_such_module_at_all'"
    assert line == f"litdata is left out ({reason}): pip install 'championship-sr[bench]'"


def test_the_figures_name_the_peers_that_are_left_out(small, monkeypatch, tmp_path):
    for module in (bench_loader, bench_peers):
        monkeypatch.setattr(module, "PEERS", {"litdata": "no_such_module_at_all"})
    figures = bench_loader.bench_loader(tmp_path, rounds=1, seconds=0.01, batch_size=2, threads=1, n_images=2)
    assert figures["left_out"] == ["litdata"] and "litdata" not in figures["samples_per_second"]


@pytest.mark.parametrize("name", ["litdata", "mosaicml_streaming"])
def test_a_peer_serves_the_windows_that_the_loader_serves(random_store, monkeypatch, tmp_path, name):
    pytest.importorskip(PEERS[name])
    monkeypatch.setattr(bench_peers, "PEERS", {name: PEERS[name]})
    store = Store(random_store("zarr"))
    places = loader_of(store, batch_size=4, crop_px=8, seed=1).places(0)
    opened = dict(bench_peers.contenders(tmp_path, store, store, places, 8))[name]
    served = [batch["pairs.hr"].numpy() for batch in opened(0, 2)]
    expected = [raw_sample(store, place, 8)["pairs.hr"] for place in places]
    assert sorted(row.tobytes() for batch in served for row in batch) == sorted(raw.tobytes() for raw in expected)


def test_batches_on_a_device_stand_beside_its_own_copies(random_store):
    loader = loader_of(Store(random_store("zarr")), batch_size=2, crop_px=8, seed=1)
    runners = on_device(loader)  # as if the CPU were one
    for runner in runners:
        runner.rates.append(samples_per_second(runner, 0.01))
    rates = {runner.name: runner.rates[0] for runner in runners}
    figures = warm_figures([*runners, *(replace(runners[0], name=name) for name in ("store", "memcpy"))])
    assert figures["bus_ratio"] == rates["store_on_device"] / rates["device_copy"] > 0
