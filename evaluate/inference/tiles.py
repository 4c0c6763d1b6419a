"""Tiles of a large image that fade into each other.

Two rules cut an axis. The fusion takes tiles of even sizes and reads a halo around each; a diffusion model takes tiles
of the full size that it was trained on, with a least overlap. Extraction's tiles (`extract.experts.tiling.spans`) are
the third rule: they keep their inner parts and do not fade, as stored arrays must not depend on neighbouring tiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor


@dataclass(frozen=True)
class FadedTiling:
    """How an image is cut, in LR pixels: tiles of at most `tile_px`, read with a halo, faded over `blend_px`."""

    tile_px: int
    halo_px: int
    blend_px: int


@dataclass(frozen=True)
class FadedSpan:
    """One tile along one axis: what is read, and how much of each output pixel of it counts."""

    start: int  # units of the input
    stop: int
    kept: int  # units, without the halo or overlap
    weight: Tensor  # (output pixels a unit * (stop - start),)


def even_spans(length: int, scale: int, tiling: FadedTiling) -> list[FadedSpan]:
    """As few tiles of even sizes as `tile_px` allows, each with its halo; weights add up to 1 at every pixel."""
    count = -(-length // tiling.tile_px)
    edges = [round(i * length / count) for i in range(count + 1)]
    places = [(max(0, first - tiling.halo_px), min(length, last + tiling.halo_px)) for first, last in pairwise(edges)]
    return _faded(places, edges, tiling.blend_px, scale)


def full_spans(length: int, tile: int, overlap: int, unit_out: int) -> list[FadedSpan]:
    """The fewest tiles of the full size that overlap by at least `overlap`; weights add up to 1 at every pixel.

    Neighbours fade into each other around the middle of what they share, over half of `overlap`: where a tile sees its
    own border it does not count. An axis shorter than a tile is one tile.
    """
    if length <= tile:
        return [FadedSpan(0, length, length, torch.ones(length * unit_out))]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    edges = [0, *((left + tile + right) / 2 for left, right in pairwise(starts)), length]
    return _faded([(start, start + tile) for start in starts], edges, overlap / 2, unit_out)


def _faded(places: list[tuple[int, int]], edges: Sequence[float], width: float, unit_out: int) -> list[FadedSpan]:
    """The tiles at these places, each rising and falling over `width` around the edges between them."""
    result = []
    for i, (start, stop) in enumerate(places):
        place = (torch.arange(start * unit_out, stop * unit_out) + 0.5) / unit_out
        weight = torch.ones_like(place)
        if i > 0:
            weight = weight * _risen(place - edges[i], width)
        if i + 1 < len(places):
            weight = weight * (1 - _risen(place - edges[i + 1], width))
        result.append(FadedSpan(start, stop, round(edges[i + 1] - edges[i]), weight))
    return result


def _risen(distance: Tensor, width: float) -> Tensor:
    return (distance / width + 0.5).clamp(0, 1) if width else (distance >= 0).float()


def run_in_full_tiles(
    function: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, unit_in: int, unit_out: int
) -> Tensor:
    """The result of `function` on the image, in fp32 on its device; an image of one tile is passed whole.

    function       (B, C, a * unit_in, b * unit_in) -> (B, C', a * unit_out, b * unit_out)
    image          (B, C, h, w), multiples of unit_in
    tile, overlap  in units
    """
    rows, cols = (full_spans(length // unit_in, tile, overlap, unit_out) for length in image.shape[-2:])
    if len(rows) == len(cols) == 1:
        return function(image).to(image.device, torch.float32)
    whole = torch.empty(0)
    for ys, xs in product(rows, cols):
        part = function(image[..., _place(ys, unit_in), _place(xs, unit_in)]).to(image.device, torch.float32)
        if not whole.numel():  # the first part determines the number of channels
            height, width = (length // unit_in * unit_out for length in image.shape[-2:])
            whole = part.new_zeros(*part.shape[:2], height, width)
        weight = (ys.weight[:, None] * xs.weight).to(image.device)
        whole[..., _place(ys, unit_out), _place(xs, unit_out)] += part * weight
    return whole


def _place(span: FadedSpan, unit: int) -> slice:
    return slice(span.start * unit, span.stop * unit)
