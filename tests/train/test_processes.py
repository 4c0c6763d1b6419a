"""The mean over processes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from championship_sr.train.processes import World
from championship_sr.train.run.loop import arithmetic, train
from championship_sr.train.run.sources import whole_batch


def test_one_process_changes_nothing():
    value = torch.tensor([1.0, 2.0])
    World(torch.device("cpu")).mean([value])
    assert value.tolist() == [1.0, 2.0] and World(torch.device("cpu")).gather("x") == ["x"]


def test_the_mean_keeps_each_tensors_shape_and_memory_format(monkeypatch):
    # what the other process adds: the same numbers times 3
    monkeypatch.setattr(dist, "all_reduce", lambda joined: joined.mul_(4))
    tensors = [torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last), torch.tensor(5.0)]
    expected = [tensor * 2 for tensor in tensors]
    World(torch.device("cpu"), 0, 2).mean(tensors)
    for found, wanted in zip(tensors, expected, strict=True):
        assert torch.equal(found, wanted) and found.stride() == wanted.stride()


def test_a_batch_size_for_each_process_grows_with_their_number(make_config):
    config = make_config(data={"batch_per_process": 3, "accumulation": 3})
    whole = replace(config, data=whole_batch(config.data, processes=4))
    assert whole.data.batch_size == 12 and whole_batch(make_config().data, 4).batch_size == 2
    assert arithmetic(whole, 4).startswith(
        "a step has 12 windows: processes x micro-batches x windows = 4 x 3 x 1; the learning rate is 0.001 at its peak"
    )


def test_processes_wait_for_hours_in_any_run_and_for_days_where_experts_are_run_first(make_config, monkeypatch):
    asked = []

    def world(device, timeout):
        asked.append(timeout.total_seconds() / 3600)
        raise InterruptedError

    monkeypatch.setattr("championship_sr.train.run.loop.world", world)
    for validation in ({}, {"hr": ["photos"], "hold_out": 0}):
        with pytest.raises(InterruptedError):
            train(make_config(validation=validation), "store", Path("run"))
    assert 1 <= asked[0] <= 12 and asked[1] >= 72
