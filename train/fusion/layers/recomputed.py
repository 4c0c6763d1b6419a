"""Work on each pixel alone, done some pixels at a time: what lies in between stays in the cache and is not kept."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

CPU_PIXELS = 512  # what lies in between is then small enough to be made in memory that was just freed


def in_pieces(
    function: Callable[..., Tensor], tensors: Iterable[Tensor], modules: Iterable[nn.Module | nn.Parameter]
) -> Tensor:
    """function(*tensors), whose rows (pixels, the first dimension) do not depend on each other.

    The backward pass runs the function again, a piece at a time, and only its inputs are kept for that.

    modules  everything whose parameters the function uses
    """
    tensors = tuple(tensors)
    if torch.compiler.is_exporting():
        return function(*tensors)
    rows = CPU_PIXELS if tensors[0].device.type == "cpu" else tensors[0].shape[0]
    parameters = [p for m in modules for p in ([m] if isinstance(m, nn.Parameter) else m.parameters())]
    return _InPieces.apply(function, rows, len(tensors), *tensors, *parameters)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Callable[..., Tensor], rows: int, n_tensors: int, *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        ctx.function, ctx.rows, ctx.n_tensors = function, rows, n_tensors
        device = arguments[0].device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        detached = tuple(tensor.detach() for tensor in arguments[:n_tensors])
        return torch.cat([function(*piece) for piece in _split(detached, rows)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        tensors, parameters = arguments[: ctx.n_tensors], arguments[ctx.n_tensors :]
        wanted = [p for p, need in zip(parameters, needed[ctx.n_tensors :], strict=True) if need]
        sums = [torch.zeros_like(p) for p in wanted]
        pieces = []
        device, dtype, enabled = ctx.autocast
        for *inputs, part in _split((*tensors, grad), ctx.rows):
            inputs = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=False)]
            leaves = [x for x in inputs if x.requires_grad]
            with torch.enable_grad(), torch.autocast(device, dtype, enabled):
                output = ctx.function(*inputs)
            grads = torch.autograd.grad(output, [*leaves, *wanted], part)
            pieces.append(grads[: len(leaves)])
            for total, step in zip(sums, grads[len(leaves) :], strict=True):
                total += step
        found = iter([*(torch.cat(parts) for parts in zip(*pieces, strict=True)), *sums])
        return (None, None, None, *(next(found) if need else None for need in needed))


def _split(tensors: tuple[Tensor, ...], rows: int) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
