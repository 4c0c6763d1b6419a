"""Tiles of a large image, and how they fade into each other."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How an image is cut, in LR pixels: tiles of at most `tile_px`, read with a halo, faded over `blend_px`."""

    tile_px: int
    halo_px: int
    blend_px: int


@dataclass(frozen=True)
class Span:
    """One tile along one axis: what is read, and how much of each HR pixel of it counts."""

    start: int  # LR pixels
    stop: int
    kept: int  # LR pixels, without the halo
    weight: Tensor  # (scale * (stop - start),)


def spans(length: int, scale: int, tiling: Tiling) -> list[Span]:
    """The tiles along an axis; their weights add up to 1 at every HR pixel."""
    count = -(-length // tiling.tile_px)
    edges = [round(i * length / count) for i in range(count + 1)]
    result = []
    for first, last in pairwise(edges):
        start, stop = max(0, first - tiling.halo_px), min(length, last + tiling.halo_px)
        place = (torch.arange(start * scale, stop * scale) + 0.5) / scale
        weight = torch.ones_like(place)
        if first > 0:
            weight = weight * _risen(place, first, tiling.blend_px)
        if last < length:
            weight = weight * (1 - _risen(place, last, tiling.blend_px))
        result.append(Span(start, stop, last - first, weight))
    return result


def _risen(place: Tensor, edge: int, width: int) -> Tensor:
    return ((place - edge) / width + 0.5).clamp(0, 1) if width else (place >= edge).float()
