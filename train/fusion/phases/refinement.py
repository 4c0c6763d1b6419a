"""Phase 7: a deep residual, then sharper edges by a Laplacian pyramid."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import (
    Join,
    ResidualBlock,
    conv3,
    extended,
    gelu_conv,
    joined,
    layers_of,
    shuffle,
    unshuffle,
    zero,
)
from championship_sr.train.fusion.layers.constants import constant
from championship_sr.train.fusion.layers.forms import for_cpu, in_float32
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
        first, *others = layers_of(nn.Conv2d, self.convs)
        x = first(x)
        for conv in others:
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
        return views.moved(fused, gelu_conv(x, self.leave), RESIDUAL_SCALE)


class Edges(nn.Module):
    """Phase 7b: image + 0.15 x the sum of its three refined Laplacians.

    subpixels   1: the refining convolutions run at HR; scale: at LR, on the channels of whole LR pixels
    """

    def __init__(self, channels: int, *, subpixels: int = 1, plain: bool = False, neutral: bool = True) -> None:
        super().__init__()
        width = 3 * subpixels**2
        levels = [
            nn.Sequential(
                conv3(width, channels), nn.ReLU(), conv3(channels, channels), nn.ReLU(), conv3(channels, width)
            )
            for _ in range(LEVELS)
        ]
        self.levels = nn.ModuleList(levels)
        # the document adds each Laplacian itself too: sharpening that the mean of experts does not want at the start
        self.skip = nn.Parameter(torch.full((LEVELS,), 0.0 if neutral else 1.0))
        self.subpixels = subpixels
        self.gain = Views.GAIN if subpixels > 1 else 1.0
        self.plain = plain
        if neutral:
            for level in levels:
                zero(level[-1])

    def forward(self, image: Tensor) -> Tensor:
        edges = laplacians(image, self.gain, plain=self.plain)
        one_by_one = self.plain or for_cpu(image)
        refined = self._one_by_one(edges) if one_by_one else self._across(edges)
        total = (refined + edges * self.skip.view(-1, 1, 1, 1)).sum(1)
        return torch.add(image, total, alpha=EDGE_STRENGTH / self.gain)

    def _one_by_one(self, edges: Tensor) -> Tensor:
        refined = [self._refined(level, x) for level, x in zip(self.levels, edges.unbind(1), strict=True)]
        return torch.stack(refined, dim=1)

    def _refined(self, level: nn.Module, edges: Tensor) -> Tensor:
        if self.plain:
            return level(edges)
        return shuffle(level(unshuffle(edges, self.subpixels)), self.subpixels)

    def _across(self, edges: Tensor) -> Tensor:
        """The same with the levels as groups of channels."""
        x = unshuffle(edges.flatten(1, 2), self.subpixels)
        for layers in zip(*self.levels, strict=True):
            is_conv = isinstance(layers[0], nn.Conv2d)
            x = F.conv2d(x, *joined(layers), padding=1, groups=LEVELS) if is_conv else F.relu(x)
        return shuffle(x, self.subpixels).view_as(edges)


def laplacians(image: Tensor, gain: float = 1.0, *, plain: bool = False) -> Tensor:
    """Each level minus its blur, the next level being that blur, times `gain`: three images, (B, 3, C, H, W)."""
    blur = blurring(image, plain=plain)
    levels = [image]
    for _ in range(LEVELS):
        levels.append(blur(levels[-1]))
    stacked = torch.stack(levels, dim=1).flatten(2)
    with in_float32(image):
        subtracting = neighbours(gain, image.device).to(image.dtype).expand(len(image), -1, -1)
        return torch.bmm(subtracting, stacked).unflatten(-1, image.shape[1:])


def blurring(image: Tensor, *, plain: bool = False) -> Callable[[Tensor], Tensor]:
    """What puts such images under a 5 x 5 Gaussian of sigma 1, edges repeated, in their own precision.

    On a CPU sums of shifts: convolving 3 channels is slow there.
    """
    if for_cpu(image) and not plain:
        return lambda x: _blurred_along(_blurred_along(_framed(x), -1), -2)
    channels = image.shape[1]
    kernel = bell(channels, image.device).to(image.dtype)

    def convolved(x: Tensor) -> Tensor:
        with in_float32(x):  # half precision would leave an image of 8 bits
            return F.conv2d(_framed(x), kernel, groups=channels)

    return convolved


def _framed(image: Tensor) -> Tensor:
    reach = BLUR_TAPS // 2, BLUR_TAPS // 2
    return extended(image, reach, reach)


@constant
def neighbours(gain: float, device: torch.device) -> Tensor:
    """What takes from each level the next one, times `gain`: (3, 4)."""
    return gain * (torch.eye(LEVELS, LEVELS + 1, device=device) - torch.eye(LEVELS + 1, device=device)[1:])


@constant
def bell(channels: int, device: torch.device) -> Tensor:
    """The Gaussian as the kernel of a depthwise convolution."""
    line = torch.tensor(BLUR, device=device)
    return torch.outer(line, line).expand(channels, 1, -1, -1).contiguous()


def _blurred_along(x: Tensor, dim: int) -> Tensor:
    size = x.shape[dim] - BLUR_TAPS + 1
    shifted = [tap * x.narrow(dim, at, size) for at, tap in enumerate(BLUR)]
    return sum(shifted[1:], shifted[0])
