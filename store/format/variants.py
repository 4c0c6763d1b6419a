"""The eight variants of an image: turned by quarters and mirrored."""

from typing import Any

import numpy as np

from championship_sr.store.errors import ConfigError

VARIANTS = ("identity", "mirror", "rot90", "rot180", "rot270", "mirror_rot90", "mirror_rot180", "mirror_rot270")


def variant_size(size: tuple[int, int], variant: str) -> tuple[int, int]:
    """Rows and columns of an image of this size after the variant."""
    return size[::-1] if _quarter_turns(variant) % 2 else size


def transform(array: Any, variant: str, axes: tuple[int, int] = (0, 1)) -> Any:
    """The array mirrored (left to right), then turned counter-clockwise; numpy or torch, a view where possible.

    axes  the two spatial axes, rows first
    """
    rows, columns = axes
    if variant.startswith("mirror"):
        array = _flip(array, columns)
    turns = _quarter_turns(variant)
    if turns == 1:
        return _flip(array, columns).swapaxes(rows, columns)
    if turns == 2:
        return _flip(_flip(array, rows), columns)
    if turns == 3:
        return _flip(array.swapaxes(rows, columns), columns)
    return array


def inverse(variant: str) -> str:
    """The variant that undoes this one; a mirrored one undoes itself."""
    return {"rot90": "rot270", "rot270": "rot90"}.get(variant, variant)


def window_before(window: tuple[int, int, int, int], variant: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The window (y, x, rows, columns) of the untransformed image whose transform is this window of the variant.

    size  rows and columns of the untransformed image
    """
    y, x, rows, cols = window
    height, width = variant_size(size, variant)
    for _ in range(-_quarter_turns(variant) % 4):  # turn the window further, counter-clockwise, up to a full turn
        y, x, rows, cols, height, width = width - x - cols, y, cols, rows, width, height
    if variant.startswith("mirror"):
        x = width - x - cols
    return y, x, rows, cols


def _quarter_turns(variant: str) -> int:
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    return int(variant.partition("rot")[2] or 0) // 90


def _flip(array: Any, axis: int) -> Any:
    return np.flip(array, axis) if isinstance(array, np.ndarray) else array.flip(axis)
