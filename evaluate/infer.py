"""Whole images through the fusion: from a store or from live experts, in tiles, one or eight times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.variants import VARIANTS, inverse, transform
from championship_sr.store.shards.reader import Store

SPATIAL = (-2, -1)
ROWS_AT_ONCE = 256
Device = torch.device | str
Progress = Callable[[int], object]  # called with the number of LR pixels that were done

# lr (1, 3, h, w) in 0..1; images (1, E, 3, H, W); features: expert -> (1, C, h, w)
Window = tuple[Tensor, Tensor, dict[str, Tensor]]


class Inputs(Protocol):
    """What the fusion reads for one image, window by window."""

    size: tuple[int, int]  # rows and columns of the LR image
    scale: int
    experts: tuple[str, ...]

    def window(self, y: int, x: int, rows: int, cols: int) -> Window: ...


class StoredInputs:
    """An image of a store, as its experts saw it in one variant."""

    def __init__(
        self, store: Store, image: int, experts: Sequence[str], variant: str = "identity", device: Device = "cpu"
    ) -> None:
        self._store, self._image, self._variant, self._device = store, image, variant, device
        lr = store.array(image, PAIRS, "lr").load()
        self._lr = transform(chw(lr), variant, SPATIAL)
        self.size = tuple(self._lr.shape[-2:])
        self.scale, self.experts = store.scale, tuple(experts)

    def window(self, y: int, x: int, rows: int, cols: int) -> Window:
        s = self.scale
        images = [self._load(name, "sr", y * s, x * s, rows * s, cols * s) for name in self.experts]
        features = {
            name: torch.cat([self._load(name, array, y, x, rows, cols) for array in self._taps(name)], dim=1)
            for name in self.experts
        }
        return self._lr[..., y : y + rows, x : x + cols].to(self._device), torch.stack(images, dim=1), features

    def _taps(self, expert: str) -> list[str]:
        return [spec.name for spec in self._store.experts[expert].arrays if spec.name != "sr"]

    def _load(self, expert: str, array: str, *window: int) -> Tensor:
        values = self._store.array(self._image, expert, array, self._variant).load(*window)
        return torch.from_numpy(values).permute(2, 0, 1)[None].to(self._device)


class LiveInputs:
    """An image whose windows the experts are run on when they are asked for; no more is kept than one window."""

    def __init__(
        self, lr: Tensor, experts: Sequence[LoadedExpert], variant: str = "identity", device: Device = "cpu"
    ) -> None:
        self._lr, self._experts, self._device = transform(lr, variant, SPATIAL), tuple(experts), device
        self.size = tuple(self._lr.shape[-2:])
        self.scale, self.experts = experts[0].scale, tuple(expert.name for expert in experts)

    def window(self, y: int, x: int, rows: int, cols: int) -> Window:
        images, features = [], {}
        for expert in self._experts:
            image, taps = self._answer(expert, y, x, rows, cols)
            images.append(image)
            features[expert.name] = torch.cat(list(taps.values()), dim=1)
        lr = self._lr[..., y : y + rows, x : x + cols].to(self._device)
        return lr, torch.stack(images, dim=1), features

    def _answer(self, expert: LoadedExpert, y: int, x: int, rows: int, cols: int) -> tuple[Tensor, dict[str, Tensor]]:
        # begun where one of the expert's attention windows begins, so that they lie as in the whole image
        up, left, s = y % expert.multiple_px, x % expert.multiple_px, self.scale
        image, taps = expert(self._lr[..., y - up : y + rows, x - left : x + cols].to(self._device))
        return image[..., up * s :, left * s :], {name: tap[..., up:, left:] for name, tap in taps.items()}


def chw(image: np.ndarray) -> Tensor:
    """(1, 3, h, w) in 0..1 of an image (h, w, 3) in uint8 or uint16."""
    values = torch.from_numpy(image.astype(np.float32) / np.iinfo(image.dtype).max)
    return values.permute(2, 0, 1)[None].contiguous()


def hwc(image: Tensor, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, 3) in uint8 or uint16, clipped and rounded, of an image (3, H, W) in about 0..1."""
    result = np.empty((*image.shape[-2:], 3), dtype)
    for first in range(0, len(result), ROWS_AT_ONCE):  # a large image does not fit into memory many times
        part = image[:, first : first + ROWS_AT_ONCE].clamp(0, 1).mul_(np.iinfo(dtype).max).round_()
        result[first : first + ROWS_AT_ONCE] = part.permute(1, 2, 0).numpy()
    return result


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


@dataclass(frozen=True)
class Result:
    """What came out of one pass: name -> image (3, H, W) in float32 on the CPU; and where the time went."""

    images: dict[str, Tensor]
    seconds: dict[str, float]  # "inputs": reading the store, or the experts; and each network


@torch.no_grad()  # not inference_mode: tensors that the network caches would spoil a later training
def run(
    inputs: Inputs,
    networks: Mapping[str, nn.Module],
    tiling: Tiling,
    *,
    keep_experts: bool,
    progress: Progress | None = None,
) -> Result:
    """The networks' outputs for a whole image, not clipped, and the experts' images with `keep_experts`.

    The memory used is that of the outputs and of one tile.
    """
    names = [*networks, *(inputs.experts if keep_experts else ())]
    height, width = (n * inputs.scale for n in inputs.size)
    images = {name: torch.zeros(3, height, width) for name in names}
    seconds = dict.fromkeys(["inputs", *networks], 0.0)
    for ys, xs in product(*(spans(n, inputs.scale, tiling) for n in inputs.size)):
        started = time.perf_counter()
        lr, sr, features = inputs.window(ys.start, xs.start, ys.stop - ys.start, xs.stop - xs.start)
        seconds["inputs"] += _elapsed(started, lr.device)
        for name, network in networks.items():
            started = time.perf_counter()
            image = network(lr, sr, features)
            seconds[name] += _elapsed(started, lr.device)
            _add(images[name], image[0], ys, xs, inputs.scale)
        for index, name in enumerate(inputs.experts if keep_experts else ()):
            _add(images[name], sr[0, index], ys, xs, inputs.scale)
        if progress:
            progress(ys.kept * xs.kept)
    return Result(images, seconds)


def _elapsed(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _add(total: Tensor, tile: Tensor, ys: Span, xs: Span, scale: int) -> None:
    weight = ys.weight[:, None] * xs.weight
    total[:, ys.start * scale : ys.stop * scale, xs.start * scale : xs.stop * scale] += tile.float().cpu() * weight


def run_ensemble(
    inputs_of: Callable[[str], Inputs],
    networks: Mapping[str, nn.Module],
    tiling: Tiling,
    *,
    keep_experts: bool,
    progress: Progress | None = None,
) -> Result:
    """The mean over the eight flips and turns of the image, each turned back (x8 self-ensemble).

    inputs_of   variant -> the inputs of the image in that variant
    """
    images: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for variant in VARIANTS:
        result = run(inputs_of(variant), networks, tiling, keep_experts=keep_experts, progress=progress)
        for name, image in result.images.items():
            turned = transform(image, inverse(variant), SPATIAL) / len(VARIANTS)
            images[name] = images[name].add_(turned) if name in images else turned.contiguous()
        for name, value in result.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return Result(images, seconds)
