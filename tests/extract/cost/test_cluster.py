"""A plan for a cluster: counts beside those of real stores, hours and cost beside the arithmetic, and the command."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from championship_sr.extract.commands import plan as plan_command
from championship_sr.extract.commands.plan import given_speeds
from championship_sr.extract.cost.cluster import image_seconds, plan_cluster, put_requests, store_files
from championship_sr.extract.cost.estimate import plan, planned_sizes
from championship_sr.extract.cost.simulate import Cluster
from championship_sr.extract.run.extraction import extract
from championship_sr.store.errors import ConfigError
from championship_sr.store.remote.bucket import PART_BYTES, PARTS


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
@pytest.mark.parametrize("variants", [["identity"], ["identity", "mirror"]])
def test_files_and_folders_are_those_of_a_real_store(make_config, save_edsr, container, variants):
    entry = save_edsr() | {"tap": None, "taps": {"features": "conv_after_body", "early": "conv_first"}}
    config = make_config(experts=[entry], container=container, variants=variants, images_per_shard=2)
    made = plan(config)
    extract(config)
    files = folders = 0
    for _, names, here in os.walk(config.store):
        folders, files = folders + len(names), files + len([name for name in here if not name.endswith(".lock")])
    assert store_files(made, config, made.shards, container) == (files, folders + 1)  # the store's own folder


def given(config, sizes, speed=1000.0):
    return plan(config, sizes, speeds={"tiny": speed})


def test_without_spread_and_failures_hours_and_cost_are_the_arithmetic(make_config):
    config, sizes = make_config(), [(50, 80)] * 512
    shared = plan_cluster(given(config, sizes), config, sizes, Cluster(4, 2, shard_seconds=1.0), price=3.0)
    for choice in shared.choices:
        n = choice.images_per_shard
        shard = n * 50 * 80 / 1000 + 1  # seconds
        assert choice.shards == -(-512 // n)
        assert choice.hours * 3600 == pytest.approx(-(-choice.shards // 8) * shard)
        assert choice.worst_hours == choice.hours and choice.lost == 0
    assert [choice.images_per_shard for choice in shared.choices] == [1, 4, 16, 64, 256, 512]
    # 64 images: 8 shards, one each, 257 s; 16: 260 s, as good; 4: 272; 1: 320; 256: two GPUs alone
    assert shared.advised == 16 and shared.ideal_hours * 3600 == pytest.approx(256)
    assert shared.gpu_hours == pytest.approx(8 * 260 / 3600) and shared.cost == pytest.approx(3 * shared.gpu_hours)
    made = given(config, sizes)
    assert shared.bytes_per_second == pytest.approx(made.bytes / 260)
    assert shared.fastest_bytes_per_second == pytest.approx(8 * made.experts[0].bytes / (512 * 4))


def test_failures_make_shards_smaller(make_config):
    config, sizes = make_config(), [(100, 100)] * 256
    made = given(config, sizes, 250.0)  # 40 s an image
    quiet = Cluster(2, 1, shard_seconds=5)
    often = replace(quiet, mtbf_hours=1, restart_seconds=60)
    calm, often = (plan_cluster(made, config, sizes, cluster) for cluster in (quiet, often))
    assert often.advised < 16 and often.chosen.lost > 0 == calm.chosen.lost
    assert often.chosen.hours > calm.chosen.hours >= calm.ideal_hours
    assert min(often.choices, key=lambda choice: choice.hours).images_per_shard <= calm.advised
    # all images take 2.8 h: one of e^2.8 = 17 tries ends; with half the speed hardly any would
    slow = plan_cluster(given(config, sizes, 125.0), config, sizes, replace(quiet, mtbf_hours=1))
    largest = [max(choice.images_per_shard for choice in each.choices) for each in (calm, often, slow)]
    assert largest == [256, 256, 64]
    with pytest.raises(ConfigError, match=r"mtbf-hours 0\.001: a shard of 1 images takes"):
        plan_cluster(made, config, sizes, replace(quiet, mtbf_hours=0.001))


def test_images_of_many_sizes_take_what_each_takes(make_config):
    config = make_config(variants=["identity", "mirror"])
    sizes = planned_sizes(config)
    made = given(config, sizes)
    seconds = image_seconds(made.experts[0], config, sizes)
    assert seconds == pytest.approx([2 * rows * cols / 1000 for rows, cols in sizes])
    assert seconds.sum() / 3600 == pytest.approx(made.hours)


def test_files_go_in_parts_where_they_are_large(make_config):
    config, sizes = make_config(container="hdf5"), [(500, 500)] * 8
    made = given(config, sizes)
    files, _ = store_files(made, config, 1, "hdf5")
    parts = [-(-made.pairs_bytes // PART_BYTES), PARTS]  # 102 MB in the smallest parts, 224 MB in fewer
    assert min(parts) > 1 and put_requests(made, config, 1, "hdf5") == files + sum(parts) + 2


def test_speeds_come_from_the_line_or_from_a_file_of_bench(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("noise\n" + json.dumps({"experts": {"a": {"px_per_second": 5.5}, "b": {"px_per_second": 7}}}))
    assert given_speeds((str(path), "b=9e3")) == {"a": 5.5, "b": 9000.0}
    for wrong in ("a", "a=fast", "a=0", "a=-1", "a=inf", str(Path(__file__))):
        with pytest.raises(ConfigError, match="--px-per-second"):
            given_speeds((wrong,))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "list").write_text('{"experts": [1]}')
    (tmp_path / "empty").write_text("")
    for name in ("pipe", "deep", "list", "empty"):
        with pytest.raises(ConfigError, match=f"--px-per-second .*{name}: expected NAME=NUMBER or a file"):
            given_speeds((str(tmp_path / name),))


def call(*arguments) -> str:
    result = CliRunner().invoke(plan_command.plan, [str(each) for each in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture
def sized(save_edsr):
    """The arguments of a plan for 300 images and one small expert."""
    return "--images", 300, "--lr-size", "30x40", "--set", f"extract.experts={json.dumps([save_edsr()])}"


def test_the_command_says_hours_cost_bandwidth_and_which_shards(sized):
    cluster = ("--px-per-second", "tiny=100", "--nodes", 2, "--gpus-per-node", 3, "--price", 2, "--mtbf-hours", 50)
    text = call(*sized, *cluster)
    for part in (
        "2 x 3 GPUs",
        "each node fails every 50 h",
        "GPU hours",
        "at 2 per hour",
        "to storage at",
        "images_per_shard=",
    ):
        assert part in text
    found = json.loads(call(*sized, *cluster, "--json").splitlines()[-1])
    assert found["hours"] == pytest.approx(300 * 30 * 40 / 100 / 3600)
    shared = found["cluster"]
    chosen = next(choice for choice in shared["choices"] if choice["images_per_shard"] == shared["advised"])
    assert shared["cost"] == pytest.approx(2 * 6 * chosen["hours"])
    assert found["hours"] / 6 <= chosen["hours"] <= chosen["worst_hours"] < np.inf
    calm = json.loads(call(*sized, *cluster[:6], "--json").splitlines()[-1])
    assert calm["cluster"]["cluster"]["mtbf_hours"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--price", 2), "need --nodes"),
        (("--lr-size", "0x3"), "expected ROWSxCOLUMNS"),
        (("--px-per-second", "other=3"), r"other: no such expert \(has: tiny\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(sized, arguments, message):
    with pytest.raises(Exception, match=message):
        call(*sized, *arguments)
