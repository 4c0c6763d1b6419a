"""Differences of pixels: L1, its smooth form, and the PSNR that the results are scored by."""

import math

import torch
from torch import Tensor, nn

from championship_sr.train.metrics import BT601_STUDIO

CHARBONNIER_EPSILON = 1e-6  # the value of the reference document, for images in 0..1
FLAT_WINDOW = 1e-4  # the squared error of 40 dB


class L1(nn.Module):
    """Mean absolute difference."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return (sr - hr).abs().mean()


class LumaL1(nn.Module):
    """Mean absolute difference of luma (BT.601), by which results are scored."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return _luma(sr - hr).abs().mean()


class Charbonnier(nn.Module):
    """Mean of sqrt(x^2 + epsilon^2), which is L1 with a gradient at zero.

    source  Charbonnier et al. 1994, "Two deterministic half-quadratic regularization algorithms"
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return ((sr - hr).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


class Complement(nn.Module):
    """Mean absolute difference, of RGB and of luma, between HR and the mean of this image and those of others.

    It teaches an expert what the others lack, where the distance to HR alone teaches all of them the same: negative
    correlation learning, with the others held fixed.

    share   of the image in that mean, 1 / n for one of n experts; the value is divided by it, so that a gradient is
            as large as one of L1
    source  Liu and Yao 1999, "Ensemble learning via negative correlation"
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, sr: Tensor, hr: Tensor, others: Tensor) -> Tensor:
        difference = torch.lerp(others, sr, self.share) - hr
        return (difference.abs().mean() + _luma(difference).abs().mean()) / (2 * self.share)


class PSNR(nn.Module):
    """How far the PSNR of each window's luma lies below 40 dB, over 100 dB; flat windows beyond that hardly count.

    A window counts by the share of its error that is taken, as in the mean of PSNRs, and not by how much error it has.
    source  Chu et al. 2022, "Improving image restoration by revisiting global information aggregation" (PSNR loss)
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return (_luma(sr - hr).square().flatten(1).mean(1) / FLAT_WINDOW).log1p().mean() / math.log(10) / 10


def _luma(difference: Tensor) -> Tensor:
    """BT.601 luma of a difference of images (B, 3, H, W), without its offset."""
    red, green, blue = (share / 255 * x for share, x in zip(BT601_STUDIO, difference.unbind(1), strict=True))
    return red + green + blue
