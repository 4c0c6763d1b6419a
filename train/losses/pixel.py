"""Differences of pixels: L1 and its smooth form."""

from torch import Tensor, nn

CHARBONNIER_EPSILON = 1e-6  # the value of the reference document, for images in 0..1


class L1(nn.Module):
    """Mean absolute difference."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return (sr - hr).abs().mean()


class Charbonnier(nn.Module):
    """Mean of sqrt(x^2 + epsilon^2), which is L1 with a gradient at zero.

    source  Charbonnier et al. 1994, "Two deterministic half-quadratic regularization algorithms"
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return ((sr - hr).square() + CHARBONNIER_EPSILON**2).sqrt().mean()
