"""Phase 6: how hard each pixel is, which experts are trusted there, and how much that counts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import (
    Pointwise,
    blend,
    conv3,
    joined,
    layers_of,
    resize,
    shuffle,
    zero,
)
from championship_sr.train.fusion.layers.forms import for_cpu
from championship_sr.train.fusion.layers.newcomers import Newcomers

THRESHOLD = 0.7, -0.5  # the document: threshold = 0.7 - 0.5 difficulty
BLEND = 0.3, 0.4  # the document: the gates count for 0.3 + 0.4 difficulty
TEMPERATURE = 10.0
LEAST_GATES = 0.3  # gates that add up to less leave the rest to the experts' mean
START_RAW = 0.45  # the threshold at difficulty 0.5: every gate starts half open


class Selection(nn.Module):
    """The image of phase 5 blended with the gated experts; also difficulty (B, 1, H, W) and gates (B, E, H, W).

    Where phase 5 gives the experts' weights (B, E, H, W) instead, and no images, they are blended in the same way.

    guide      channels of the hierarchy's features that the two networks see beside the LR image
    subpixels  values a side of an LR pixel: 1 = at LR, brought to HR bilinearly
    """

    def __init__(
        self,
        n_experts: int,
        channels: int,
        *,
        guide: int = 0,
        subpixels: int = 1,
        neutral: bool = True,
        newcomers: Newcomers,
    ) -> None:
        super().__init__()
        self.newcomers = newcomers
        self.difficulty = _trunk(3 + guide, channels, conv3(channels, subpixels**2))
        self.gates = _trunk(3 + guide, channels, Pointwise(channels, n_experts * subpixels**2))
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.guided = guide > 0
        self.subpixels = subpixels
        if neutral:
            zero(self.difficulty[-1])
            zero(self.gates[-1], START_RAW)

    def forward(self, fused: Tensor, images: Tensor | None, lr: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = torch.cat([lr, guide], dim=1) if self.guided else lr
        one_by_one = for_cpu(seen)
        decided = (self.difficulty(seen), self.gates(seen)) if one_by_one else self._across(seen)
        difficulty, raw = (shuffle(x, self.subpixels).float() for x in decided)
        difficulty = torch.sigmoid(difficulty)
        gates = self.normalised(raw, difficulty)
        difficulty, gates = (resize(x, fused.shape[-2:]) for x in (difficulty, gates))
        weights = self.newcomers.completed(gates)
        if any(self.newcomers.late):
            weights = self.newcomers.with_own(weights, resize(raw, fused.shape[-2:]))
        share = BLEND[0] + BLEND[1] * difficulty
        gated = weights if images is None else blend(images, weights)
        return torch.lerp(fused, gated, share), difficulty, gates

    def _across(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What both networks make of this, their hidden layers as groups of channels."""
        trunks = [layers_of(nn.Conv2d, trunk) for trunk in (self.difficulty, self.gates)]
        x = F.relu(F.conv2d(seen, *joined([trunk[0] for trunk in trunks]), padding=1))
        x = F.relu(F.conv2d(x, *joined([trunk[1] for trunk in trunks]), padding=1, groups=len(trunks)))
        difficulty, gates = x.chunk(2, dim=1)
        return self.difficulty[-1](difficulty), self.gates[-1](gates)

    def normalised(self, raw: Tensor, difficulty: Tensor) -> Tensor:
        """Gates that add up to 1, or to less where no expert passes its threshold."""
        above = torch.add(raw, difficulty, alpha=-THRESHOLD[1]) - THRESHOLD[0]
        gates = torch.sigmoid(self.temperature * above)
        gates = gates * ~self.newcomers.is_late if any(self.newcomers.late) else gates
        return gates / F.threshold(gates.sum(1, keepdim=True), LEAST_GATES, LEAST_GATES)


def _trunk(inputs: int, channels: int, leave: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv3(inputs, channels), nn.ReLU(), conv3(channels, channels), nn.ReLU(), leave)
