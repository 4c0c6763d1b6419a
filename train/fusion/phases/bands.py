"""Phase 3: the nine bands attend to each other at each pixel, then to their surroundings."""

import torch
from torch import Tensor, nn

from championship_sr.train.fusion.layers.attention import PixelAttention
from championship_sr.train.fusion.layers.blocks import first, last, linear, padded, shuffle, unshuffle
from championship_sr.train.fusion.layers.forms import for_cpu
from championship_sr.train.fusion.layers.large_kernel import LKABlock
from championship_sr.train.fusion.layers.recomputed import in_pieces
from championship_sr.train.fusion.phases.frequency import N_BANDS


class CrossBand(nn.Module):
    """Bands (B, 9, 3, h, w) to the same, each with what the others and its surroundings add to it.

    factor   side in pixels of what is attended as one: 2 sees twice as far at a quarter of the cost
    """

    def __init__(self, dim: int, heads: int, expansion: int, *, factor: int = 1, plain: bool = False) -> None:
        super().__init__()
        width = 3 * factor**2 * N_BANDS
        self.factor = factor
        self.project = nn.Conv2d(width, dim * N_BANDS, 1, groups=N_BANDS)
        self.attention = PixelAttention(dim, heads, plain=plain)
        self.gates = nn.Parameter(torch.zeros(N_BANDS))
        self.surroundings = LKABlock(dim, expansion)
        self.back = nn.Conv2d(dim * N_BANDS, width, 1, groups=N_BANDS)
        self.plain = plain

    def forward(self, bands: Tensor) -> Tensor:
        rows, cols = bands.shape[-2:]
        flat = padded(bands.flatten(1, 2), self.factor)
        flat = shuffle(self.crossed(flat if self.plain else unshuffle(flat, self.factor)), self.factor)
        return flat[..., :rows, :cols].unflatten(1, bands.shape[1:3])

    def crossed(self, flat: Tensor) -> Tensor:
        """The same on all bands side by side."""
        if self.plain:
            tokens = self.attended(last(self.project(flat)).unflatten(-1, (N_BANDS, -1)))
            return flat + self.back(first(self.surroundings(tokens).flatten(-2)))
        if not for_cpu(flat):
            return self._across(flat)
        pixels = last(flat).flatten(0, -2)
        tokens = self._enter(pixels)
        around = self.surroundings.around(tokens.unflatten(0, last(flat).shape[:-1])).flatten(0, 2)
        pixels = in_pieces(self._leave, pixels, tokens, around)
        return first(pixels.unflatten(0, last(flat).shape[:-1]))

    def _across(self, flat: Tensor) -> Tensor:
        """The same in few large operations: the bands lie one after the other."""
        pixels = last(flat).unflatten(-1, (N_BANDS, -1)).flatten(0, 2)  # (P, 9, C)
        tokens = _each(self.project, pixels.transpose(0, 1)).unflatten(1, last(flat).shape[:-1])
        share = torch.softmax(self.gates, dim=0).view(-1, *[1] * 4)
        tokens = self.surroundings.across(tokens + share * self.attention.across(tokens))
        pixels = pixels + _each(self.back, tokens.flatten(1, 3)).transpose(0, 1)
        return first(pixels.flatten(1).unflatten(0, last(flat).shape[:-1]))

    def attended(self, tokens: Tensor) -> Tensor:
        """The tokens (..., 9, C) of each pixel and what they tell each other."""
        return tokens + torch.softmax(self.gates, dim=0)[:, None] * self.attention(tokens)

    def _enter(self, pixels: Tensor) -> Tensor:
        return self.attended(_grouped(self.project, pixels).unflatten(-1, (N_BANDS, -1)))

    def _leave(self, pixels: Tensor, tokens: Tensor, around: Tensor) -> Tensor:
        return pixels + _grouped(self.back, self.surroundings.mix(tokens, around).flatten(-2))


def _each(conv: nn.Conv2d, bands: Tensor) -> Tensor:
    """Each band's own 1x1 convolution, of bands (9, P, C)."""
    assert conv.bias is not None
    weight = conv.weight.view(N_BANDS, -1, bands.shape[-1]).transpose(1, 2)
    return torch.baddbmm(conv.bias.view(N_BANDS, 1, -1), bands, weight)


def _grouped(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Each band's own 1x1 convolution; as one matrix product, whose zeros cost less than nine calls."""
    weight = torch.block_diag(*conv.weight[:, :, 0, 0].unflatten(0, (N_BANDS, -1)))
    return linear(pixels, weight, conv.bias)
