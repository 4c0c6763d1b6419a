"""Pieces that several phases share: layouts, resizing, and layers that keep less for backward."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.forms import for_cpu

Layer = TypeVar("Layer", bound=nn.Module)

CONVOLVED_IMAGES = 16  # from so many images on, torch convolves by oneDNN whatever the kernel


class _GeluConv(torch.autograd.Function):
    """conv(gelu(x)) that keeps x alone for backward, and makes gelu(x) again there."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, padding: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        ctx.bias_dtype = bias.dtype
        return F.conv2d(F.gelu(x), weight, bias, padding=padding)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        # autocast is off in backward: every operand takes the type that the convolution ran in
        grad_a, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, F.gelu(x).to(grad.dtype), weight.to(grad.dtype), [weight.shape[0]],
            [1, 1], ctx.padding, [1, 1], False, [0, 0], 1, [need_x, need_weight, need_bias],
        )  # fmt: skip
        return (
            torch.ops.aten.gelu_backward(grad_a.to(x.dtype), x) if need_x else None,
            grad_weight.to(weight.dtype) if need_weight else None,
            grad_bias.to(ctx.bias_dtype) if need_bias else None,
            None,
        )


def gelu_conv(x: Tensor, conv: nn.Conv2d, *, plain: bool = False) -> Tensor:
    """The convolution of gelu(x); on a CPU, unless `plain`, in half of the memory for backward."""
    if plain or not for_cpu(x) or not torch.is_grad_enabled():
        return conv(F.gelu(x))
    return _GeluConv.apply(x, conv.weight, conv.bias, list(conv.padding))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear over the last dimension, on the CPU as a 1x1 convolution.

    Products of matrices go to MKL, which does not use AMD's wide registers, and convolutions of many images to oneDNN,
    which does: twice as fast there, the same elsewhere.
    """
    n_rows = x.shape[:-1].numel()
    if not for_cpu(x) or n_rows % CONVOLVED_IMAGES:
        return F.linear(x, weight, bias)
    images = x.reshape(CONVOLVED_IMAGES, -1, 1, x.shape[-1]).movedim(-1, 1)
    return F.conv2d(images, weight[:, :, None, None], bias).movedim(1, -1).reshape(*x.shape[:-1], -1)


def pointwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer at each pixel of x (B, C, h, w), as a 1x1 convolution."""
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def joined(layers: Sequence[nn.Linear | nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """The weights and the biases of such layers, one layer after the other: for all of them as one operation."""
    biases = [layer.bias for layer in layers if layer.bias is not None]  # all have one; fewer fit no convolution
    return torch.cat([layer.weight for layer in layers]), torch.cat(biases)


def apply_each(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    """Each layer of its own x, (layers, inputs, P) to (layers, outputs, P): so weights' gradients lie as weights do."""
    weight, bias = (tensor.unflatten(0, (len(layers), -1)) for tensor in joined(layers))
    return torch.baddbmm(bias.unsqueeze(-1), weight, x)


class ResidualBlock(nn.Module):
    """x + conv(gelu(conv(x))), 3x3."""

    def __init__(self, channels: int, *, plain: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3(channels, channels)
        self.conv2 = conv3(channels, channels)
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        return x + gelu_conv(self.conv1(x), self.conv2, plain=self.plain)


class Join(nn.Module):
    """A 1x1 convolution over the channels of several tensors; on a CPU without putting them side by side in memory."""

    def __init__(self, inputs: Sequence[int], outputs: int, *, plain: bool = False) -> None:
        super().__init__()
        self.inputs = list(inputs)
        self.plain = plain
        self.linear = nn.Linear(sum(inputs), outputs)

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, C_i, h, w) each to (B, C, h, w)."""
        if self.plain or not for_cpu(parts[0]):
            return pointwise(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), self.linear)
        weights = self.linear.weight.split(self.inputs, dim=1)
        first_part, *others = (linear(last(x), w) for x, w in zip(parts, weights, strict=True))
        return first(sum(others, first_part + self.linear.bias))


class Pointwise(Join):
    """A 1x1 convolution of one tensor, as the matrix product that it is where the channels lie last."""

    def __init__(self, inputs: int, outputs: int, *, plain: bool = False) -> None:
        super().__init__([inputs], outputs, plain=plain)


def gelu_pointwise(x: Tensor, layer: Pointwise) -> Tensor:
    """The 1x1 convolution of gelu(x); on a CPU, unless it is plain, in half of the memory for backward."""
    if layer.plain or not for_cpu(x) or not torch.is_grad_enabled():
        return layer(F.gelu(x))
    return _GeluConv.apply(x, layer.linear.weight[:, :, None, None], layer.linear.bias, [0, 0])


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def layers_of(kind: type[Layer], modules: Iterable[nn.Module]) -> list[Layer]:
    """Those of the modules that are of this kind, in order."""
    return [module for module in modules if isinstance(module, kind)]


def zero(layer: nn.Module, bias: float = 0.0) -> None:
    """Make a last layer give `bias` everywhere; its first step wakes the layers before it."""
    weighted = layer.linear if isinstance(layer, Join) else layer
    nn.init.zeros_(weighted.get_parameter("weight"))
    nn.init.constant_(weighted.get_parameter("bias"), bias)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """x at another size: averaged down, or bilinearly up; the weights of each output add up to 1."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if size[0] < x.shape[-2]:
        rows, cols = size
        return F.adaptive_avg_pool2d(x, (rows, cols))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def padded(x: Tensor, multiple: int) -> Tensor:
    """x (B, C, h, w) with its last row and column repeated until both sides are multiples of this."""
    down, right = (-side % multiple for side in x.shape[-2:])
    return extended(x, (0, down), (0, right)) if down or right else x


def extended(x: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
    """x (B, C, h, w) with its outermost rows and columns repeated so often before and after it."""
    if not torch.compiler.is_compiling():
        return F.pad(x, (*cols, *rows), mode="replicate")
    # inductor (torch 2.14.1) mistakes the memory format of that operation's gradient
    for dim, (before, after) in ((-2, rows), (-1, cols)):
        x = torch.cat([x.narrow(dim, 0, 1)] * before + [x] + [x.narrow(dim, -1, 1)] * after, dim)
    return x


def last(x: Tensor) -> Tensor:
    """(..., C, h, w) as (..., h, w, C): a view that is contiguous in channels_last."""
    return x.movedim(-3, -1)


def first(x: Tensor) -> Tensor:
    """(..., h, w, C) as (..., C, h, w)."""
    return x.movedim(-1, -3)


def blend(images: Tensor, weights: Tensor) -> Tensor:
    """The sum of the images (B, E, 3, H, W) times their weights (B, E, H, W): (B, 3, H, W)."""
    return (images * weights.unsqueeze(2)).sum(1)


def unshuffle(images: Tensor, factor: int) -> Tensor:
    """(..., C, f*h, f*w) as (..., C*f*f, h, w), as F.pixel_unshuffle, in channels_last."""
    if factor == 1:
        return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    x = images.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))  # (..., C, h, f, w, f)
    return first(x.movedim((-4, -2), (-5, -4)).flatten(-3).contiguous())


def shuffle(x: Tensor, factor: int) -> Tensor:
    """(..., C*f*f, h, w) as (..., C, f*h, f*w), as F.pixel_shuffle."""
    x = last(x).unflatten(-1, (-1, factor, factor))  # (..., h, w, C, f, f)
    return x.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)
