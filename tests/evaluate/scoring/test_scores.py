"""What is claimed from the values: means, paired intervals, tables and files."""

import csv
import io
import json
import math

import numpy as np
import pytest

from championship_sr.evaluate.methods import BICUBIC, EXPERT, FITTED, FUSION, PER_IMAGE, SWITCHED_OFF
from championship_sr.evaluate.report.headline import facts, sentence
from championship_sr.evaluate.scoring.scores import Scores, benchmarks_table, best_per_image


def scores(**changes) -> Scores:
    values = {
        "psnr_y": {
            SWITCHED_OFF + "phase7": (30.0, 31.0, 32.0),
            PER_IMAGE: (31.5, 32.0, 33.0),
            BICUBIC: (28.0, 29.0, 30.0),
            EXPERT + "hat": (31.0, 32.0, 33.0),
            FUSION: (31.25, 32.5, 32.75),
        },
        "lpips": dict.fromkeys([SWITCHED_OFF + "phase7", PER_IMAGE, BICUBIC, EXPERT + "hat"], (0.3, 0.3, 0.3))
        | {FUSION: (0.2, 0.3, 0.3)},
    }
    return Scores(**{"protocol": "x4; as asked", "images": ("a", "b", "c"), "values": values} | changes)


def test_rows_come_by_kind_and_bounds_and_ablations_are_labelled():
    first_column = [cells[0] for cells in scores().rows()]
    assert first_column == [
        "bicubic",
        "hat",
        "fusion",
        "best expert per image (upper bound)",
        "without phase7 (switched off, not retrained)",
    ]


def test_gain_counts_wins_and_losses_and_contains_its_mean():
    gain = scores().gain("psnr_y", FUSION, EXPERT + "hat")
    assert gain.mean == pytest.approx((0.25 + 0.5 - 0.25) / 3)
    assert (gain.wins, gain.losses, gain.ties) == (2, 1, 0)
    assert -0.25 <= gain.low <= gain.mean <= gain.high <= 0.5


def test_nothing_is_claimed_where_every_image_is_too_small_for_the_first_metric():
    nothing = dict.fromkeys(scores().values["psnr_y"], (math.nan,) * 3)
    small = scores(values={"ssim_y": nothing, **scores().values})
    assert small.headline() == ["fusion over hat, the best expert: no SSIM-Y, every image is too small for its window"]
    assert sentence(small) == "By SSIM-Y nothing can be said: every image is too small for its window."
    assert not any("nan" in fact.figure + fact.text for fact in facts(small))


def with_fitted() -> Scores:
    values = scores().values["psnr_y"]
    return scores(values={"psnr_y": {**values, EXPERT + "span": (30.0, 30.0, 30.0), FITTED: (31.2, 32.4, 32.7)}})


def test_the_gain_over_fitted_weights_comes_first():
    some = with_fitted()
    assert some.best_expert == EXPERT + "hat"
    assert some.over_best() == some.gain("psnr_y", FUSION, EXPERT + "hat")
    assert some.over_fitted().mean == pytest.approx((0.05 + 0.1 + 0.05) / 3)
    first, second, blank, *_ = some.table().splitlines()
    assert first.startswith("fusion over fitted weights: +0.067 dB PSNR-Y (95 % interval +0.050 .. +0.100), 3 won, 0")
    assert second.startswith("fusion over hat, the best expert: +0.167 dB PSNR-Y") and not blank
    assert first in some.markdown()
    assert benchmarks_table({"Set5": some, "Set14": some}).startswith(f"Set5: {first}")


def test_headline_gains_are_a_mean_and_its_interval():
    gains = with_fitted().headline_gains()
    assert gains["over_fitted"] == pytest.approx([0.2 / 3, 0.05, 0.1])
    assert gains["over_best"][0] == pytest.approx(0.5 / 3)
    assert scores().headline_gains()["over_fitted"] is None
    assert scores(values={"psnr_y": {BICUBIC: (1.0, 2.0, 3.0)}}).headline_gains() == {}


def test_a_smaller_value_wins_where_smaller_is_better():
    gain = scores().gain("lpips", FUSION, BICUBIC)
    assert gain.mean == pytest.approx(0.1 / 3) and (gain.wins, gain.losses, gain.ties) == (1, 0, 2)


def test_interval_of_many_images_is_that_of_the_normal_law():
    rng = np.random.default_rng(2)
    difference = rng.normal(0.3, 1.0, size=400)
    many = scores(
        images=tuple(map(str, range(400))),
        values={"psnr_y": {BICUBIC: tuple(np.full(400, 30.0)), FUSION: tuple(30 + difference)}},
    )
    gain = many.gain("psnr_y", FUSION, BICUBIC)
    half = 1.96 * difference.std() / math.sqrt(400)
    assert gain.low == pytest.approx(difference.mean() - half, abs=0.02)
    assert gain.high == pytest.approx(difference.mean() + half, abs=0.02)


def test_an_infinite_value_stays_in_every_report():
    same = scores(values={"psnr_y": {BICUBIC: (math.inf, math.inf, 30.0), FUSION: (math.inf, 40.0, 31.0)}})
    assert same.mean("psnr_y", FUSION) == math.inf
    assert same.differences("psnr_y", FUSION, BICUBIC).tolist() == [0.0, -math.inf, 1.0]
    assert "inf" in same.table() and "a,fusion,inf" in same.csv()
    plain = json.loads(json.dumps(same.to_plain(), allow_nan=False))
    assert plain["values"]["psnr_y"][FUSION] == ["inf", 40.0, 31.0]


def test_csv_has_every_value_once():
    lines = list(csv.DictReader(io.StringIO(scores().csv())))
    assert len(lines) == 3 * 5
    assert {line["psnr_y"] for line in lines if line["method"] == FUSION} == {"31.25", "32.5", "32.75"}


def test_markdown_has_as_many_cells_in_each_line():
    lines = [line for line in scores().markdown().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 5
    assert "x4; as asked" in scores().markdown()


def test_best_expert_is_chosen_by_the_first_metric():
    values = {"a": {"psnr_y": 30.0, "lpips": 0.1}, "b": {"psnr_y": 31.0, "lpips": 0.4}}
    assert best_per_image(values, ["psnr_y", "lpips"])["lpips"] == 0.4
    assert best_per_image(values, ["lpips", "psnr_y"])["psnr_y"] == 30.0


def test_summary_keeps_experts_by_name():
    summary = scores().summary()["psnr_y"]
    assert summary["experts"] == {"hat": 32.0} and summary[BICUBIC] == 29.0


def test_ntire_score_appears_only_with_all_its_parts():
    parts = {"lpips": 0.2, "dists": 0.1, "clipiqa": 0.6, "maniqa": 0.5, "musiq": 70.0, "niqe": 4.0}
    whole = scores(images=("a",), values={name: {FUSION: (value,)} for name, value in parts.items()})
    assert whole.perceptual_score(FUSION) == pytest.approx(0.8 + 0.9 + 0.6 + 0.5 + 0.7 + 0.6)
    assert "NTIRE score" in whole.table()
    assert scores().perceptual_score(FUSION) is None


def test_benchmarks_stand_side_by_side():
    table = benchmarks_table({"Set5": scores(), "Set14": scores()}, "markdown")
    assert "| Set5 PSNR-Y |" in table.splitlines()[0] and "| Set14 LPIPS |" in table.splitlines()[0]
    assert table.count("x4; as asked") == 2


def test_time_and_memory_stand_under_the_table():
    timed = scores(seconds={"inputs": (1.0, 2.0, 3.0), FUSION: (0.5, 0.5, 0.5)}, peak_mib=(100.0, 300.4, 200.0))
    assert "2.00 s an image to read the store or run the experts, 0.50 s to fuse; at most 300 MiB" in timed.table()
    assert scores().costs() == []
