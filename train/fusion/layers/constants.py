"""Tensors that only depend on sizes: made once, and kept on the device that uses them."""

from collections.abc import Callable
from functools import lru_cache, update_wrapper

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes as outside_tracing

KEPT = 32  # results of each function: sizes of images, and devices


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make`, called once for the same arguments; in a compiled graph its tensor is a constant too.

    make  takes numbers and names, and at last the device of its tensor; a forward asks for it once at most
    """

    @lru_cache(maxsize=KEPT)
    def kept(*arguments: object) -> Tensor:
        # whatever the caller's mode: training must be able to use it, and a tracer would leave it without contents
        with torch.inference_mode(False), outside_tracing():
            return make(*arguments)

    def made(*arguments: object) -> Tensor:
        return kept(*arguments)

    update_wrapper(made, make)
    # the compiler looks through the cache of `kept`, and tells constants apart by the names of their functions
    made.__code__ = made.__code__.replace(co_name=make.__name__)
    return torch.compiler.assume_constant_result(made)
