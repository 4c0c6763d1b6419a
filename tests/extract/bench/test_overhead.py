import statistics

import pytest
import torch

from championship_sr.extract.bench.overhead import BenchConfig, opened
from championship_sr.extract.config import load_expert_config
from championship_sr.extract.edsr import EDSR

CPU = torch.device("cpu")


def test_both_sides_do_the_same_work_and_the_ratio_is_theirs(save_edsr, monkeypatch):
    seen = []
    forward = EDSR.forward
    monkeypatch.setattr(EDSR, "forward", lambda self, x: seen.append(tuple(x.shape)) or forward(self, x))
    with opened(BenchConfig(tile_px=16, tiles=2, rounds=3)) as bench:
        result = bench.expert(load_expert_config(save_edsr()), CPU)
        assert not bench.manifest.missing_shards("tiny")
    assert seen.count((1, 3, 16, 16)) == 2 * 2 * 3 + 1  # tiles x (bare, whole) x rounds, and one to warm up
    assert len(result.bare_seconds) == len(result.extract_seconds) == 3
    ratios = sorted(w / b for w, b in zip(result.extract_seconds, result.bare_seconds, strict=True))
    assert result.overhead == pytest.approx(ratios[1])
    assert result.peak_gib > 0
    by_hand = result.px_per_second * result.flop_per_px / 1e12 / result.peak_tflops
    assert result.share_of_peak == pytest.approx(by_hand)
    assert result.share_of_bus is None and result.bus_gbytes_per_second is None  # the CPU has no bus to cross


def test_all_experts_together_pay_for_the_pairs_once(save_edsr):
    with opened(BenchConfig(tile_px=16, tiles=1, rounds=3)) as bench:
        results = [bench.expert(load_expert_config(save_edsr(name)), CPU) for name in ("one", "two")]
        totals = bench.totals(results)
    bare = sum(statistics.median(r.bare_seconds) for r in results)
    work = sum(r.overhead * statistics.median(r.bare_seconds) for r in results)
    whole = work + totals["pairs_seconds"] / 3
    assert totals["overhead"] == pytest.approx(whole / bare)
    assert totals["px_per_second"] == pytest.approx(16 * 16 / whole)
    assert totals["peak_gib"] == max(r.peak_gib for r in results)
    flop = sum(r.flop_per_px for r in results) * 16 * 16
    assert totals["share_of_peak"] == pytest.approx(flop / whole / 1e12 / results[0].peak_tflops)


def test_the_other_container_and_precision_are_timed_as_well(save_edsr):
    with opened(BenchConfig(tile_px=16, tiles=1, rounds=1, container="hdf5", precision="bf16")) as bench:
        bench.expert(load_expert_config(save_edsr()), CPU)
        assert bench.manifest.container == "hdf5"
        assert bench.manifest.experts["tiny"].identity["precision"] == "bf16"
