"""Phase 3: the nine bands attend to each other at each pixel, then to their surroundings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.fusion.attention import PixelAttention
from train.fusion.blocks import first, last
from train.fusion.frequency import N_BANDS
from train.fusion.lka import LKABlock


class CrossBand(nn.Module):
    """Bands (B, 9, 3, h, w) to the same, each with what the others and its surroundings add to it."""

    def __init__(self, dim: int, heads: int, expansion: int, *, plain: bool = False) -> None:
        super().__init__()
        self.project = nn.Conv2d(3 * N_BANDS, dim * N_BANDS, 1, groups=N_BANDS)
        self.attention = PixelAttention(dim, heads, plain=plain)
        self.gates = nn.Parameter(torch.zeros(N_BANDS))
        self.surroundings = LKABlock(dim, expansion, plain=plain)
        self.plain = plain
        self.back = nn.Conv2d(dim * N_BANDS, 3 * N_BANDS, 1, groups=N_BANDS)

    def forward(self, bands: Tensor) -> Tensor:
        flat = bands.flatten(1, 2)
        if not self.plain:
            flat = flat.contiguous(memory_format=torch.channels_last)
        tokens = last(self.grouped(self.project, flat)).unflatten(-1, (N_BANDS, -1))  # (B, h, w, 9, C)
        tokens = tokens + torch.softmax(self.gates, dim=0)[:, None] * self.attention(tokens)
        tokens = self.surroundings(tokens)
        return (flat + self.grouped(self.back, first(tokens.flatten(-2)))).unflatten(1, bands.shape[1:3])

    def grouped(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Each band's own 1x1 convolution; zeros between bands cost less than nine calls."""
        if self.plain:
            return conv(x)
        weight = torch.block_diag(*conv.weight[:, :, 0, 0].unflatten(0, (N_BANDS, -1)))
        return first(F.linear(last(x), weight, conv.bias))
