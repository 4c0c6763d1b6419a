"""What is counted, on small functions whose operations can be counted by hand."""

import pytest
import torch
from torch import nn

from championship_sr.train.bench.dispatch import META, Dispatched, compiles_whole, count_step, dispatched
from championship_sr.train.bench.phases import example
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.network import build_fusion

CHANNELS = {"a": 4, "b": 6}


def test_views_and_bare_memory_are_operations_but_no_kernels():
    x = torch.ones(4, 4)
    with Dispatched() as counts:
        torch.empty(3), x.T, x.view(16), x + x, x.T.contiguous()
    assert (counts.operations, counts.kernels) == (6, 2)  # .T twice; the sum and the copy
    assert not counts.synchronisations


def test_the_backward_pass_is_counted():
    x = torch.ones(4, requires_grad=True)
    with Dispatched() as forward:
        y = (x * x).sum()
    with Dispatched() as backward:
        y.backward()
    assert forward.kernels == 2 and backward.kernels >= 3  # ones, two products, their sum


@pytest.mark.parametrize(
    ("waiting", "operator"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: float(x.sum()), "_local_scalar_dense"),
        (lambda x: torch.tensor([1.0]), "lift_fresh"),
        (lambda x: x + torch.ones(4).to(META), "_to_copy"),
        (lambda x: x.copy_(torch.ones(4)), "copy_"),
        (lambda x: x + torch.full((4,), 1.0).to(META, non_blocking=True), "_to_copy"),  # pageable all the same
    ],
)
def test_a_step_that_would_wait_is_found(waiting, operator):
    counts = dispatched(lambda: waiting(torch.ones(4, device=META)))
    assert [name.split(".")[1] for name in counts.synchronisations] == [operator]


def test_what_stays_on_the_device_does_not_wait():
    counts = dispatched(lambda: torch.full((4,), 2.0, device=META).mul_(3).clamp(max=1).to(torch.float64))
    assert counts.kernels == 4 and not counts.synchronisations


def test_channels_that_lie_last_still_do_so_after_a_convolution():
    conv, image = nn.Conv2d(3, 4, 3).to(META), torch.empty(2, 3, 8, 8, device=META)
    for x, kernels in ((image.to(memory_format=torch.channels_last), 1), (image, 2)):  # the convolution, and a copy
        with Dispatched() as counts:
            conv(x).contiguous(memory_format=torch.channels_last)
        assert counts.kernels == kernels


def test_a_profiles_step_is_counted_without_being_run():
    network, inputs = build_fusion(FusionConfig(profile="cnn"), CHANNELS, 2), example(CHANNELS, 2, batch=1, crop=8)
    counts = count_step(network, inputs)
    assert counts.operations > counts.kernels > 50
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_graph_break_is_found():
    class Broken(nn.Linear):
        def forward(self, lr, images, features):
            return super().forward(lr) * float(lr.sum().item() > 0) if lr.sum() > 0 else lr

    class Whole(nn.Linear):
        def forward(self, lr, images, features):
            return super().forward(lr)

    inputs = torch.ones(2, 3), torch.ones(2, 3), {}
    assert compiles_whole(Whole(3, 3), inputs) and not compiles_whole(Broken(3, 3), inputs)
