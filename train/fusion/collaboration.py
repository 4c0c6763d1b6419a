"""Phase 4: the experts' features attend to each other; each expert's image is modulated by what comes out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.fusion.attention import PixelAttention
from train.fusion.blocks import Join, Pointwise, conv3, first, last, resize, shuffle, zero
from train.fusion.lka import LKABlock
from train.fusion.views import Views

STRENGTH = 0.2  # the document: an image is scaled by 1 + 0.2 m, 0 < m < 1
REST = 0.5  # with `start: mean`, the modulation that changes nothing
LEAST_RMS = 1e-3


class Collaboration(nn.Module):
    """What the experts agree on, (B, C, h, w), and each expert's modulation m, (B, E, H, W).

    channels       feature channels of each expert, in order
    with_images    each expert's image joins its features, as channels of LR pixels
    subpixels      modulation values a side of an LR pixel: 1 = at LR, brought to HR bilinearly
    plain          the modulation on all channels at HR, as the document puts it
    """

    def __init__(
        self, channels: Mapping[str, int], dim: int, heads: int, expansion: int,
        *, with_images: bool = False, scale: int = 1, subpixels: int = 1, plain: bool = False, neutral: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        beside = [1, 3 * scale**2] if with_images else [1]
        self.project = nn.ModuleDict({name: Join([c, *beside], dim) for name, c in channels.items()})
        self.attention = PixelAttention(dim, heads, plain=plain)
        self.consensus = conv3(dim, dim)
        self.surroundings = LKABlock(dim, expansion, plain=plain)
        self.modulate = nn.ModuleDict({name: Pointwise(dim, subpixels**2) for name in channels})
        self.subpixels = subpixels
        self.with_images = with_images
        self.plain = plain
        if neutral:
            for layer in self.modulate.values():
                zero(layer)

    def forward(
        self, features: Mapping[str, Tensor], views: Views | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        tokens = self.tokens(features, views.per_expert if self.with_images else None)
        tokens = tokens + self.attention(tokens)
        mean = first(tokens.mean(-2))
        consensus = mean + self.consensus(mean)
        consensus = first(self.surroundings(last(consensus).unsqueeze(-2)).squeeze(-2))
        each = (first(token) + consensus for token in tokens.unbind(-2))
        maps = [self._map(layer, x, size) for layer, x in zip(self.modulate.values(), each, strict=True)]
        return consensus, torch.sigmoid(torch.cat(maps, dim=1))

    def tokens(self, features: Mapping[str, Tensor], images: Tensor | None) -> Tensor:
        """One token an expert: (B, h, w, E, C)."""
        tokens = []
        for index, (name, layer) in enumerate(self.project.items()):
            parts = [*scaled(features[name]), *([] if images is None else [images[:, index]])]
            tokens.append(last(layer(*parts)))
        return torch.stack(tokens, dim=-2)

    def _map(self, layer: Pointwise, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.plain:
            return layer(resize(x, size))
        return resize(shuffle(layer(x), self.subpixels), size)


def modulated(modulation: Tensor, rest: float) -> Tensor:
    """What the experts' images are multiplied by; 1 at rest."""
    return 1 + STRENGTH * (modulation - rest)


def scaled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features of unit variance at each pixel, and the logarithm of what they were divided by, one channel.

    Experts differ a thousandfold in the size of their features: some work on 0..255.
    """
    rms = features.square().mean(dim=1, keepdim=True).sqrt() + LEAST_RMS
    return features / rms, rms.log()
