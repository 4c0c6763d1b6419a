"""Converts arrays and tensors in common forms to the batch that a network takes, and its images back."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from championship_sr.store.errors import ConfigError

TOP = {torch.uint8: 255, torch.uint16: 65535}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey of RGB
OVERSHOOT = 0.5  # of a resampled image beyond 0..1; more is another range

Back = Callable[[Tensor], Tensor]


def as_batch(given: Tensor, channels_last: bool = False) -> tuple[Tensor, Back]:
    """(B, 3, h, w) float32 in 0..1 of an image or a batch, and what makes the given form of (B, 3, H, W).

    given          (h, w), (C, h, w), (h, w, C) or a batch of them, C being 3, or 1 for grey; uint8, uint16, or
                   floating point in 0..1
    channels_last  how an ambiguous (3, w, 3) is read
    raises         ConfigError naming a shape, type or range other than these
    """
    top = TOP.get(given.dtype)
    if top is None and not given.is_floating_point():
        raise ConfigError(f"an image of {given.dtype}: expected uint8, uint16, or floating point in 0..1")
    last = _is_channels_last(given.shape, channels_last)
    image = given[..., None] if given.ndim == 2 else given
    image = image if image.ndim == 4 else image[None]
    planes = image.movedim(-1, 1) if last else image
    values = planes.to(torch.float32) / top if top else planes.float()
    if not top:
        _check_range(values)
    grey = values.shape[1] == 1

    def back(result: Tensor) -> Tensor:
        if grey:
            result = torch.einsum("bchw,c->bhw", result, result.new_tensor(LUMA))[:, None]
        if top:
            result = (result.clamp(0, 1) * top).round()
        result = (result.movedim(1, -1) if last else result).to(given.device, given.dtype)
        result = result if given.ndim == 4 else result[0]
        return result[..., 0] if given.ndim == 2 else result

    return values.expand(-1, 3, -1, -1), back


def array_back(result: Tensor, given: np.ndarray) -> np.ndarray:
    """The array of a result, of the given one's type."""
    return result.cpu().numpy().astype(given.dtype, copy=False)


def _is_channels_last(shape: Sequence[int], preferred: bool) -> bool:
    first, last = len(shape) in (3, 4) and shape[-3] in (1, 3), len(shape) in (3, 4) and shape[-1] in (1, 3)
    if len(shape) == 2:
        return True
    if not first and not last:
        raise ConfigError(
            f"an image of shape {tuple(shape)}: expected (h, w), (h, w, 3) or (3, h, w), or a batch of such images"
        )
    return last and (preferred or not first)


def _check_range(values: Tensor) -> None:
    if not values.numel() or not torch.isfinite(values).all():
        raise ConfigError("an image without pixels, or with values that are not finite")
    low, high = values.min().item(), values.max().item()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ConfigError(f"a floating-point image with values from {low:g} to {high:g}: expected 0..1")
