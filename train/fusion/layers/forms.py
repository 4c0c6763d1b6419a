"""What the layers ask of the place that they run on: which form to take, constants that lie there, and float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps

import torch
from torch import Tensor

KEPT = 32  # results of each function of constants that are kept: sizes of images, and devices


def for_cpu(x: Tensor) -> bool:
    """Whether to take the forms that are faster on a CPU; other devices and compilers want few large operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def in_float32(x: Tensor) -> AbstractContextManager:
    """A block in which autocast is off, for what half precision has too few digits for."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make`, called once for the same arguments; in a compiled graph its tensor is a constant too.

    make  takes numbers and at last the device that its tensor is to lie on; a forward asks for it once at most
    """

    @lru_cache(maxsize=KEPT)
    def kept(*arguments: object) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # training must be able to use it, whoever asks first
            return make(*arguments)

    @wraps(make)
    def made(*arguments: object) -> Tensor:
        return kept(*arguments)

    # the compiler looks through the cache of `kept`, and tells constants apart by the names of their functions
    made.__code__ = made.__code__.replace(co_name=make.__name__)
    return torch.compiler.assume_constant_result(made)
