import json
import time

import pytest

from championship_sr.store.errors import ConfigError
from championship_sr.train.bench.step import bench_step, table

CHANNELS = {"a": 4, "b": 6}


def test_every_profile_and_batch_has_its_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "championship_sr.train.bench.step.compiles_whole", lambda network, inputs: True
    )  # has tests of its own
    trace = tmp_path / "trace.json"
    result = bench_step(
        (1, 2), 8, rounds=1, channels=CHANNELS, scale=2, experts=lambda lr: time.sleep(0.05), trace=trace
    )
    for profile in ("direct", "paper", "swift"):
        one, two = result[profile]["1"], result[profile]["2"]
        assert 0 < one["seconds_forward"] < one["seconds_step"]
        assert two["gflop_forward"] == pytest.approx(2 * one["gflop_forward"], rel=0.01)
        assert two["saved_mib"] > one["saved_mib"] > 0
        live = result["live_over_cached"][profile]
        assert live == pytest.approx(1 + result["seconds_experts"] / one["seconds_step"])
        counts = result[profile]
        assert counts["operations"] > counts["kernels"] > 100 and isinstance(counts["compiles_whole"], bool)
    assert result["seconds_experts"] >= 0.05
    assert result["direct"]["1"]["parameters"] == result["paper"]["1"]["parameters"]
    assert result["paper"]["2"]["saved_mib"] < 0.5 * result["direct"]["2"]["saved_mib"]
    assert "live over cached" in table(result)
    assert {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]} >= {"swift", "paper", "direct"}
    assert result["device"] == "cpu" and "share_of_peak" not in result["swift"]["1"]
    assert f"{result['swift']['kernels']} of them kernels" in table(result)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ConfigError, match="no profile fast"):
        bench_step(profiles=["fast"], channels=CHANNELS)
