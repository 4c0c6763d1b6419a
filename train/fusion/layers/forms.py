"""Which form and precision the layers use on the device they run on."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def for_cpu(x: Tensor) -> bool:
    """Whether to take the forms that are faster on a CPU; other devices and compilers want few large operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def in_float32(x: Tensor) -> AbstractContextManager:
    """A block in which autocast is off, for computations that need more digits than half precision has."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def in_computed_type(x: Tensor) -> Tensor:
    """Stored numbers of half precision as they are under autocast, which turns them once, else in float32."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x if autocast else x.float()
