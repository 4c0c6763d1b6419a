"""Work on single pixels; on a CPU, some pixels at a time, so that intermediate results stay in the cache."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CPU_PIXELS = 512  # intermediate results are then small enough for memory that was just freed


def in_pieces(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), whose rows (pixels, the first dimension) do not depend on each other.

    For a CPU. The backward pass runs the function again, a piece at a time, and only its inputs are kept for that.
    """
    pieces = zip(*(tensor.split(CPU_PIXELS) for tensor in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*piece) for piece in pieces])
    # nothing in the network is random
    parts = [checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.cat(parts)
