"""The weights that a run starts from: whose images they are fitted to, and that nothing changes them afterwards."""

import logging
import shutil

import numpy as np
import pytest
import torch

from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import DataConfig
from championship_sr.train.data.whole import read_stored
from championship_sr.train.processes import World
from championship_sr.train.records.checkpoint import load_fusion
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.fitting import fit_start, sampled_images, sampled_windows
from championship_sr.train.run.loop import new_network, train
from championship_sr.train.run.sources import make_validation, open_source

CPU = torch.device("cpu")
WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255
SQUARE = ((16, 16),) * 3


def fitted(store, config, tmp_path):
    """The source and what its training images give."""
    source = open_source(store, config, World(CPU))
    training, _ = make_validation(source, config, tmp_path, World(CPU))
    return source, fit_start(source, training, config, World(CPU))


def least_squares(root, images: list[int], experts: tuple[str, ...]) -> np.ndarray:
    """The weights of sum 1 on whole images of a store, by NumPy."""
    store = Store(root)
    truth = np.concatenate([(store.array(i, PAIRS, "hr").load() / 255 @ WEIGHTS).ravel() for i in images])
    lumas = [np.concatenate([(store.array(i, e, "sr").load() @ WEIGHTS).ravel() for i in images]) for e in experts]
    x = np.stack(lumas, axis=1).astype(float)
    others = np.linalg.lstsq(x[:, :-1] - x[:, -1:], truth - x[:, -1], rcond=None)[0]
    return np.array([*others, 1 - others.sum()])


def test_weights_are_fitted_to_the_training_images_and_to_no_other(make_learnable, make_config, tmp_path):
    root = make_learnable(tmp_path / "store", sizes=SQUARE, channels={"one": 5, "two": 7, "three": 3})
    # windows that are whole images: the sample is then known
    config = make_config(data={"crop_px": 16, "repeat_factor": 10}, validation={"images": ["photo01"]})
    _, weights = fitted(root, config, tmp_path)
    expected, other = (least_squares(root, images, tuple(weights)) for images in ([0, 2], [1]))
    assert list(weights.values()) == pytest.approx(expected, abs=2e-4)
    assert np.abs(expected - other).max() > 1e-3
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("profile", ["swift", "paper", "cnn"])
def test_the_untrained_network_returns_the_fitted_combination(shared_store, make_config, tmp_path, profile):
    config = make_config(fusion={"profile": profile})
    source, weights = fitted(shared_store, config, tmp_path)
    whole = read_stored(source.store, 1, tuple(source.entries), CPU)
    expected = sum(weight * image for weight, image in zip(weights.values(), whole.images.unbind(1), strict=True))
    network = new_network(config, source, CPU, weights)
    with torch.no_grad():
        assert (network(whole.lr, whole.images, whole.features) - expected).abs().max() < 1e-5
    assert max(abs(weight - 0.5) for weight in weights.values()) > 0.1


def test_mean_stays_a_start_and_the_log_has_the_fitted_line_all_the_same(shared_store, make_config, tmp_path):
    run = train(make_config(steps=1, fusion={"start": "mean"}), shared_store, tmp_path / "run")
    reference = read_metrics(run)[0]
    assert set(reference["weights"]) == {"one", "two"}
    assert reference["psnr"]["fitted"] >= max(reference["psnr"][name] for name in ("one", "two", "mean")) - 0.05
    assert "start_weights" not in load_fusion(run).network.state_dict()


def test_the_fitted_line_is_the_psnr_of_the_combination(shared_store, make_config, tmp_path):
    from championship_sr.train.metrics import psnr, rgb_to_y, round_to_8bit

    run = train(make_config(steps=1), shared_store, tmp_path / "run")
    reference, validation = read_metrics(run)[0], read_metrics(run)[2]
    store = Store(shared_store)
    index = [image.id for image in store.images].index(next(iter(validation["images"])))
    whole = read_stored(store, index, ("one", "two"), CPU)
    image = sum(reference["weights"][name] * whole.images[:, row] for row, name in enumerate(("one", "two")))
    expected = psnr(rgb_to_y(round_to_8bit(image)), rgb_to_y(whole.hr), border=4).item()
    assert reference["psnr"]["fitted"] == pytest.approx(expected, abs=1e-3)


def test_a_run_keeps_its_weights_when_it_goes_on(shared_store, make_config, tmp_path):
    config = make_config(steps=4, checkpoints={"every": 2})
    whole = train(config, shared_store, tmp_path / "whole")
    shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    train(config, shared_store, tmp_path / "resumed", resume=True)
    logged = list(read_metrics(whole)[0]["weights"].values())
    for run in (whole, tmp_path / "resumed"):
        assert load_fusion(run, "last").network.start_weights.tolist() == pytest.approx(logged, abs=1e-6)
    assert read_metrics(tmp_path / "resumed")[0]["weights"] == read_metrics(whole)[0]["weights"]


def test_experts_with_equal_images_start_from_equal_weights_and_it_is_said(
    make_learnable, make_config, tmp_path, caplog
):
    root = make_learnable(tmp_path / "store")
    for file in (root / "experts" / "one").rglob("*"):
        other = root / "experts" / "two" / file.relative_to(root / "experts" / "one")
        if file.is_file() and "sr" in file.parts and other.exists():
            shutil.copyfile(file, other)
    with caplog.at_level(logging.WARNING):
        _, weights = fitted(root, make_config(), tmp_path)
    assert weights == pytest.approx({"one": 0.5, "two": 0.5}, abs=1e-9)
    assert "the images of one and two are identical, so they get equal weights" in caplog.text


def test_one_expert_has_all_of_the_weight(make_learnable, make_config, tmp_path):
    root = make_learnable(tmp_path / "store", channels={"one": 5})
    _, weights = fitted(root, make_config(), tmp_path)
    assert weights == {"one": 1.0}
    train(make_config(steps=1), root, tmp_path / "run")


def test_the_sample_is_bounded_and_spread_over_the_images(shared_store):
    store = Store(shared_store)
    many = list(range(3)) * 400
    assert len(sampled_images(store, many, 256, None)) == 256
    assert sampled_images(store, range(3), 2, None) == [0, 1]
    assert sampled_images(store, range(3), 256, shards=1) == [0, 1, 2]
    data = sampled_windows(DataConfig(crop_px=256, sharding="node"), 1000, 256)
    assert (data.crop_px, data.repeat_factor, data.sharding) == (64, 1, "all")
    assert sampled_windows(DataConfig(crop_px=32), 6, 256).repeat_factor == 20
