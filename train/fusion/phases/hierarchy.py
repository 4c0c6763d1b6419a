"""Phase 5: the experts' images are fused at three resolutions, each refining the one before, guided by the bands."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import (
    Join,
    Pointwise,
    ResidualBlock,
    blend,
    conv3,
    gelu_conv,
    gelu_pointwise,
    joined,
    resize,
    shuffle,
    zero,
)
from championship_sr.train.fusion.layers.forms import for_cpu
from championship_sr.train.fusion.layers.newcomers import Newcomers
from championship_sr.train.fusion.layers.views import Views
from championship_sr.train.fusion.phases.frequency import N_BANDS, TIERS

SHARE = 0.7  # the document: 70 % hierarchical, 30 % frequency-guided
ROUTING = 3 * (N_BANDS + len(TIERS))
"""Channels of all bands and the guidance bands together."""


def resolutions(scale: int) -> tuple[int, int, int]:
    """Three sides of a stage's image in LR sides: 1, 2, 4 at scale 4."""
    return 1, round(scale**0.5), scale


class SpatialGate(nn.Module):
    """Where a stage refines: (B, 1, h, w) in 0..1."""

    def __init__(self, channels: int, *, plain: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3(channels, max(4, channels // 4))
        self.conv2 = conv3(max(4, channels // 4), 1)
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(gelu_conv(self.conv1(x), self.conv2, plain=self.plain))


class Stage(nn.Module):
    """One resolution of the document's hierarchy: images in, an RGB refinement out."""

    def __init__(self, inputs: int, channels: int, guide: int, *, plain: bool, neutral: bool) -> None:
        super().__init__()
        self.enter = conv3(inputs, channels)
        self.guide = Pointwise(guide, channels, plain=plain) if guide else None
        self.block = ResidualBlock(channels, plain=plain)
        self.gate = SpatialGate(channels, plain=plain)
        self.leave = conv3(channels, 3)
        if neutral:
            zero(self.leave)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        x = self.enter(x)
        x = self.block(x if self.guide is None else x + self.guide(guide))
        return self.gate(x) * self.leave(x)


class Hierarchy(nn.Module):
    """The document's phase 5: RGB refinements at each resolution, frequency-guided weights at HR.

    anchored   the stages refine the experts' mean; else they make the image themselves
    plain      every layer at the resolution that the document names
    """

    def __init__(
        self,
        n_experts: int,
        scale: int,
        channels: int,
        guide: int,
        *,
        plain: bool,
        neutral: bool,
        newcomers: Newcomers,
    ) -> None:
        super().__init__()
        self.newcomers = newcomers
        inputs = 3 * n_experts
        self.factors = resolutions(scale)
        self.stages = nn.ModuleList(
            Stage(inputs + 3 * bool(i), channels, 0 if i else guide, plain=plain, neutral=neutral) for i in range(3)
        )
        self.routing1 = Pointwise(ROUTING, channels // 2, plain=plain)
        self.routing2 = Pointwise(channels // 2, n_experts, plain=plain)
        if neutral:
            zero(self.routing2)
        self.anchored = neutral
        self.plain = plain

    def forward(self, images: Tensor, consensus: Tensor, routing: Tensor, _views: Views) -> tuple[Tensor, Tensor]:
        guided = blend(images, self.newcomers.softmax(self.frequency_logits(routing, images.shape[-2:])))
        hierarchical = self.refinements(images, consensus)
        if self.anchored:
            hierarchical = hierarchical + self.newcomers.mean(images)
        return SHARE * hierarchical + (1 - SHARE) * guided, consensus

    def refinements(self, images: Tensor, consensus: Tensor) -> Tensor:
        """The sum of the three stages' refinements, at HR."""
        rows, cols = consensus.shape[-2:]
        flat = images.flatten(1, 2)
        (factor, stage), *later = zip(self.factors, self.stages, strict=True)
        out = self._refinement(stage, resize(flat, (factor * rows, factor * cols)), consensus)
        for factor, stage in later:
            x = resize(flat, (factor * rows, factor * cols))
            out = resize(out, x.shape[-2:])
            out = out + self._refinement(stage, torch.cat([x, out], dim=1), consensus)
        return out

    def _refinement(self, stage: nn.Module, x: Tensor, consensus: Tensor) -> Tensor:
        return stage(x if self.plain else x.contiguous(memory_format=torch.channels_last), consensus)

    def frequency_logits(self, routing: Tensor, size: Sequence[int]) -> Tensor:
        # a pointwise layer and bilinear interpolation commute
        x = self.routing1(resize(routing, size)) if self.plain else resize(self.routing1(routing), size)
        return gelu_pointwise(x, self.routing2)


class SwiftStage(nn.Module):
    """One resolution of the hierarchy, kept at LR: features in, features and weights of the experts out."""

    def __init__(self, inputs: list[int], channels: int, n_experts: int, factor: int, *, neutral: bool) -> None:
        super().__init__()
        self.enter = Join(inputs, channels)
        self.block1 = conv3(channels, channels)
        self.block2 = conv3(channels, channels)
        self.gate = SpatialGate(channels)
        self.leave = Pointwise(channels, n_experts * factor**2)
        self.factor = factor
        if neutral:
            zero(self.leave)

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        x = self.enter(*parts)
        x = x + (self.gate(x) * gelu_conv(self.block1(x), self.block2) if for_cpu(x) else self._across(x))
        return x, shuffle(self.leave(x), self.factor)

    def _across(self, x: Tensor) -> Tensor:
        """The gated block, its first layer and that of the gate as one."""
        hidden = F.gelu(F.conv2d(x, *joined([self.block1, self.gate.conv1]), padding=1))
        block, gate = hidden.split([self.block1.out_channels, self.gate.conv1.out_channels], dim=1)
        return torch.sigmoid(self.gate.conv2(gate)) * self.block2(block)


class SwiftHierarchy(nn.Module):
    """Phase 5 at LR: each stage sees the experts' differences at its resolution as channels of LR pixels.

    A stage's weights refine those of the stage before, as the document's stages refine images.
    """

    def __init__(
        self, n_experts: int, scale: int, channels: int, guide: int, *, neutral: bool, newcomers: Newcomers
    ) -> None:
        super().__init__()
        self.newcomers = newcomers
        self.factors = resolutions(scale)
        seen = [3 * n_experts * factor**2 for factor in self.factors]
        inputs = [seen[0], guide], [seen[1], channels], [seen[2], channels, 3 * scale**2, ROUTING]
        self.stages = nn.ModuleList(
            SwiftStage(i, channels, n_experts, factor, neutral=neutral)
            for i, factor in zip(inputs, self.factors, strict=True)
        )
        self.routing1 = Pointwise(ROUTING, channels)
        self.routing2 = Pointwise(channels, n_experts * scale**2)
        if neutral:
            zero(self.routing2)

    def forward(self, _images: None, consensus: Tensor, routing: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """The experts' weights (B, E, H, W), and the features of the last stage."""
        coarse, middle = (views.at(factor) for factor in self.factors[:2])
        x, logits = self.stages[0](coarse, consensus)
        x, step = self.stages[1](middle, x)
        logits = resize(logits, step.shape[-2:]) + step
        x, step = self.stages[2](views.stacked, x, views.detail, routing)
        logits = resize(logits, step.shape[-2:]) + step
        guided = shuffle(gelu_pointwise(self.routing1(routing), self.routing2), self.factors[-1])
        return torch.lerp(self.newcomers.softmax(guided), self.newcomers.softmax(logits), SHARE), x
