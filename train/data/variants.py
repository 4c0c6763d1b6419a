"""What may be done to windows of a store: the dihedral group, Mixup and CutBlur; all else needs the experts again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from championship_sr.store.errors import ConfigError
from championship_sr.store.format.variants import VARIANTS, transform
from championship_sr.store.shards.reader import Store

if TYPE_CHECKING:
    pass

Augment = Literal["none", "stored", "approximate"]


def variants_for(augment: Augment, store: Store, experts: Sequence[str]) -> tuple[str, ...]:
    """The variants that windows are drawn in.

    none         the image as it is
    stored       those that the store has of every expert: its true outputs for the transformed image
    approximate  all eight, by transforming the outputs for the upright image, which differs from what experts give
    raises       ConfigError if only the upright variant is stored
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
