"""Runs a large image in overlapping tiles of one size and puts their inner parts together, without fading.

Tiles that fade into each other are evaluation's: `evaluate.inference.tiles`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SMALLEST_TILE_PX = 64


@dataclass(frozen=True)
class Tiling:
    """How a large image is cut: side and discarded border of a tile in LR pixels, and tiles in one forward."""

    tile_px: int
    halo_px: int
    batch_size: int = 1

    def halved(self) -> "Tiling | None":
        """Half of the batch, or of the tile if the batch is one; None if that would be too small."""
        if self.batch_size > 1:
            return replace(self, batch_size=self.batch_size // 2)
        half = self.tile_px // 2
        return replace(self, tile_px=half) if half >= SMALLEST_TILE_PX and half > 2 * self.halo_px else None


@dataclass(frozen=True)
class TileSpan:
    """One tile along one axis: where it lies, and the part of it that is kept."""

    start: int
    size: int
    keep_from: int
    keep_to: int


def spans(length: int, tile_px: int, halo_px: int, multiple_px: int = 1) -> list[TileSpan]:
    """The tiles along one axis: as few as cover it, of one size that is as small as possible.

    Starts and sizes are multiples of `multiple_px`, so that a tile's windows coincide with those of the whole image;
    the last tile ends with the image, and may be smaller by less than `multiple_px`. Kept parts touch and cover
    0..length; each lies at least `halo_px` inside its tile, but for the image's own borders.
    """
    whole, overlap = -(-length // multiple_px), -(-2 * halo_px // multiple_px)
    largest = max(tile_px // multiple_px, overlap + 1)
    if length <= tile_px or whole <= largest:
        return [TileSpan(0, length, 0, length)]
    n = -(-(whole - overlap) // (largest - overlap))
    size = -(-(whole - overlap) // n) + overlap
    starts = [i * (whole - size) // max(1, n - 1) * multiple_px for i in range(n)]
    size *= multiple_px
    # cut each overlap in its middle, where both tiles are equally far from their borders
    cuts = [0, *((left + size + right) // 2 for left, right in pairwise(starts)), length]
    return [TileSpan(start, min(size, length - start), cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def as_input(lr: np.ndarray) -> Tensor:
    """A stored LR image (h, w, 3) uint8 as (1, 3, h, w) in 0..1."""
    return torch.from_numpy(np.array(lr, order="C")).permute(2, 0, 1)[None].float() / 255


class Tiled(Protocol):
    """What runs on each tile: an expert or a stand-in."""

    @property
    def scale(self) -> int: ...

    @property
    def align_px(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def unchecked(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...

    def __call__(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...


def run_tiled(
    expert: Tiled, lr: Tensor, tile_px: int, halo_px: int, batch: int = 1, *, stay: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The expert's SR image and features of a whole image, on the CPU.

    lr       (1, 3, h, w), 0..1
    batch    tiles in one forward; always the same tiles together, so that the result is too
    stay     leave the result on the expert's device, neither checked nor clipped, and do not wait for it
    returns  (1, 3, scale*h, scale*w), and for each tap (1, C, h, w); channels last in memory where they were tiled
    """
    rows, cols = (spans(length, tile_px, halo_px, expert.align_px) for length in lr.shape[-2:])
    if len(rows) == len(cols) == 1:
        if stay:
            return expert.unchecked(lr)
        sr, features = expert(lr)
        return sr.cpu(), {name: tensor.cpu() for name, tensor in features.items()}
    whole: dict[str, Tensor] = {}
    size, device = lr.shape[-2:], expert.device if stay else torch.device("cpu")
    places = [(row, col) for row in rows for col in cols]
    for place, outputs in _tile_outputs(expert.unchecked if stay else expert, lr, places, batch):
        for name, tensor in outputs.items():
            factor = expert.scale if name == "sr" else 1
            if name not in whole:
                shape = size[0] * factor, size[1] * factor, tensor.shape[0]
                whole[name] = torch.empty(shape, device=device).permute(2, 0, 1)
            _paste(whole[name], tensor, place, factor)
    sr = whole.pop("sr")[None]
    return sr, {name: tensor[None] for name, tensor in whole.items()}


def is_tiled(size: tuple[int, int], tiling: Tiling, align_px: int) -> bool:
    """Whether an image of this size is cut."""
    return any(len(spans(length, tiling.tile_px, tiling.halo_px, align_px)) > 1 for length in size)


def _tile_outputs(
    run: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]],
    lr: Tensor,
    places: list[tuple[TileSpan, TileSpan]],
    batch: int,
) -> Iterator[tuple[tuple[TileSpan, TileSpan], dict[str, Tensor]]]:
    for group in _equal_groups(places, batch):
        crops = [lr[..., r.start : r.start + r.size, c.start : c.start + c.size] for r, c in group]
        sr, features = run(torch.cat(crops) if len(crops) > 1 else crops[0])
        for i, place in enumerate(group):
            yield place, {"sr": sr[i]} | {name: tensor[i] for name, tensor in features.items()}


def _equal_groups(places: list[tuple[TileSpan, TileSpan]], batch: int) -> Iterator[list[tuple[TileSpan, TileSpan]]]:
    """Runs of at most `batch` tiles of one shape."""
    for _, same in groupby(places, key=lambda place: (place[0].size, place[1].size)):
        run = list(same)
        yield from (run[first : first + batch] for first in range(0, len(run), batch))


def _paste(whole: Tensor, tile: Tensor, place: tuple[TileSpan, TileSpan], factor: int) -> None:
    inside, outside = [], []
    for span in place:
        inside.append(slice((span.keep_from - span.start) * factor, (span.keep_to - span.start) * factor))
        outside.append(slice(span.keep_from * factor, span.keep_to * factor))
    whole[:, outside[0], outside[1]] = tile[:, inside[0], inside[1]]
