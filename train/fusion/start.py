"""The combination of the experts that is a network's first output, and that its phases start from."""

import torch
from torch import Tensor, nn

from championship_sr.train.fusion.config import FusionConfig


def start_weights(config: FusionConfig, n_experts: int) -> Tensor | None:
    """The buffer (E,) that keeps the fitted weights with the network's own; equal until they are fitted.

    None with another start.
    """
    return torch.full((n_experts,), 1 / n_experts) if config.start == "fitted" else None


def has_start(network: nn.Module) -> bool:
    """Whether the network starts from a combination of the experts; a custom network need not."""
    return start_of(network) is not None


def start_of(network: nn.Module) -> Tensor | None:
    """The weights (E,) of the combination that the network departs from; None where it departs from none."""
    weights = getattr(network, "start_weights", None)
    return weights if isinstance(weights, Tensor) else None


def start_from(network: nn.Module, weights: Tensor) -> None:
    """Makes the untrained network return the experts' images combined by these weights (E,) of sum 1."""
    network.get_buffer("start_weights").copy_(weights)
