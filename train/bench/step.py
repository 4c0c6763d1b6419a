"""What a training step costs in each profile, and what it would cost with the experts in it."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from championship_sr.store.errors import ConfigError
from championship_sr.train.bench.dispatch import compiles_whole, count_step
from championship_sr.train.bench.phases import Inputs, example, saved_mib
from championship_sr.train.fusion import FusionConfig, build_fusion

PROFILES = ("direct", "paper", "swift")
FULL_SIZE = {"hat-l": 180, "drct-l": 180, "grl-b": 180, "edsr-l": 256}
"""The published experts and the channels of their features."""
COUNTED_BATCH, COUNTED_CROP = 2, 32  # the counts are the same at any size


def bench_step(
    batches: Sequence[int] = (1, 4), crop: int = 64, *, profiles: Sequence[str] = PROFILES, rounds: int = 3,
    channels: Mapping[str, int] = FULL_SIZE, scale: int = 4, experts: Callable[[Tensor], Any] | None = None,
    live: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Medians for each profile and batch; profiles are interleaved, so that a busy moment meets all of them.

    crop     side of a window in LR pixels
    experts  runs all experts on LR (1, 3, h, w); None: those of `channels`, with random weights
    live     measure the experts too, for `live_over_cached`: a step with them over a step without, batch 1
    raises   ConfigError for a profile that does not exist
    """
    if unknown := sorted(set(profiles) - {*PROFILES, "cnn"}):
        raise ConfigError(f"bench step: no profile {', '.join(unknown)}")
    networks = {profile: _built(profile, channels, scale) for profile in profiles}
    result: dict[str, Any] = {profile: {} for profile in profiles}
    for batch in batches:
        inputs = example(channels, scale, batch=batch, crop=crop)
        times: dict[str, list[tuple[float, float]]] = {profile: [] for profile in profiles}
        for turn in range(rounds + 1):
            for profile, network in networks.items():
                measured = _timed_step(network, inputs)
                if turn:  # the first is a warm-up
                    times[profile].append(measured)
        for profile, network in networks.items():
            forward, step = (statistics.median(column) for column in zip(*times[profile], strict=True))
            result[profile][str(batch)] = {
                "seconds_forward": forward,
                "seconds_step": step,
                "gflop_forward": _gflop(network, inputs),
                "saved_mib": saved_mib(network, lambda network=network, inputs=inputs: network(*inputs)),
                "parameters": sum(p.numel() for p in network.parameters()),
            }
    for profile, network in networks.items():
        result[profile] |= _dispatched(network, example(channels, scale, batch=COUNTED_BATCH, crop=COUNTED_CROP))
    if live:
        seconds = _seconds(
            experts or _full_size(tuple(channels), scale), example(channels, scale, batch=1, crop=crop)[0]
        )
        first = str(batches[0])
        result["live_over_cached"] = {
            profile: 1 + seconds * int(first) / result[profile][first]["seconds_step"] for profile in profiles
        }
        result["seconds_experts"] = seconds
    return result | {"crop_lr_px": crop, "threads": torch.get_num_threads(), "rounds": rounds}


def table(result: Mapping[str, Any]) -> str:
    """The result as lines of text, each profile's time and memory over direct's where that was measured."""
    lines = ["profile  batch  forward s   step s    GFLOP  saved MiB  parameters  time and memory of direct's"]
    for profile, batches in result.items():
        if profile not in (*PROFILES, "cnn"):
            continue
        for batch, row in _rows(batches):
            line = (
                f"{profile:<8} {batch:>5} {row['seconds_forward']:>10.3f} {row['seconds_step']:>8.3f} "
                f"{row['gflop_forward']:>8.1f} {row['saved_mib']:>10.1f} {row['parameters']:>11,}"
            )
            if "direct" in result:
                whole = result["direct"][batch]
                line += "".join(f"  {row[key] / whole[key]:.3f}" for key in ("seconds_step", "saved_mib"))
            lines.append(line)
    for profile in (name for name in result if name in (*PROFILES, "cnn")):
        lines.append(_counts_line(profile, result[profile]))
    if "live_over_cached" in result:
        ratios = ", ".join(f"{profile} {ratio:.1f}" for profile, ratio in result["live_over_cached"].items())
        lines.append(f"live over cached step: {ratios} (experts {result['seconds_experts']:.2f} s)")
    return "\n".join(lines)


def _rows(profile: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """The figures of each batch size, without the counts that all have in common."""
    return [(key, row) for key, row in profile.items() if isinstance(row, dict)]


def _counts_line(profile: str, counts: Mapping[str, Any]) -> str:
    return (
        f"{profile:<8} a step on a GPU dispatches {counts['operations']} operations, {counts['kernels']} of them "
        f"kernels, and waits {counts['synchronisations']} times; torch.compile takes it "
        + ("as one graph" if counts["compiles_whole"] else "in pieces")
    )


def _dispatched(network: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What forward, loss and backward hand to a GPU, counted without one."""
    counts = count_step(network, inputs)
    return {
        "operations": counts.operations,
        "kernels": counts.kernels,
        "synchronisations": counts.synchronisations.total(),
        "compiles_whole": compiles_whole(network, inputs),
    }


def _built(profile: str, channels: Mapping[str, int], scale: int) -> nn.Module:
    torch.manual_seed(0)
    return build_fusion(FusionConfig(profile=profile), channels, scale)


def _timed_step(network: nn.Module, inputs: Inputs) -> tuple[float, float]:
    """Seconds of the forward pass; and of forward, L1 loss, backward and AdamW."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6)
    start = time.perf_counter()
    output = network(*inputs)
    middle = time.perf_counter()
    (output - inputs[1][:, 0]).abs().mean().backward()
    optimiser.step()
    end = time.perf_counter()
    optimiser.zero_grad()
    return middle - start, end - start


def _gflop(network: nn.Module, inputs: Inputs) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() / 1e9


def _seconds(experts: Callable[[Tensor], Any], lr: Tensor) -> float:
    """The better of two runs: they are long, and the first one also touches the weights for the first time."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        experts(lr)
        times.append(time.perf_counter() - start)
    return min(times)


def _full_size(names: Sequence[str], scale: int) -> Callable[[Tensor], Any]:
    # train does not import extract, except where the experts themselves are asked for
    from championship_sr.extract.config import load_expert_config
    from championship_sr.extract.experts.expert import load_expert

    device = torch.device("cpu")
    loaded = [load_expert(load_expert_config(name), device, scale, random_weights=True) for name in names]
    return lambda lr: [expert(lr) for expert in loaded]
