"""The exponential moving average of a network: what is scored, saved and used."""

import copy

import torch
from torch import nn


def decay_at(step: int, decay: float) -> float:
    """The decay of the update after `step` updates; below `decay` at first, so that the start is forgotten.

    source  TensorFlow's ExponentialMovingAverage with num_updates
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A copy of a network whose parameters and float buffers follow the original's slowly."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network's weights after the update number `step`, from 0."""
        averaged, current, copied = [], [], []
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(theirs)
            else:
                copied.append((mine, theirs))
        torch._foreach_lerp_(averaged, current, 1 - decay_at(step, self.decay))
        for mine, theirs in copied:
            mine.copy_(theirs)
