"""The mean over processes."""

import torch
import torch.distributed as dist

from championship_sr.train.run.processes import World


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
