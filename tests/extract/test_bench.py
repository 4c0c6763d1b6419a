import pytest
import torch

from extract.bench import bench_expert, totals
from extract.config import load_expert_config
from extract.edsr import EDSR


def test_both_sides_do_the_same_work_and_the_ratio_is_theirs(save_edsr, monkeypatch):
    seen = []
    forward = EDSR.forward
    monkeypatch.setattr(EDSR, "forward", lambda self, x: seen.append(tuple(x.shape)) or forward(self, x))
    result = bench_expert(
        load_expert_config(save_edsr()), torch.device("cpu"), scale=4, tile_px=16, tiles=2, rounds=3, container="zarr"
    )
    assert seen.count((1, 3, 16, 16)) == 2 * 2 * 3  # tiles x (bare, whole) x rounds
    assert len(result.bare_seconds) == len(result.extract_seconds) == 3
    ratios = sorted(w / b for w, b in zip(result.extract_seconds, result.bare_seconds, strict=True))
    assert result.overhead == pytest.approx(ratios[1])
    assert result.peak_gib > 0
    both = totals([result, result])
    assert both["overhead"] == pytest.approx(sum(result.extract_seconds) / sum(result.bare_seconds))
    assert both["px_per_second"] == pytest.approx(result.px_per_second / 2)
