"""Scores of a real run on a real store, against the same figures worked out by hand."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from championship_sr.evaluate.inference import passes
from championship_sr.evaluate.methods import (
    BEST_X8,
    BICUBIC,
    EXPERT,
    FITTED,
    FUSION,
    FUSION_X8,
    MEAN,
    PER_IMAGE,
    PER_PIXEL,
    SWITCHED_OFF,
)
from championship_sr.evaluate.model import load
from championship_sr.evaluate.scoring.evaluation import ScoringOptions, evaluate_pairs, evaluate_store
from championship_sr.extract.config import ImagesConfig
from championship_sr.extract.images.bicubic import upscale
from championship_sr.extract.images.pairs import find_pairs
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.variants import VARIANTS
from championship_sr.store.shards.reader import Store
from championship_sr.train.combination import PULL
from championship_sr.train.fusion.config import PHASES
from championship_sr.train.metrics import psnr, rgb_to_y, round_to_8bit


def read_whole(store: Store, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """lr, hr, images and features of an image, without any code of this package."""

    def read(source: str, name: str) -> torch.Tensor:
        values = torch.from_numpy(store.array(index, source, name).load()).permute(2, 0, 1)[None]
        return values / 255 if values.dtype == torch.uint8 else values

    images = torch.stack([read("one", "sr"), read("two", "sr")], dim=1)
    return read("pairs", "lr"), read("pairs", "hr"), images, {name: read(name, "features") for name in ("one", "two")}


def psnr_y(sr: torch.Tensor, hr: torch.Tensor) -> float:
    return psnr(rgb_to_y(round_to_8bit(sr)), rgb_to_y(hr), border=4).item()


@pytest.fixture(scope="module")
def scores(run_root, store_root, config):
    return evaluate_store(
        run_root, store_root, options=ScoringOptions(self_ensemble=True, ablation=True), config=config
    )


def test_scoring_goes_on_in_smaller_tiles_where_memory_is_short(
    scores, run_root, store_root, config, monkeypatch, caplog
):
    run, tried = passes.run, []

    def short(inputs, networks, tiling, **options):
        tried.append(tiling.tile_px)
        if tiling.tile_px > 100:
            raise torch.OutOfMemoryError("out of memory")
        return run(inputs, networks, tiling, **options)

    for module in ("scoring.comparison", "inference.passes"):
        monkeypatch.setattr(f"championship_sr.evaluate.{module}.run", short)
    options = ScoringOptions(self_ensemble=True, ablation=True)
    made = evaluate_store(run_root, store_root, options=options, config=config)
    assert made.values == scores.values
    too_large = [size for size in tried if size > 100]
    assert too_large and tried[: len(too_large)] == too_large  # no image after the first tries them again
    assert "out of memory; continuing with tiles of" in caplog.text


def test_every_value_is_that_of_the_stored_image(scores, run_root, store_root):
    store, network = Store(store_root), load(run_root, device="cpu").network
    for index in range(len(store.images)):
        lr, hr, images, features = read_whole(store, index)
        with torch.no_grad():
            fused = network(lr, images, features)
        expected = {
            FUSION: fused,
            EXPERT + "one": images[:, 0],
            EXPERT + "two": images[:, 1],
            MEAN: images.mean(1),
        }
        for method, image in expected.items():
            assert scores.values["psnr_y"][method][index] == pytest.approx(psnr_y(image, hr), abs=1e-3), method
        pixels = store.array(index, "pairs", "lr").load()
        bicubic = torch.from_numpy(upscale(pixels, 4)).permute(2, 0, 1)[None] / 255
        assert scores.values["psnr_y"][BICUBIC][index] == pytest.approx(psnr_y(bicubic, hr), abs=1e-6)


def test_oracles_bound_the_experts_and_lie_in_order(scores):
    one, two, image, pixel = (
        np.array(scores.values["psnr_y"][name]) for name in (EXPERT + "one", EXPERT + "two", PER_IMAGE, PER_PIXEL)
    )
    assert np.array_equal(image, np.maximum(one, two)) and (pixel >= image).all()


def test_every_phase_has_an_ablation_row_that_differs(scores):
    rows = [method for method in scores.methods if method.startswith(SWITCHED_OFF)]
    assert rows == [SWITCHED_OFF + phase for phase in PHASES]
    for method in rows:
        assert scores.values["psnr_y"][method] != scores.values["psnr_y"][FUSION], method


def test_stored_variants_and_live_experts_give_the_same_self_ensemble(
    scores, tmp_path, run_root, hr_folder, expert_entries, make_store_of, config
):
    eight = make_store_of(tmp_path / "eight.store", hr_folder, expert_entries, variants=list(VARIANTS))
    stored = evaluate_store(run_root, eight, options=ScoringOptions(self_ensemble=True), config=config)
    for method in (BEST_X8, FUSION_X8):  # live: from float32; stored: rounded to float16
        live = scores.values["psnr_y"][method]
        assert stored.values["psnr_y"][method] == pytest.approx(live, abs=0.02)
        assert live != pytest.approx(scores.values["psnr_y"][FUSION], abs=1e-3)


def test_files_score_as_their_store_does(scores, run_root, hr_folder, config):
    pairs = find_pairs(ImagesConfig(hr=(str(hr_folder),)), 4)
    live = evaluate_pairs(run_root, pairs, options=ScoringOptions(self_ensemble=False), config=config)
    assert live.images == scores.images and "made by MATLAB's bicubic" in live.protocol
    for method in (BICUBIC, MEAN, EXPERT + "one", FUSION):
        assert live.values["psnr_y"][method] == pytest.approx(scores.values["psnr_y"][method], abs=0.02), method


def test_tiles_change_the_fusion_little_and_the_stored_experts_not_at_all(scores, run_root, store_root, config):
    tiled = evaluate_store(
        run_root,
        store_root,
        options=ScoringOptions(self_ensemble=False),
        config=replace(config, tile_px=16, halo_px=4, blend_px=2),
    )
    for method in (EXPERT + "one", MEAN, PER_PIXEL):
        assert tiled.values["psnr_y"][method] == pytest.approx(scores.values["psnr_y"][method], abs=1e-9)
    assert tiled.values["psnr_y"][FUSION] == pytest.approx(scores.values["psnr_y"][FUSION], abs=0.5)
    assert tiled.values["psnr_y"][FUSION] != scores.values["psnr_y"][FUSION]


def least_squares(store: Store, images: list[int]) -> list[float]:
    """The weights of sum 1 of the least squared luma error on these images, each as much as another.

    As equal ones and a departure, whose square costs PULL of the mean's squared error.
    """
    apart, left = [], []
    for index in images:
        _, hr, sr, _ = read_whole(store, index)
        inside = (..., slice(4, -4), slice(4, -4))
        truth, one, two = (rgb_to_y(image)[inside].flatten().numpy() for image in (hr[0], sr[0, 0], sr[0, 1]))
        share = (len(truth) * len(images)) ** -0.5
        apart.append((one - two) * share)
        left.append((truth - (one + two) / 2) * share)
    apart, left = np.concatenate(apart), np.concatenate(left)
    [[departure], *_] = np.linalg.lstsq(
        np.append(apart, np.sqrt(2 * PULL) * np.linalg.norm(left))[:, None], np.append(left, 0), rcond=None
    )
    return [0.5 + departure, 0.5 - departure]


def test_weights_are_fitted_to_images_that_are_not_scored(run_root, store_root, config):
    part = evaluate_store(run_root, store_root, ["photo1"], options=ScoringOptions(self_ensemble=False), config=config)
    assert part.images == ("photo1",) and FITTED in part.methods
    store = Store(store_root)
    others = [index for index, image in enumerate(store.images) if image.id != "photo1"]
    assert list(part.weights.values()) == pytest.approx(least_squares(store, others), abs=1e-3)
    _, hr, images, _ = read_whole(store, next(i for i, image in enumerate(store.images) if image.id == "photo1"))
    mixed = sum(weight * images[:, i] for i, weight in enumerate(part.weights.values()))
    assert part.values["psnr_y"][FITTED] == pytest.approx([psnr_y(mixed, hr)], abs=1e-3)
    assert any("from 3 images of plain.store that are not scored" in note for note in part.notes)
    everything = evaluate_store(run_root, store_root, options=ScoringOptions(self_ensemble=False), config=config)
    assert FITTED not in everything.methods and any("left out" in note for note in everything.notes)


def test_weights_are_not_fitted_to_files_that_the_runs_own_store_has(run_root, hr_folder, config):
    pairs = find_pairs(ImagesConfig(hr=(str(hr_folder),)), 4)
    some = evaluate_pairs(run_root, pairs[:1], options=ScoringOptions(self_ensemble=False), config=config)
    assert any("from 3 images of plain.store" in note for note in some.notes)
    every = evaluate_pairs(run_root, pairs, options=ScoringOptions(self_ensemble=False), config=config)
    assert FITTED not in every.methods


def test_a_run_without_its_store_has_the_weights_that_it_started_from(tmp_path, run_root, store_root, config):
    moved = shutil.copytree(run_root, tmp_path / "moved")
    (moved / "run.yaml").unlink()
    found = evaluate_store(moved, store_root, options=ScoringOptions(self_ensemble=False), config=config)
    assert found.weights == {"one": 0.5, "two": 0.5} and any("that the run started from" in n for n in found.notes)
    assert found.over_fitted().mean == found.gain("psnr_y", FUSION, MEAN).mean


def test_one_expert_alone_has_no_weights_to_fit(hr_folder, expert_entries, config):
    from championship_sr.extract.config import load_expert_config
    from championship_sr.extract.experts.expert import load_expert

    expert = load_expert(load_expert_config(expert_entries[0]), torch.device("cpu"), 4)
    pairs = find_pairs(ImagesConfig(hr=(str(hr_folder),)), 4)
    found = evaluate_pairs(None, pairs, experts=[expert], options=ScoringOptions(self_ensemble=False), config=config)
    assert found.weights == {"one": 1.0} and any("one expert alone" in note for note in found.notes)
    assert found.values["psnr_y"][FITTED] == found.values["psnr_y"][EXPERT + "one"]


def test_without_a_run_the_experts_are_scored(store_root, config):
    found = evaluate_store(None, store_root, options=ScoringOptions(self_ensemble=False), config=config)
    assert FUSION not in found.methods and EXPERT + "two" in found.methods
    assert "fusion" not in found.table()


def test_pictures_are_shown_to_whoever_asks(run_root, store_root, config):
    seen = []
    evaluate_store(
        run_root,
        store_root,
        ["photo0"],
        options=ScoringOptions(self_ensemble=False, observe=seen.append),
        config=config,
    )
    assert [pictures.case.name for pictures in seen] == ["photo0"]
    assert seen[0].images[FUSION].shape == seen[0].hr.shape


def test_perfect_images_are_infinitely_good_and_stay(tmp_path, run_root, expert_entries, make_store_of, config):
    Image.fromarray(np.full((48, 48, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    store = make_store_of(tmp_path / "grey.store", tmp_path, expert_entries)
    found = evaluate_store(run_root, store, options=ScoringOptions(self_ensemble=False), config=config)
    assert found.mean("psnr_y", BICUBIC) == math.inf and "inf" in found.table()


def test_a_store_with_other_weights_is_refused(tmp_path, run_root, hr_folder, expert_entries, make_store_of, config):
    swapped = [{**expert_entries[0], "weights": expert_entries[1]["weights"]}, expert_entries[1]]
    store = make_store_of(tmp_path / "swapped.store", hr_folder, swapped)
    with pytest.raises(StoreError, match=r"expert one has another weights_sha256 .* extract --rebuild one"):
        evaluate_store(run_root, store, config=config)


def test_an_unknown_image_is_named(run_root, store_root, config):
    with pytest.raises(StoreError, match=r"no image nobody \(has: photo0"):
        evaluate_store(run_root, store_root, ["photo0", "nobody"], config=config)


def test_a_run_without_a_checkpoint_is_refused(tmp_path, store_root, config):
    with pytest.raises(StoreError, match="contains no checkpoint"):
        evaluate_store(tmp_path, store_root, config=config)


def test_experts_whose_files_are_gone_leave_a_note_or_fail_where_they_are_insisted_on(
    tmp_path, hr_folder, expert_entries, make_store_of, make_run, config
):
    moved = []
    for entry in expert_entries:
        weights = tmp_path / f"{entry['name']}.safetensors"
        weights.write_bytes(Path(entry["weights"]).read_bytes())
        moved.append({**entry, "weights": str(weights)})
    store = make_store_of(tmp_path / "moved.store", hr_folder, moved)
    run = make_run(tmp_path / "run", store)
    (tmp_path / "one.safetensors").unlink()
    found = evaluate_store(run, store, config=config)
    assert BEST_X8 not in found.methods and any("x8 self-ensemble left out" in note for note in found.notes)
    with pytest.raises(WeightsError, match=r"one\.safetensors"):
        evaluate_store(run, store, options=ScoringOptions(self_ensemble=True), config=config)


def test_a_network_without_phases_has_no_ablation(tmp_path, store_root, make_run, config):
    run = make_run(tmp_path / "cnn", store_root, profile="cnn")
    with pytest.raises(ConfigError, match="no phases to switch off"):
        evaluate_store(run, store_root, options=ScoringOptions(ablation=True), config=config)
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["fusion"]["profile"] == "cnn"


def test_the_bundled_fusion_has_a_row_of_its_own_and_says_what_it_gains(run_root, store_root, config):
    scores = evaluate_store(run_root, store_root, options=ScoringOptions(False, bundled=load(run_root)), config=config)
    for values in scores.values.values():
        assert values["bundled"] == values["fusion"]  # the same run stands in for it
    assert "bundled fusion over two, the best expert: " in scores.table()
    assert scores.headline_gains("bundled") == scores.headline_gains("fusion")


def test_a_bundled_fusion_of_experts_in_another_order_is_refused(run_root, store_root, config):
    bundled = load(run_root)
    bundled.expert_names = ("two", "one")
    with pytest.raises(StoreError, match=r"a fusion of two, one in this order, but .* is scored with one, two"):
        evaluate_store(run_root, store_root, options=ScoringOptions(False, bundled=bundled), config=config)
