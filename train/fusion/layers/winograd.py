"""conv(gelu(x)) on the CPU with half of the multiplications: four rows of output from six products of rows.

Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", F(4, 3); here down the columns of an
image only, where what is summed are whole rows. Each product is a 1 x 3 convolution along them.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4  # rows of output that are made together
REACH = TILE + 2  # rows of input that they see

# a line for each product: of the rows seen, the sum that goes in; of the rows made, where it is added; of the
# kernel's three rows, the sum that it is convolved with
TO_SUM = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
TO_MADE = (
    (1, 0, 0, 0),
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 2, 4, 8),
    (1, -2, 4, -8),
    (0, 0, 0, 1),
)
TO_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)

BLOCK = 4096  # pixels of a sum that are made at a time, to stay in the cache
LEAST_CHANNELS = 128  # with fewer, the sums cost more than the products save


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `GeluConv` is exact enough and was measured to be faster than a convolution, for x (B, C, h, w)."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[-2:] == (3, 3)
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
    )


class GeluConv(torch.autograd.Function):
    """conv(gelu(x)), 3 x 3 with a padding of 1, that keeps x alone for backward; nearly everything is channels_last."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        x, kernels = _lines(x), _kernels(weight)
        batch, height, width, _ = x.shape
        out = bias.expand(batch, _tiled(height), width, -1).contiguous()
        for images, first, last, workspace in _blocks(x):
            seen = _by_tile(_gelu_lines(x[images], first - 1, last + 1, workspace), REACH)
            made = _by_tile(out[images, first:last], TILE)
            for kernel, to_sum, to_made in zip(kernels, TO_SUM, TO_MADE, strict=True):
                _add(_conv(_sum(to_sum, seen), kernel), to_made, made)
        return out[:, :height].movedim(-1, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        x, grad, kernels = _lines(x), _lines(grad), _kernels(weight)
        batch, height, width, channels = x.shape
        grad_x = x.new_zeros(batch, _tiled(height) + 2, width, channels)  # with the padding's, above and below
        grad_kernels = torch.zeros_like(kernels)
        for images, first, last, workspace in _blocks(x):
            seen = _by_tile(_gelu_lines(x[images], first - 1, last + 1, workspace), REACH)
            given = _by_tile(F.pad(grad[images, first:last], (0, 0, 0, 0, 0, max(0, last - height))), TILE)
            grad_seen = _by_tile(grad_x[images, first : last + 2], REACH)
            for kernel, grad_kernel, to_sum, to_made in zip(kernels, grad_kernels, TO_SUM, TO_MADE, strict=True):
                back, more = _conv_backward(_sum(to_made, given), _sum(to_sum, seen), kernel)
                _add(back, to_sum, grad_seen)
                grad_kernel += more
        grad_x = grad_x[:, 1 : height + 1]
        for into, image in zip(grad_x, x, strict=True):
            torch.ops.aten.gelu_backward.grad_input(into, image, grad_input=into)
        return grad_x.movedim(-1, 1), _transformed("ka,koib->oiab", grad_kernels.squeeze(-2)), grad.sum((0, 1, 2))


def _tiled(rows: int) -> int:
    """The rows of as many tiles as cover these."""
    return -(-rows // TILE) * TILE


def _lines(x: Tensor) -> Tensor:
    """(B, h, w, C), each image whole in memory."""
    x = x.movedim(1, -1)
    return x if x[0].is_contiguous() else x.contiguous()


def _transformed(equation: str, weight: Tensor) -> Tensor:
    return torch.einsum(equation, weight.new_tensor(TO_KERNEL), weight)


def _kernels(weight: Tensor) -> Tensor:
    """The kernel of each product, (6, O, I, 1, 3)."""
    return _transformed("ka,oiab->koib", weight).unsqueeze(-2).contiguous()


def _blocks(x: Tensor) -> Iterator[tuple[slice, int, int, Tensor]]:
    """Images, first and last row of whole tiles, `BLOCK` pixels of a sum at a time; and room for what they see."""
    batch, height, width, channels = x.shape
    rows = min(_tiled(height), TILE * max(1, BLOCK // width))
    images = min(batch, max(1, BLOCK // (_tiled(height) // TILE * width)))
    workspace = x.new_empty(images, rows + 2, width, channels)
    for image in range(0, batch, images):
        for first in range(0, height, rows):
            yield slice(image, image + images), first, min(first + rows, _tiled(height)), workspace


def _gelu_lines(x: Tensor, first: int, last: int, out: Tensor) -> Tensor:
    """gelu of the rows of x (B, h, w, C), zeros where there are none, in `out`."""
    out = out[: x.shape[0], : last - first]
    above, inside = max(0, -first), x[:, max(0, first) : last]
    out[:, :above] = 0
    out[:, above + inside.shape[1] :] = 0
    for image, lines in zip(inside, out, strict=True):  # gelu fills nothing but a contiguous `out`
        torch.ops.aten.gelu.out(image, out=lines[above : above + image.shape[0]])
    return out


def _by_tile(rows: Tensor, reach: int) -> list[Tensor]:
    """The first, second, ... row of `reach` that each tile has to do with: (B, tiles, w, C) each."""
    tiles = rows.shape[1] // TILE
    return [rows[:, at::TILE][:, :tiles] for at in range(reach)]


def _sum(factors: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    one, *others = sorted(((f, row) for f, row in zip(factors, rows, strict=True) if f), key=lambda pair: pair[0] != 1)
    if not others:
        return one[1].contiguous()
    total = torch.add(one[1], others[0][1], alpha=others[0][0])  # every line has a factor of 1
    for factor, row in others[1:]:
        total.add_(row, alpha=factor)
    return total


def _add(product: Tensor, factors: Sequence[float], rows: Sequence[Tensor]) -> None:
    for factor, row in zip(factors, rows, strict=True):
        if factor:
            row.add_(product, alpha=factor)


def _conv(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x.movedim(-1, 1), kernel, padding=(0, 1)).movedim(1, -1)


def _conv_backward(grad: Tensor, x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad.movedim(-1, 1), x.movedim(-1, 1), kernel, None,
        [1, 1], [0, 1], [1, 1], False, [0, 0], 1, [True, True, False],
    )  # fmt: skip
    return grad_x.movedim(1, -1), grad_kernel
