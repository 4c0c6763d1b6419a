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
        # the tensors stay the same objects: optimisers and load_state_dict write into them
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after the update number `step`, from 0."""
        mine, theirs = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay_at(step, self.decay))
        for copied, original in self._copied:
            copied.copy_(original)
