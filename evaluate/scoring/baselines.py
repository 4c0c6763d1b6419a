"""What a fusion must beat: bicubic, each expert, their mean, fitted weights; and the oracles it cannot reach."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from championship_sr.evaluate.inference.inputs import hwc
from championship_sr.evaluate.methods import BICUBIC, EXPERT, FITTED, MEAN, PER_PIXEL
from championship_sr.evaluate.metrics import to_tensor
from championship_sr.extract.images.bicubic import upscale
from championship_sr.extract.images.picture import eight_bit
from championship_sr.train.combination import error_products
from championship_sr.train.metrics import rgb_to_y


def images_of(
    lr: np.ndarray, hr: np.ndarray, experts: Mapping[str, Tensor], scale: int, weights: Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """Method -> image (H, W, 3) in uint8, for everything that can be made from the experts' images without a network.

    lr, hr   (h, w, 3) and (H, W, 3) in uint8 or uint16
    experts  name -> image (3, H, W) in about 0..1
    weights  fitted to other images; None leaves out their row
    """
    rounded = {name: hwc(image) for name, image in experts.items()}
    images = {BICUBIC: eight_bit(upscale(lr, scale))}
    images |= {EXPERT + name: image for name, image in rounded.items()}
    images[MEAN] = hwc(torch.stack(list(experts.values())).mean(dim=0))
    if weights is not None:
        first, *others = (weights[name] * image for name, image in experts.items())
        images[FITTED] = hwc(sum(others, first))
    images[PER_PIXEL] = best_per_pixel(list(rounded.values()), hr)
    return images


def best_per_pixel(images: list[np.ndarray], hr: np.ndarray) -> np.ndarray:
    """The image that takes each pixel from the expert whose luma is nearest to HR's there."""
    truth = rgb_to_y(to_tensor(hr))
    errors = torch.cat([(rgb_to_y(to_tensor(image)) - truth).abs()[0] for image in images])
    choice = errors.argmin(dim=0).numpy()
    return np.take_along_axis(np.stack(images), choice[None, :, :, None], axis=0)[0]


def products_of(hr: np.ndarray, experts: Mapping[str, Tensor], border: int) -> np.ndarray:
    """(E, E) of one image: the mean products of the experts' luma errors, unrounded, `border` pixels cut.

    This is all that is needed to fit weights and to score any combination; see `train.combination`.
    """
    inside = (..., slice(border, hr.shape[0] - border), slice(border, hr.shape[1] - border))
    images = torch.stack([image[inside] for image in experts.values()])
    return error_products(images[None], to_tensor(hr)[inside]).numpy()
