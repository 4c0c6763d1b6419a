"""What the demo tells of its fusion, and of the bundled one where there is one; small stores stand in for its own."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from championship_sr.evaluate.bundled import installed_run
from championship_sr.evaluate.demo import demo as module
from championship_sr.evaluate.demo.photographs import VALIDATION
from championship_sr.train.records.checkpoint import load_fusion

TOLD = (
    "bundled fusion: trained on other photographs; fusion: begins from it and goes on with those of the demo. None of "
    "them is scored here"
)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, expert_entries, make_store_of):
    """A store of two images that the run was not trained on."""
    folder = tmp_path_factory.mktemp("held_out")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(60, 190, (12, 14, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"photo{number}.png")
    return make_store_of(folder / "held_out.store", folder, expert_entries)


@pytest.fixture
def demo(tmp_path, monkeypatch, run_root, store_root, held_out):
    """The command's output, with stores and a run in place of the demo's own."""
    monkeypatch.setattr(module.Demo, "stores", lambda _: {"training": store_root, "held_out": held_out})
    monkeypatch.setattr(module.Demo, "run", lambda *_: run_root)

    def invoke(bundled, *options: str) -> str:
        monkeypatch.setattr(module, "installed_run", lambda: bundled)
        result = CliRunner().invoke(module.demo, ["--out", str(tmp_path / "demo"), *options], catch_exceptions=False)
        return result.stdout

    return invoke


def test_json_tells_what_the_fusions_gain_over_the_best_expert_and_fitted_weights(demo, run_root):
    told = json.loads(demo(run_root, "--json").splitlines()[-1])
    psnr = told["psnr_y"]
    assert psnr["bundled"] == psnr["fusion"]  # the run stands in for the bundled fusion
    best = max(psnr["experts"].values())
    for gains in (told["gain"]["fusion"], told["gain"]["bundled"]):
        for name, rival in (("over_best", best), ("over_fitted", psnr["fitted"])):
            mean, low, high = gains[name]
            assert mean == pytest.approx(psnr["fusion"] - rival, abs=1e-6) and low <= mean <= high


def test_without_a_bundled_fusion_nothing_is_told_of_one(demo):
    told = json.loads(demo(None, "--json").splitlines()[-1])
    assert "bundled" not in told["psnr_y"] and list(told["gain"]) == ["fusion"]


def test_the_table_says_what_the_bundled_fusion_was_trained_on(demo, run_root, tmp_path):
    said = demo(run_root)
    assert "bundled fusion over fitted weights" in said and TOLD in said
    report = (tmp_path / "demo" / "report" / "report.html").read_text()
    assert "<title>Fusion of one and two on held-out photographs</title>" in report
    assert html.escape(TOLD[1:]) in report  # a sentence there
    assert TOLD not in demo(None)


def test_checkpoints_are_chosen_by_the_photographs_that_are_not_trained_on():
    assert module.Demo(Path("demo")).training.validation.images == VALIDATION


def test_the_fusion_begins_from_the_bundled_one(tmp_path, monkeypatch, run_root, store_root):
    begun = []
    monkeypatch.setattr(module, "train", lambda *_, **options: begun.append(options["init"]))
    for bundled in (run_root, None):
        monkeypatch.setattr(module, "installed_run", lambda bundled=bundled: bundled)
        module.Demo(tmp_path).run(store_root)
    assert begun == [run_root, None]


def test_its_network_is_the_bundled_fusions():
    assert module.Demo(Path("demo")).training.fusion == load_fusion(installed_run()).config.fusion
