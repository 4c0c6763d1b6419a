"""Phase 7: a deep residual, then sharper edges by a Laplacian pyramid."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import Join, ResidualBlock, conv3, gelu_conv, shuffle, unshuffle, zero
from championship_sr.train.fusion.layers.views import Views

RESIDUAL_SCALE = 0.1  # the document's, for both profiles
EDGE_STRENGTH = 0.15
LEVELS = 3
BLUR_SIGMA = 1.0
BLUR_TAPS = 5
_BELL = [math.exp(-((at - BLUR_TAPS // 2) ** 2) / (2 * BLUR_SIGMA**2)) for at in range(BLUR_TAPS)]
BLUR = [value / sum(_BELL) for value in _BELL]


class Refinement(nn.Module):
    """The document's phase 7a: 3 -> C -> ... -> C -> 3 channels at HR, a tenth of it added to the image."""

    def __init__(self, channels: int, layers: int, *, plain: bool, neutral: bool) -> None:
        super().__init__()
        widths = [3, *[channels] * (layers - 1), 3]
        self.convs = nn.ModuleList(conv3(a, b) for a, b in pairwise(widths))
        self.plain = plain
        if neutral:
            zero(self.convs[-1])

    def forward(self, fused: Tensor, *_seen: object) -> Tensor:
        x = fused if self.plain else fused.contiguous(memory_format=torch.channels_last)
        x = self.convs[0](x)
        for conv in self.convs[1:]:
            x = gelu_conv(x, conv, plain=self.plain)
        return fused + RESIDUAL_SCALE * x


class SwiftRefinement(nn.Module):
    """Phase 7a at LR: sees what was fused so far and what the phases before made of it."""

    def __init__(self, inputs: list[int], channels: int, layers: int, scale: int, *, neutral: bool) -> None:
        super().__init__()
        self.enter = Join(inputs, channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range((layers - 2) // 2)))
        self.leave = conv3(channels, 3 * scale**2)
        if neutral:
            zero(self.leave)

    def forward(self, fused: Tensor, views: Views, *seen: Tensor) -> Tensor:
        x = self.blocks(self.enter(views.of(fused - views.mean), views.detail, *seen))
        return fused + RESIDUAL_SCALE * views.image(gelu_conv(x, self.leave))


class Edges(nn.Module):
    """Phase 7b: image + 0.15 x the sum of its three refined Laplacians.

    subpixels   1: the refining convolutions run at HR; scale: at LR, on the channels of whole LR pixels
    """

    def __init__(self, channels: int, *, subpixels: int = 1, plain: bool = False, neutral: bool = True) -> None:
        super().__init__()
        width = 3 * subpixels**2
        self.levels = nn.ModuleList(
            nn.Sequential(
                conv3(width, channels), nn.ReLU(), conv3(channels, channels), nn.ReLU(), conv3(channels, width)
            )
            for _ in range(LEVELS)
        )
        # the document adds each Laplacian itself too: sharpening that the mean of experts does not want at the start
        self.skip = nn.Parameter(torch.full((LEVELS,), 0.0 if neutral else 1.0))
        self.subpixels = subpixels
        self.plain = plain
        if neutral:
            for level in self.levels:
                zero(level[-1])

    def forward(self, image: Tensor) -> Tensor:
        total = 0.0
        for level, skip, edges in zip(self.levels, self.skip, laplacians(image, plain=self.plain), strict=True):
            total = total + skip * edges + self._refined(level, edges)
        return image + EDGE_STRENGTH * total

    def _refined(self, level: nn.Module, edges: Tensor) -> Tensor:
        if self.subpixels == 1:
            return level(edges if self.plain else edges.contiguous(memory_format=torch.channels_last))
        return shuffle(level(unshuffle(Views.GAIN * edges, self.subpixels)), self.subpixels) / Views.GAIN


def laplacians(image: Tensor, *, plain: bool = False) -> list[Tensor]:
    """Each level minus its blur, the next level being that blur: three images of the same size."""
    levels = []
    for _ in range(LEVELS):
        blurred = blur(image, plain=plain)
        levels.append(image - blurred)
        image = blurred
    return levels


def blur(image: Tensor, *, plain: bool = False) -> Tensor:
    """The image under a 5 x 5 Gaussian of sigma 1, edges repeated; sums of shifts: convolving 3 channels is slow."""
    padded = F.pad(image, [BLUR_TAPS // 2] * 4, mode="replicate")
    if plain:
        bell = image.new_tensor(BLUR)
        channels = image.shape[1]
        return F.conv2d(padded, torch.outer(bell, bell).expand(channels, 1, -1, -1), groups=channels)
    return _blurred_along(_blurred_along(padded, -1), -2)


def _blurred_along(x: Tensor, dim: int) -> Tensor:
    size = x.shape[dim] - BLUR_TAPS + 1
    return sum(tap * x.narrow(dim, at, size) for at, tap in enumerate(BLUR))
