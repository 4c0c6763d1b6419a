"""What the network costs: parameters, FLOPs, time and memory, phase by phase."""

import statistics
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from championship_sr.extract.limits import now
from championship_sr.train.fusion.config import PHASES
from championship_sr.train.fusion.network import FusionNetwork

NetworkInputs = tuple[Tensor, Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class PhaseCost:
    """One phase, or the whole network; seconds_step is forward and backward."""

    name: str
    parameters: int
    gflop_forward: float
    seconds_forward: float
    seconds_step: float
    saved_mib: float


def describe(
    network: nn.Module, channels: Mapping[str, int], scale: int = 4, *, crop: int = 64, batch: int = 1, rounds: int = 3
) -> list[PhaseCost]:
    """The cost of each phase alone, on its own inputs, and of the whole network, on random images.

    channels  expert -> channels of its features, as given to `build_fusion`
    """
    inputs = example(channels, scale, batch=batch, crop=crop, device=next(network.parameters()).device)
    costs = []
    if isinstance(network, FusionNetwork):
        for name, arguments in _phase_inputs(network, inputs).items():
            module = getattr(network, name)
            costs.append(measure(name, module, partial(module, *arguments), rounds))
    return [*costs, measure("network", network, lambda: network(*inputs), rounds)]


def table(costs: list[PhaseCost]) -> str:
    """The costs as lines of text."""
    lines = [f"{'phase':<14} {'parameters':>10} {'GFLOP':>8} {'forward s':>10} {'step s':>8} {'saved MiB':>10}"]
    lines += [
        f"{c.name:<14} {c.parameters:>10,} {c.gflop_forward:>8.2f} {c.seconds_forward:>10.3f} "
        f"{c.seconds_step:>8.3f} {c.saved_mib:>10.1f}"
        for c in costs
    ]
    return "\n".join(lines)


def plain(costs: list[PhaseCost]) -> list[dict[str, Any]]:
    """The costs for JSON."""
    return [asdict(cost) for cost in costs]


def example(
    channels: Mapping[str, int], scale: int, *, batch: int, crop: int, device: torch.device | str = "cpu"
) -> NetworkInputs:
    """Random inputs of a network: LR, images of the experts that differ a little, features with channels last."""
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(batch, 3, crop, crop, generator=generator)
    images = nn.functional.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False).unsqueeze(1)
    noise = torch.randn(batch, len(channels), 3, scale * crop, scale * crop, generator=generator)
    features = {
        name: torch.randn(batch, crop, crop, n, generator=generator).movedim(-1, 1).to(device)
        for name, n in channels.items()
    }
    return lr.to(device), (images + 0.02 * noise).to(device), features


def measure(name: str, module: nn.Module, call: Callable[[], Any], rounds: int) -> PhaseCost:
    """The cost of `call`, which runs `module`; times are medians."""
    with FlopCounterMode(display=False) as counter:
        call()
    saved = saved_mib(module, call)
    times = [timed_step(call, next(module.parameters()).device) for _ in range(rounds)]
    module.zero_grad()
    forward, step = (statistics.median(column) for column in zip(*times, strict=True))
    parameters = sum(p.numel() for p in module.parameters())
    return PhaseCost(name, parameters, counter.get_total_flops() / 1e9, forward, step, saved)


def timed_step(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of the forward pass, and of forward and backward together."""
    start = now(device)
    output = _first_differentiable(call())
    middle = now(device)
    output.backward(torch.ones_like(output))
    return middle - start, now(device) - start


def saved_mib(module: nn.Module, call: Callable[[], Any]) -> float:
    """Memory that autograd keeps for backward, each storage counted once, without parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()  # kept alive to the end of the block, so that no address is reused
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    del output
    return sum(size for address, size in kept.items() if address not in own) / 2**20


def _first_differentiable(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return sum(x.sum() for x in output if x.requires_grad)


def _phase_inputs(network: FusionNetwork, inputs: NetworkInputs) -> dict[str, tuple[Any, ...]]:
    """The inputs of each phase, detached from the phases before it."""
    seen: dict[str, tuple[Any, ...]] = {}
    with _each_phase(network, lambda name, arguments: seen.update({name: tuple(map(_leaf, arguments))})):
        network(*inputs)
    return {name: seen[name] for name in PHASES if name in seen and name not in network.off}


@contextmanager
def _each_phase(network: FusionNetwork, visit: Callable[[str, tuple[Any, ...]], None]):
    original, overridden = network.phase, vars(network)

    def visited(name: str, *arguments: Any) -> Any:
        visit(name, arguments)
        return original(name, *arguments)

    overridden["phase"] = visited
    try:
        yield
    finally:
        del overridden["phase"]


def _leaf(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.detach().requires_grad_(argument.requires_grad)
    return argument
