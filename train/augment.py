"""What may be done to windows of a store: the dihedral group, Mixup and CutBlur; all else needs the experts again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from championship_sr.store.errors import ConfigError
from championship_sr.store.format.variants import VARIANTS, transform
from championship_sr.store.shards.reader import Store

if TYPE_CHECKING:
    from championship_sr.train.batch import Batch

Augment = Literal["none", "stored", "approximate"]


def variants_for(augment: Augment, store: Store, experts: Sequence[str]) -> tuple[str, ...]:
    """The variants that windows are drawn in.

    none         the image as it is
    stored       those that the store has of every expert: the experts' true answers to the transformed image
    approximate  all eight, by transforming the answers to the upright image, which no expert would give
    raises       ConfigError if no variant but the upright one is stored
    """
    if augment == "none":
        return ("identity",)
    if augment == "approximate":
        return VARIANTS
    if augment != "stored":
        raise ConfigError(f"augment={augment}: expected none, stored or approximate")
    stored = tuple(v for v in VARIANTS if all(v in store.experts[name].variants for name in experts))
    if len(stored) < 2:
        raise ConfigError(
            f"augment=stored: {store.root} has no variant that all of {', '.join(experts)} share. "
            "Run: pipeline.py extract --variants identity,mirror"
        )
    return stored


def transformed(raw: torch.Tensor, variants: Sequence[str]) -> torch.Tensor:
    """Each sample of (B, n, n, C) in its variant."""
    if all(variant == "identity" for variant in variants):
        return raw
    result = torch.empty_like(raw)
    for row, variant in enumerate(variants):
        result[row].copy_(transform(raw[row], variant))
    return result


def mixup(batch: "Batch", *, alpha: float, rng: np.random.Generator) -> "Batch":
    """Each sample blended with another of the batch, by one weight from Beta(alpha, alpha).

    Targets and inputs are blended alike. An expert's answer to a blend is not the blend of its answers: approximate.
    source  Zhang et al. 2018, "mixup", equation 1
    """
    weight = float(rng.beta(alpha, alpha))
    order = torch.from_numpy(rng.permutation(len(batch.lr))).to(batch.lr.device)

    def blend(value: torch.Tensor) -> torch.Tensor:
        return torch.lerp(value[order], value, weight)

    features = {name: blend(value) for name, value in batch.features.items()}
    blended = replace(batch, lr=blend(batch.lr), hr=blend(batch.hr), images=blend(batch.images), features=features)
    return blended


def cutblur(batch: "Batch", *, max_share: float, rng: np.random.Generator) -> "Batch":
    """Every expert's image with one box of the target in it, so that the fusion learns where nothing is to be done.

    The target stays whole. The features stay those of the image without the box.
    max_share  the box's sides are at most this share of the image's
    source     Yoo et al. 2020, "Rethinking data augmentation for image super-resolution", section 3.2
    """
    height, width = batch.hr.shape[-2:]
    rows, cols = (max(1, int(size * rng.uniform(0, max_share))) for size in (height, width))
    y, x = rng.integers(height - rows + 1), rng.integers(width - cols + 1)
    images = batch.images.clone()
    images[..., y : y + rows, x : x + cols] = batch.hr[:, None, :, y : y + rows, x : x + cols]
    return replace(batch, images=images)
