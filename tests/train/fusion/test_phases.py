import pytest
import torch
from torch import nn

from championship_sr.train.bench.phases import describe, measure, plain, saved_mib, table
from championship_sr.train.fusion.config import PHASES


@pytest.mark.parametrize("profile", ["swift", "paper", "direct"])
def test_phases_add_up_to_the_network(fusions, profile):
    network = fusions.build(profile)
    *phases, whole = describe(network, fusions.channels, crop=16, rounds=1)
    assert [cost.name for cost in phases] == list(PHASES)
    assert whole.parameters == sum(p.numel() for p in network.parameters())
    assert sum(cost.parameters for cost in phases) == whole.parameters - 1, "the global residual has one of its own"
    assert sum(cost.gflop_forward for cost in phases) == pytest.approx(whole.gflop_forward, rel=1e-6)
    assert all(0 < cost.seconds_forward < cost.seconds_step for cost in phases)
    assert all(p.grad is None for p in network.parameters()), "nothing stays behind"


def test_a_phase_switched_off_is_not_described(fusions):
    costs = describe(fusions.build(without=("bands", "edges")), fusions.channels, crop=8, rounds=1)
    assert {"bands", "edges"} & {cost.name for cost in costs} == set()


def test_the_rival_is_described_as_a_whole(fusions):
    assert [cost.name for cost in describe(fusions.build("cnn"), fusions.channels, crop=8, rounds=1)] == ["network"]


def test_a_convolution_costs_what_is_written_down():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 10, 12)
    cost = measure("conv", conv, lambda: conv(x), rounds=1)
    assert cost.gflop_forward == pytest.approx(2 * (2 * 10 * 12) * 6 * 4 * 9 / 1e9)
    assert cost.parameters == 6 * 4 * 9 + 6
    assert cost.saved_mib == pytest.approx(x.numel() * 4 / 2**20), "the input alone, for the gradient of the weights"


def test_saved_memory_counts_each_tensor_once():
    layer = nn.Linear(8, 8)
    x = torch.randn(1024, 8, requires_grad=True)
    assert saved_mib(layer, lambda: layer(x) + layer(x)) == pytest.approx(x.numel() * 4 / 2**20)


def test_the_table_and_the_json_hold_every_phase(fusions):
    costs = describe(fusions.build(), fusions.channels, crop=8, rounds=1)
    text = table(costs)
    assert all(cost.name in text and f"{cost.parameters:,}" in text for cost in costs)
    assert plain(costs)[0]["name"] == "frequency"
