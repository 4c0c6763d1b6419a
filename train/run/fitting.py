"""The weights of the experts that a run starts from, fitted to windows of its training images."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from championship_sr.store.shards.reader import Store
from championship_sr.train.combination import all_equal, equal_experts, error_products, fit_weights
from championship_sr.train.config import DataConfig, TrainConfig
from championship_sr.train.processes import World
from championship_sr.train.run.sources import Source, make_loader

log = logging.getLogger(__name__)

WINDOWS, LIVE_WINDOWS = 256, 64  # live, each is a forward of all experts
WINDOW_PX = 64  # their side at most, LR pixels
FETCHED_SHARDS = 8  # of a store in object storage: the first step should not wait for all of it


def fit_start(source: Source, images: Sequence[int], config: TrainConfig, world: World) -> dict[str, float]:
    """Expert -> weight, summing to 1, with the least squared luma error on windows of these images.

    The same in every process, and the same again for the same configuration.
    """
    experts = tuple(source.entries)
    if len(experts) == 1:
        log.info("one expert only: the untrained fusion returns its image")
        return {experts[0]: 1.0}
    products, windows = _sampled_products(source, images, config, world)
    weights = dict(zip(experts, fit_weights(products).tolist(), strict=True))
    if world.first:
        _tell(weights, products, windows)
    return weights


def _sampled_products(
    source: Source, images: Sequence[int], config: TrainConfig, world: World
) -> tuple[np.ndarray, int]:
    """The products of the experts' errors over all processes' windows, and how many windows there were."""
    wanted = LIVE_WINDOWS if source.live else WINDOWS
    chosen = sampled_images(source.store, images, wanted, FETCHED_SHARDS if source.cache else None)
    data = sampled_windows(config.data, len(chosen), wanted)
    sample = replace(config, data=data, fusion=replace(config.fusion, features=False))
    loader = make_loader(source, chosen, sample, world)
    steps = max(1, loader.samples_per_epoch // data.batch_size)
    total = torch.zeros((), dtype=torch.float64)
    with closing(loader.batches(0, steps)) as batches:
        for batch in batches:
            if batch.check:
                batch.check()
            total = total + error_products(batch.images, batch.hr)
    parts = world.gather((total / steps).cpu().numpy())
    return np.mean(parts, axis=0), steps * data.batch_size


def sampled_images(store: Store, images: Sequence[int], count: int, shards: int | None) -> list[int]:
    """Up to `count` of the images, spread over them, from a limited number of shards."""
    if shards is not None:
        numbers = sorted({store.images[image].shard for image in images})
        kept = set(_spread(numbers, shards))
        images = [image for image in images if store.images[image].shard in kept]
    return _spread(images, count)


def sampled_windows(data: DataConfig, images: int, windows: int) -> DataConfig:
    """The sampling of a run, but with fewer, smaller and separate windows: one epoch is the sample."""
    return replace(
        data,
        crop_px=min(data.crop_px, WINDOW_PX),
        repeat_factor=min(data.repeat_factor, -(-windows // images)),
        crops_per_visit=1,
        shards_at_once=0,
        sharding="all",
    )


def _spread(items: Sequence[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _tell(weights: dict[str, float], products: np.ndarray, windows: int) -> None:
    names = list(weights)
    if all_equal(products):
        log.warning("the images of %s are identical, so they get equal weights", " and ".join(names))
        return
    for a, b in equal_experts(products):
        log.warning("the images of %s and %s are identical, so they get equal weights", names[a], names[b])
    log.info(
        "weights fitted to %d crops: %s", windows, ", ".join(f"{name} {value:.3f}" for name, value in weights.items())
    )
