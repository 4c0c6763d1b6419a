"""A function of an image run over overlapping tiles, for models that the whole image doesn't fit into."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One tile along one axis: where it begins, in units, and how much each of its output pixels counts."""

    start: int
    size: int
    weight: Tensor  # (size * unit_out,)


def spans(length: int, tile: int, overlap: int, unit_out: int) -> list[Span]:
    """The tiles along an axis, as few as overlap by `overlap` or more; their weights add up to 1 at every pixel.

    All have the full size, the one that the model was trained on, unless the axis is shorter. Neighbours fade into
    each other around the middle of what they share, over half of `overlap`: where a tile sees its own border it
    doesn't count.
    """
    if length <= tile:
        return [Span(0, length, torch.ones(length * unit_out))]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    seams = [(left + tile + right) / 2 for left, right in pairwise(starts)]
    result = []
    for i, start in enumerate(starts):
        place = start + (torch.arange(tile * unit_out) + 0.5) / unit_out
        weight = torch.ones_like(place)
        if i > 0:
            weight = weight * _risen(place - seams[i - 1], overlap / 2)
        if i < len(seams):
            weight = weight * (1 - _risen(place - seams[i], overlap / 2))
        result.append(Span(start, tile, weight))
    return result


def _risen(distance: Tensor, width: float) -> Tensor:
    return (distance / width + 0.5).clamp(0, 1) if width else (distance >= 0).float()


def run_tiled(
    function: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, unit_in: int, unit_out: int
) -> Tensor:
    """What `function` makes of the image, in fp32 where the image lies; an image of one tile is passed whole.

    function       (B, C, a * unit_in, b * unit_in) -> (B, C', a * unit_out, b * unit_out)
    image          (B, C, h, w), multiples of unit_in
    tile, overlap  in units
    """
    rows, cols = (spans(length // unit_in, tile, overlap, unit_out) for length in image.shape[-2:])
    if len(rows) == len(cols) == 1:
        return function(image).to(image.device, torch.float32)
    whole = None
    for ys, xs in product(rows, cols):
        part = function(image[..., _place(ys, unit_in), _place(xs, unit_in)]).to(image.device, torch.float32)
        if whole is None:
            height, width = (length // unit_in * unit_out for length in image.shape[-2:])
            whole = part.new_zeros(*part.shape[:2], height, width)
        weight = (ys.weight[:, None] * xs.weight).to(image.device)
        whole[..., _place(ys, unit_out), _place(xs, unit_out)] += part * weight
    return whole


def _place(span: Span, unit: int) -> slice:
    return slice(span.start * unit, (span.start + span.size) * unit)
