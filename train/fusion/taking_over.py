"""Transfers the weights of a trained network to one with experts added, dropped or in another order.

Weights shared by all experts are copied, weights of one expert follow its name, and new weights start at zero.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from championship_sr.store.errors import ConfigError
from championship_sr.train.fusion.network import FusionNetwork
from championship_sr.train.fusion.plain_cnn import PlainCNN

Known = FusionNetwork | PlainCNN  # networks for which it is known which weights belong to which expert
Blocks = list[tuple[str, int]]  # who owns so many neighbouring channels; "" for all experts together


def take_over(network: nn.Module, trained: nn.Module, joined: Sequence[str]) -> None:
    """Fills the network from a trained one of the same configuration; if it has all its experts, both compute the same.

    joined  experts of the new network that the trained one does not know, or knows with other features
    raises  ConfigError for a custom network with other experts
    """
    old = trained.state_dict()
    if not (isinstance(network, Known) and isinstance(trained, Known)):
        _load_same(network, old)
        return
    after, before = _blocks(network), _blocks(trained)
    state = {}
    for key, fresh in network.state_dict().items():
        if key in after:
            state[key] = _rearranged(fresh, old[key], *after[key], before[key][1], joined)
        elif key not in old or _expert_of(key) in joined:
            state[key] = torch.zeros_like(fresh)  # the layers of an expert that is new
        else:
            state[key] = _grown(fresh, old[key])
    if "start_weights" in state:
        state["start_weights"] += (1 - state["start_weights"].sum()) * network.newcomers.anchor
    network.load_state_dict(state)


def _load_same(network: nn.Module, old: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(old)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--init: a network of your own needs all weights to fit, and so the same experts: {reason}"
        ) from None


def _expert_of(key: str) -> str | None:
    """The expert whose own layer in phase 4 this tensor is of."""
    parts = key.split(".")
    return ".".join(parts[2:-1]).removesuffix(".linear") if parts[1:2] in (["project"], ["modulate"]) else None


def _grown(fresh: Tensor, old: Tensor) -> Tensor:
    """The old tensor; where experts' images join their features, or do no longer, with or without those columns."""
    if fresh.shape == old.shape:
        return old.clone()
    result, columns = torch.zeros_like(fresh), min(fresh.shape[1], old.shape[1])
    result[:, :columns] = old[:, :columns]
    return result


def _rearranged(fresh: Tensor, old: Tensor, dim: int, after: Blocks, before: Blocks, joined: Sequence[str]) -> Tensor:
    """Each block of the old tensor in its place in the new one; zeros for new experts."""
    parts: dict[str, list[Tensor]] = {}
    for (owner, _), part in zip(before, old.split([size for _, size in before], dim), strict=True):
        parts.setdefault(owner, []).append(part)
    result = torch.zeros_like(fresh)
    for (owner, _), place in zip(after, result.split([size for _, size in after], dim), strict=True):
        if owner not in joined and parts.get(owner):
            place.copy_(parts[owner].pop(0))
    return result


def _blocks(network: Known) -> dict[str, tuple[int, Blocks]]:
    """Tensor -> the dimension in which it has channels of each expert, and whose they are."""
    sizes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    places = {"start_weights": (0, 1, 0)} if "start_weights" in sizes else {}  # key -> dimension, channels, and offset
    pixel = network.scale**2
    if isinstance(network, PlainCNN):
        places |= {f"weights.{part}": (0, pixel, 0) for part in ("weight", "bias")}
        places["enter.linear.weight"] = 1, 3 * pixel, 3
    elif network.hierarchy is not None:
        places |= _of_hierarchy(network.hierarchy.factors, pixel, network.at_lr)
    if getattr(network, "selection", None) is not None:
        repeats = pixel if network.at_lr else 1
        places |= {f"selection.gates.4.linear.{part}": (0, repeats, 0) for part in ("weight", "bias")}
    result = {}
    for key, (dim, repeats, offset) in places.items():
        blocks = [("", offset)] * bool(offset) + [(name, repeats) for name in network.experts]
        rest = sizes[key][dim] - sum(size for _, size in blocks)
        result[key] = dim, [*blocks, *_rest(network, rest)]
    return result


def _of_hierarchy(factors: Sequence[int], pixel: int, at_lr: bool) -> dict[str, tuple[int, int, int]]:
    places = {f"hierarchy.routing2.linear.{part}": (0, pixel if at_lr else 1, 0) for part in ("weight", "bias")}
    for number, factor in enumerate(factors):
        stage = f"hierarchy.stages.{number}"
        if at_lr:
            places[f"{stage}.enter.linear.weight"] = 1, 3 * factor**2, 0
            places |= {f"{stage}.leave.linear.{part}": (0, factor**2, 0) for part in ("weight", "bias")}
        else:
            places[f"{stage}.enter.weight"] = 1, 3, 0
    return places


def _rest(network: Known, channels: int) -> Blocks:
    """What comes after the experts' images: of the plain CNN, features too."""
    if not channels:
        return []
    if not isinstance(network, PlainCNN):
        return [("", channels)]
    _lr, _differences, detail, *sizes = network.enter.inputs
    owners = [name for name in network.with_features for _ in ("features", "their size")]
    return [("", detail), *zip(owners, sizes, strict=True)]
