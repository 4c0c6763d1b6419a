"""Whole images through the fusion: from a store or from live experts, in tiles, one or eight times."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from championship_sr.evaluate.inference.inputs import SPATIAL, Inputs
from championship_sr.evaluate.inference.tiles import FadedSpan, FadedTiling, even_spans
from championship_sr.extract.device import float32_products
from championship_sr.extract.experts.tiling import SMALLEST_TILE_PX
from championship_sr.extract.limits import now
from championship_sr.store.format.variants import VARIANTS, inverse, transform
from championship_sr.train.data.uploads import to_device

log = logging.getLogger(__name__)

PixelsDone = Callable[[int], object]  # called with the number of LR pixels that were done


@dataclass(frozen=True)
class PassOutputs:
    """The outputs of one pass, name -> image (3, H, W) in float32 on the CPU, and where the time went."""

    images: dict[str, Tensor]
    seconds: dict[str, float]  # "inputs": reading the store, or the experts; and each network


@float32_products()
@torch.no_grad()  # not inference_mode: tensors that the network caches would spoil a later training
def run(
    inputs: Inputs,
    networks: Mapping[str, nn.Module],
    tiling: FadedTiling,
    *,
    keep_experts: bool,
    progress: PixelsDone | None = None,
) -> PassOutputs:
    """The networks' outputs for a whole image, not clipped, and the experts' images with `keep_experts`.

    It uses memory for the outputs and one tile, on the device until all tiles are done.
    """
    height, width = (n * inputs.scale for n in inputs.size)
    images: dict[str, Tensor] = {}

    def add(name: str, tile: Tensor, ys: FadedSpan, xs: FadedSpan) -> None:
        if name not in images:  # a network may return further channels
            images[name] = torch.zeros(len(tile), height, width, device=tile.device)
        _add(images[name], tile, ys, xs, inputs.scale)

    seconds = dict.fromkeys(["inputs", *networks], 0.0)
    for ys, xs in product(*(even_spans(n, inputs.scale, tiling) for n in inputs.size)):
        started = time.perf_counter()
        lr, sr, features = inputs.window(ys.start, xs.start, ys.stop - ys.start, xs.stop - xs.start)
        seconds["inputs"] += now(lr.device) - started
        for name, network in networks.items():
            started = time.perf_counter()
            image = network(lr, sr, features)
            seconds[name] += now(lr.device) - started
            add(name, image[0], ys, xs)
        for index, name in enumerate(inputs.experts if keep_experts else ()):
            add(name, sr[0, index], ys, xs)
        if progress:
            progress(ys.kept * xs.kept)
    return PassOutputs({name: image.cpu() for name, image in images.items()}, seconds)


def with_fitting_tiles(
    attempt: Callable[[FadedTiling], PassOutputs], tiling: FadedTiling
) -> tuple[PassOutputs, FadedTiling]:
    """The outputs, in tiles of half the side whenever a GPU runs out of memory, and the tiling that it sufficed for."""
    while True:
        try:
            return attempt(tiling), tiling
        except torch.OutOfMemoryError:
            if tiling.tile_px <= SMALLEST_TILE_PX:
                raise
        # here, the tensors of the failed pass have been freed with the exception
        tiling = replace(tiling, tile_px=tiling.tile_px // 2)
        log.warning("out of memory; continuing with tiles of %d LR pixels", tiling.tile_px)


def _add(total: Tensor, tile: Tensor, ys: FadedSpan, xs: FadedSpan, scale: int) -> None:
    weight = to_device(ys.weight, tile.device)[:, None] * to_device(xs.weight, tile.device)
    total[:, ys.start * scale : ys.stop * scale, xs.start * scale : xs.stop * scale] += tile.float() * weight


def run_ensemble(
    inputs_of: Callable[[str], Inputs],
    networks: Mapping[str, nn.Module],
    tiling: FadedTiling,
    *,
    keep_experts: bool,
    progress: PixelsDone | None = None,
) -> PassOutputs:
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
    return PassOutputs(images, seconds)
