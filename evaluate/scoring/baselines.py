"""What a fusion must beat: bicubic, each expert, their mean, fitted weights; and the oracles it cannot reach."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from championship_sr.evaluate.inference.inputs import hwc
from championship_sr.evaluate.methods import BICUBIC, CONVEX, EXPERT, MEAN, PER_PIXEL
from championship_sr.evaluate.metrics import to_tensor
from championship_sr.extract.images.bicubic import upscale
from championship_sr.extract.images.picture import eight_bit
from championship_sr.train.metrics import rgb_to_y


def images_of(
    lr: np.ndarray, hr: np.ndarray, experts: Mapping[str, Tensor], scale: int, weights: Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """Method -> image (H, W, 3) in uint8, of everything that the experts' images give without a network.

    lr, hr   (h, w, 3) and (H, W, 3) in uint8 or uint16
    experts  name -> image (3, H, W) in about 0..1
    weights  of the fitted convex combination; None leaves it out
    """
    rounded = {name: hwc(image) for name, image in experts.items()}
    images = {BICUBIC: eight_bit(upscale(lr, scale))}
    images |= {EXPERT + name: image for name, image in rounded.items()}
    images[MEAN] = hwc(torch.stack(list(experts.values())).mean(dim=0))
    if weights is not None:
        images[CONVEX] = hwc(sum(weights[name] * image for name, image in experts.items()))
    images[PER_PIXEL] = best_per_pixel(list(rounded.values()), hr)
    return images


def best_per_pixel(images: list[np.ndarray], hr: np.ndarray) -> np.ndarray:
    """The image that takes each pixel from the expert whose luma is nearest to HR's there."""
    truth = rgb_to_y(to_tensor(hr))
    errors = torch.cat([(rgb_to_y(to_tensor(image)) - truth).abs()[0] for image in images])
    choice = errors.argmin(dim=0).numpy()
    return np.take_along_axis(np.stack(images), choice[None, :, :, None], axis=0)[0]


def fit_convex(pairs: Iterable[tuple[np.ndarray, Mapping[str, Tensor]]], border: int) -> dict[str, float]:
    """Expert -> weight, at least 0 and 1 together, of the least squared luma error over the images.

    pairs   (hr (H, W, 3), experts' images (3, H, W)) of images that are not scored
    """
    gram: np.ndarray | float = 0.0
    names: list[str] = []
    for hr, experts in pairs:
        names = list(experts)
        errors = rgb_to_y(torch.stack(list(experts.values()))) - rgb_to_y(to_tensor(hr))
        height, width = hr.shape[0] - border, hr.shape[1] - border
        errors = errors[:, 0, border:height, border:width].flatten(1).numpy()
        gram = gram + errors @ errors.T / errors.shape[1]  # each image counts the same, as in the score
    if not names:
        raise ValueError("no images to fit the convex weights on")
    return dict(zip(names, minimise_on_simplex(np.asarray(gram)).tolist(), strict=True))


def minimise_on_simplex(gram: np.ndarray, steps: int = 5000) -> np.ndarray:
    """The w >= 0 with sum 1 that minimises w' gram w, by accelerated projected gradient (convex: one minimum)."""
    step = 1 / max(np.linalg.eigvalsh(gram)[-1], np.finfo(float).tiny)
    weights = ahead = np.full(len(gram), 1 / len(gram))
    for k in range(steps):
        following = project_to_simplex(ahead - step * gram @ ahead)
        ahead = following + k / (k + 3) * (following - weights)
        weights = following
    return weights


def project_to_simplex(point: np.ndarray) -> np.ndarray:
    """The nearest point with coordinates of at least 0 that add up to 1.

    source  Duchi et al. 2008, "Efficient projections onto the l1-ball", figure 1
    """
    ordered = np.sort(point)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - excess[ordered > excess][-1], 0)
