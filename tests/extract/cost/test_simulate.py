"""The simulation against what can be computed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers

from championship_sr.extract.cost.simulate import Cluster, simulate


@settings(max_examples=50, deadline=None)
@given(shards=integers(1, 200), nodes=integers(1, 7), gpus=integers(1, 4), seconds=floats(1, 1000), fixed=floats(0, 50))
def test_without_failures_equal_shards_take_whole_rounds(shards, nodes, gpus, seconds, fixed):
    cluster = Cluster(nodes, gpus, shard_seconds=fixed)
    (outcome,) = simulate(cluster, np.full(shards, seconds), trials=1)
    assert outcome.makespan == pytest.approx(math.ceil(shards / (nodes * gpus)) * (seconds + fixed))
    assert (outcome.lost, outcome.failures) == (0, 0)


@pytest.mark.parametrize("hours", [0.05, 0.2, 1.0])
def test_failures_cost_one_gpu_what_theory_says(hours):
    """A shard of T seconds takes (1 / rate + restart) (e^(rate T) - 1) on average, failures being without memory."""
    shard, restart, rate = 200.0, 40.0, 1 / (hours * 3600)
    cluster = Cluster(mtbf_hours=hours, restart_seconds=restart)
    outcomes = simulate(cluster, np.full(50, shard), trials=400)
    expected = 50 * (1 / rate + restart) * math.expm1(rate * shard)
    assert np.mean([outcome.makespan for outcome in outcomes]) == pytest.approx(expected, rel=0.03)
    failures = 50 * math.expm1(rate * shard)
    assert np.mean([outcome.failures for outcome in outcomes]) == pytest.approx(failures, rel=0.1)
    for outcome in outcomes:  # whatever is not lost and not a restart is the work itself
        assert outcome.makespan == pytest.approx(50 * shard + outcome.lost + outcome.failures * restart)


def test_a_failing_node_loses_the_shards_of_all_its_gpus():
    cluster = Cluster(1, 8, mtbf_hours=1, restart_seconds=100)
    outcomes = simulate(cluster, np.full(400, 300.0), trials=200)
    lost = sum(outcome.lost for outcome in outcomes) / sum(outcome.failures for outcome in outcomes)
    assert lost == pytest.approx(8 * 150, rel=0.15)  # half a shard each, little beside the hour between failures


def test_small_shards_end_with_the_sum_of_all_speeds():
    cluster = Cluster(40, 2, speed_spread=0.3)
    found = [outcome.makespan for outcome in simulate(cluster, np.full(20_000, 1.0), trials=20)]
    assert np.mean(found) == pytest.approx(20_000 / 80, rel=0.03) and np.std(found) > 0


def test_one_slow_node_holds_up_large_shards_only():
    cluster = Cluster(20, 1, speed_spread=0.5)
    small, large = (np.full(n, 36_000 / n) for n in (2000, 20))
    for little, much in zip(simulate(cluster, small, trials=5), simulate(cluster, large, trials=5), strict=True):
        assert 1800 * 0.5 < little.makespan < 1800 * 1.5 < much.makespan


def test_the_seed_decides():
    cluster = Cluster(4, 2, speed_spread=0.1, mtbf_hours=2, restart_seconds=60)
    work = np.full(200, 100.0)
    assert simulate(cluster, work, trials=3) == simulate(cluster, work, trials=3)
    assert simulate(cluster, work, trials=3) != simulate(cluster, work, trials=3, seed=1)


def test_every_shard_is_made_however_often_nodes_fail():
    cluster = Cluster(3, 2, mtbf_hours=0.01, restart_seconds=5)
    work = np.random.default_rng(0).uniform(1, 30, 100)
    for outcome in simulate(cluster, work, trials=5):
        assert outcome.failures > 10
        assert outcome.makespan * cluster.gpus >= work.sum() + outcome.lost
