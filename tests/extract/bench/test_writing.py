import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from championship_sr.extract.bench.writing import SHARDS, WritingConfig, bench_writing
from championship_sr.extract.commands.bench import bench_extract

CONFIG = WritingConfig(tile_px=16, tiles=2, rounds=1, scale=2)


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_writing_is_timed_with_experts_that_cost_nothing(container):
    result = bench_writing(replace(CONFIG, container=container), torch.device("cpu"), 24)
    n_px = SHARDS * 2 * 16 * 16
    assert len(result.seconds) == 1
    assert result.px_per_second == pytest.approx(n_px / sum(result.seconds))
    assert result.mb_per_second == pytest.approx(result.px_per_second * 2 * (24 + 3 * 2**2) / 1e6)
    assert min(result.disk_mb_per_second, result.encoded_px_per_second, result.encoded_cpu_px_per_second) > 0


def test_the_command_tells_each_number_of_channels(monkeypatch):
    monkeypatch.setattr("championship_sr.extract.bench.writing.CHANNELS", (4, 6))
    options = ["--writing", "--tile-px", "16", "--tiles", "1", "--rounds", "1", "--device", "cpu"]
    told = CliRunner().invoke(bench_extract, options, catch_exceptions=False).stdout
    assert [line.split(":")[0] for line in told.splitlines() if " px/s" in line] == ["4 channels", "6 channels"]
    assert told.count("no bus to cross") == 2
    told = CliRunner().invoke(bench_extract, [*options, "--json"], catch_exceptions=False).stdout
    assert json.loads(told.splitlines()[-1])["writing"]["6"]["px_per_second"] > 0
    refused = CliRunner().invoke(bench_extract, [*options, "hat-l"])
    assert refused.exit_code == 2 and "name none" in refused.output
