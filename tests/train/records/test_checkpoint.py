"""Checkpoints are whole or not there, the right ones are kept, and everything comes back."""

import random
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.train.config import CheckpointConfig, OptimiserConfig
from championship_sr.train.records.checkpoint import Checkpoint, checkpoints, choose, load_weights, prune, restore, save
from championship_sr.train.run.step import build_optimiser


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network after one step, with a convolution in channels_last and a parameter that is a single number."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.PReLU(1), nn.BatchNorm2d(4))
    network.scalar = nn.Parameter(torch.tensor(0.5))
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    advance(network, optimiser)
    return network, optimiser


def advance(network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    (network(torch.randn(2, 3, 8, 8)) * network.scalar).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


def saved(run, step: int, psnr: float | None = None) -> Checkpoint:
    network, optimiser = trained()
    return save(run, step, scored=network, network=network, optimiser=optimiser, psnr=psnr, extra={"best": 1.5})


def test_everything_comes_back_and_the_next_step_is_the_same(tmp_path):
    network, optimiser = trained()
    scored = nn.Linear(2, 2)
    checkpoint = save(
        tmp_path, 1, scored=scored, network=network, optimiser=optimiser, psnr=30.0, extra={"scaler": {"scale": 2.0}}
    )
    draws = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())
    advance(network, optimiser)
    other, other_optimiser = trained(seed=1)
    other_scored = nn.Linear(2, 2)
    _, extra = restore(checkpoint.path, scored=other_scored, network=other, optimiser=other_optimiser)
    assert extra == {"scaler": {"scale": 2.0}} and torch.equal(scored.weight, other_scored.weight)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == draws
    restore(checkpoint.path, scored=other_scored, network=other, optimiser=other_optimiser)
    torch.rand(2)
    advance(other, other_optimiser)
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("kind", get_args(get_type_hints(OptimiserConfig)["kind"]))
def test_an_optimisers_state_comes_back_as_what_it_was(kind, tmp_path):
    pytest.importorskip("timm")

    def stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(1))
        optimiser = build_optimiser(network, OptimiserConfig(kind=kind))
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimiser.step()
        return network, optimiser

    (network, optimiser), (other, restored) = stepped(), stepped()
    checkpoint = save(tmp_path, 1, scored=network, network=network, optimiser=optimiser, psnr=30.0, extra={})
    restore(checkpoint.path, scored=other, network=other, optimiser=restored)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        before, after = optimiser.state[one], restored.state[two]
        assert {key: type(value) for key, value in before.items()} == {key: type(value) for key, value in after.items()}
        assert all(torch.equal(torch.as_tensor(before[key]), torch.as_tensor(after[key])) for key in before)


def test_the_best_the_last_and_milestones_are_kept(tmp_path):
    psnrs = {1: 31.0, 2: 35.0, 3: None, 4: 33.0, 5: 30.0, 6: 29.0, 7: 28.0}
    for step, psnr in psnrs.items():
        saved(tmp_path, step, psnr)
    prune(tmp_path, CheckpointConfig(best=2, last=1), milestones=[3])
    assert [each.step for each in checkpoints(tmp_path)] == [2, 3, 4, 7]


def test_best_is_the_highest_psnr_and_the_earliest_of_equal_ones(tmp_path):
    for step, psnr in ((1, 31.0), (2, 35.0), (3, 35.0), (4, None)):
        saved(tmp_path, step, psnr)
    assert choose(tmp_path, "best").step == 2
    assert choose(tmp_path, "last").step == 4
    assert choose(tmp_path, 3).step == 3
    with pytest.raises(StoreError, match=r"no checkpoint of step 9 \(has: 1, 2, 3, 4\)"):
        choose(tmp_path, 9)


def test_of_a_run_that_was_never_validated_the_last_is_best(tmp_path):
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    assert choose(tmp_path, "best").step == 2


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    with pytest.raises(StoreError, match="contains no checkpoint"):
        choose(tmp_path, "best")


def test_a_half_written_checkpoint_is_invisible_and_removed(tmp_path):
    saved(tmp_path, 1)
    torn = tmp_path / "checkpoints" / "step-00000002.tmp"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    assert [each.step for each in checkpoints(tmp_path)] == [1]
    prune(tmp_path, CheckpointConfig(), milestones=[])
    assert not torn.exists()


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("championship_sr.train.records.checkpoint.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        saved(tmp_path, 2)
    assert [each.step for each in checkpoints(tmp_path)] == [1]


def test_weights_of_another_network_and_damaged_ones_are_told(tmp_path):
    file = saved(tmp_path, 1).path / "weights.safetensors"
    with pytest.raises(WeightsError, match=r"its weights do not fit the network.*Missing key"):
        load_weights(nn.Linear(2, 2), file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(trained()[0], file)
    file.unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_weights(trained()[0], file)
