"""Experts added to a network that was trained without them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from championship_sr.store.errors import ConfigError
from championship_sr.train.fusion.layers.blocks import blend
from championship_sr.train.fusion.layers.forms import in_float32


class Newcomers(nn.Module):
    """Which experts joined later, and how the weights of the others make room for them; nothing here is learned.

    A newcomer's weight is a layer's output, 0 at first and of either sign, while the others share a softmax: the
    network starts as it was, and the first step can move every weight.
    """

    is_late: Tensor
    anchor: Tensor
    completing: Tensor

    def __init__(self, experts: Sequence[str], joined: Sequence[str]) -> None:
        super().__init__()
        unknown = sorted(set(joined) - set(experts))
        if unknown or len(set(joined)) == len(experts):
            there = f"the experts are {', '.join(experts)}"
            raise ConfigError(
                f"fusion.joined={', '.join(joined)}: expected some of the experts but not all of them; {there}"
            )
        self.late = tuple(name in joined for name in experts)
        late = torch.tensor(self.late)
        self.register_buffer("is_late", late.view(1, -1, 1, 1), persistent=False)
        anchor = (~late).float() / (~late).sum()
        self.register_buffer("anchor", anchor, persistent=False)  # the weights of a mean
        self.register_buffer("completing", torch.eye(len(late)) - anchor[:, None], persistent=False)

    def mean(self, images: Tensor) -> Tensor:
        """The mean of the experts that the network began with, of images (B, E, 3, H, W)."""
        return blend(images, self.anchor.view(1, -1, 1, 1)) if any(self.late) else images.mean(1)

    def softmax(self, logits: Tensor) -> Tensor:
        """Weights (B, E, H, W) of sum 1, float32."""
        if not any(self.late):
            return torch.softmax(logits, dim=1, dtype=torch.float32)
        weights = torch.softmax(logits.masked_fill(self.is_late, -torch.inf), dim=1, dtype=torch.float32)
        return self.with_own(weights, logits.float())

    def completed(self, weights: Tensor) -> Tensor:
        """Weights (B, E, H, W) of sum 1: these, and what they lack in the parts of a mean; one product."""
        lacking = self.completing.expand(len(weights), -1, -1)
        with in_float32(weights):
            return torch.baddbmm(self.anchor.view(1, -1, 1), lacking, weights.flatten(2)).view_as(weights)

    def with_own(self, weights: Tensor, own: Tensor) -> Tensor:
        """The weights of the others, reduced by the sum of the newcomers' weights."""
        own = own * self.is_late
        return weights * (1 - own.sum(1, keepdim=True)) + own
