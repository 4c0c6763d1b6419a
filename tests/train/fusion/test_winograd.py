"""Convolutions with half of the multiplications against convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from championship_sr.train.fusion.layers import winograd
from championship_sr.train.fusion.layers.blocks import gelu_conv

SIZES = [
    (1, 5, 7, 1, 1),
    (2, 5, 7, 9, 11),
    (5, 8, 6, 8, 8),  # several images a block, the last one not full
    (40, 4, 5, 3, 7),
    (2, 3, 4, 18, 1500),  # several blocks an image
]


def relative(some, other):
    return ((some - other).norm() / other.norm()).item()


@pytest.mark.parametrize(("batch", "inputs", "outputs", "rows", "cols"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_the_convolutions(batch, inputs, outputs, rows, cols, layout):
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, rows, cols).contiguous(memory_format=layout).requires_grad_()
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    leaves = x, *conv.parameters()
    found = winograd.GeluConv.apply(*leaves)
    exact = F.conv2d(F.gelu(x.double()), *(p.double() for p in conv.parameters()), padding=1)
    assert relative(found, exact) < 1e-6
    grad = torch.randn(found.shape).contiguous(memory_format=layout)
    expected = torch.autograd.grad(exact, leaves, grad.double())
    for some, other in zip(torch.autograd.grad(found, leaves, grad), expected, strict=True):
        assert relative(some, other) < 1e-5


def test_nothing_but_the_input_is_kept_for_backward():
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        winograd.GeluConv.apply(x, conv.weight, conv.bias)
    assert kept == [x.shape, conv.weight.shape]


def test_wide_layers_take_it_and_no_others(monkeypatch):
    taken = []
    wide, narrow = (nn.Conv2d(n, n, 3, padding=1) for n in (winograd.LEAST_CHANNELS, winograd.LEAST_CHANNELS - 1))
    pointwise = nn.Conv2d(winograd.LEAST_CHANNELS, winograd.LEAST_CHANNELS, 1)
    original = winograd.GeluConv.apply
    monkeypatch.setattr(winograd.GeluConv, "apply", lambda *args: taken.append(args[1]) or original(*args))
    for conv in (wide, narrow, pointwise):
        x = torch.randn(1, conv.in_channels, 4, 4)
        assert torch.allclose(gelu_conv(x, conv), conv(F.gelu(x)), atol=1e-5)
        gelu_conv(x, conv, plain=True)
    with torch.autocast("cpu", torch.bfloat16):
        gelu_conv(torch.randn(1, wide.in_channels, 4, 4), wide)
    assert len(taken) == 1
    assert taken[0] is wide.weight
