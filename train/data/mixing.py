"""Blends of batches: mixup and CutBlur."""

from dataclasses import replace

import numpy as np
import torch

from championship_sr.train.data.batch import Batch
from championship_sr.train.data.uploads import to_device


def mixup(batch: "Batch", *, alpha: float, rng: np.random.Generator) -> "Batch":
    """Each sample blended with another of the batch, by one weight from Beta(alpha, alpha).

    Targets and inputs are blended alike. Approximate: an expert's output for a blend is not a blend of outputs.
    source  Zhang et al. 2018, "mixup", equation 1
    """
    weight = float(rng.beta(alpha, alpha))
    order = to_device(rng.permutation(len(batch.lr)), batch.lr.device)

    def blend(value: torch.Tensor) -> torch.Tensor:
        return torch.lerp(value[order], value, weight)

    features = {name: blend(value) for name, value in batch.features.items()}
    blended = replace(batch, lr=blend(batch.lr), hr=blend(batch.hr), images=blend(batch.images), features=features)
    return blended if batch.teacher is None else replace(blended, teacher=blend(batch.teacher))


def cutblur(batch: "Batch", *, max_share: float, rng: np.random.Generator) -> "Batch":
    """Every expert's image with one box of the target in it, so that the fusion learns where to change nothing.

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
