"""What a training step costs in each profile, and what it would cost with the experts in it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from championship_sr.extract.config import FULL_SIZE_CHANNELS
from championship_sr.extract.limits import now, peak_tflops
from championship_sr.store.config import build
from championship_sr.store.errors import ConfigError
from championship_sr.train.bench.dispatch import compiles_whole, count_step
from championship_sr.train.bench.phases import NetworkInputs, example, saved_mib
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.fusion.plain_cnn import PLAIN
from championship_sr.train.run.step import pick_precision

PROFILES = ("direct", "paper", "swift")
CPU = torch.device("cpu")
BATCHES, GPU_BATCHES = (1, 4), (16,)
STEP_OVER_FORWARD = 3  # the backward pass takes twice the operations of the forward pass
COUNTED_BATCH, COUNTED_CROP = 2, 32  # the counts are the same at any size


def bench_step(
    batches: Sequence[int] = (), crop: int = 64, *, profiles: Sequence[str] = PROFILES, rounds: int = 3,
    channels: Mapping[str, int] = FULL_SIZE_CHANNELS, scale: int = 4, experts: Callable[[Tensor], Any] | None = None,
    live: bool = True, device: torch.device = CPU, trace: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Medians for each profile and batch; profiles are interleaved, so that a busy moment affects all of them.

    batches  empty: 1 and 4, or on a GPU 16
    crop     side of a window in LR pixels
    experts  runs all experts on LR (1, 3, h, w); None: those of `channels`, with random weights
    live     measure the experts too, for `live_over_cached`: a step with them over a step without, batch 1
    device   on a GPU in training's own precision, and with the share of its throughput in one large matrix product
    trace    file for torch.profiler's trace of one step per profile, for chrome://tracing or ui.perfetto.dev
    raises   ConfigError for a profile that does not exist
    """
    if unknown := sorted(set(profiles) - {*PROFILES, *PLAIN}):
        raise ConfigError(f"bench step: no profile {', '.join(unknown)}")
    batches = batches or (BATCHES if device.type == "cpu" else GPU_BATCHES)
    networks = {profile: _built(profile, channels, scale).to(device) for profile in profiles}
    result: dict[str, Any] = {profile: {} for profile in profiles}
    peak = None if device.type == "cpu" else peak_tflops(device, pick_precision("auto", device))
    for batch in batches:
        inputs = example(channels, scale, batch=batch, crop=crop, device=device)
        times = _interleaved(networks, inputs, rounds)
        for profile, network in networks.items():
            result[profile][str(batch)] = _figures(network, inputs, times[profile], peak)
    for profile, network in networks.items():
        inputs = example(channels, scale, batch=COUNTED_BATCH, crop=COUNTED_CROP, device=device)
        result[profile] |= _dispatched(network, inputs)
    if trace:
        write_trace(trace, networks, example(channels, scale, batch=batches[0], crop=crop, device=device))
    if live:
        seconds = _seconds(
            experts or _full_size(tuple(channels), scale, device),
            example(channels, scale, batch=1, crop=crop, device=device)[0],
        )
        first = str(batches[0])
        result["live_over_cached"] = {
            profile: 1 + seconds * int(first) / result[profile][first]["seconds_step"] for profile in profiles
        }
        result["seconds_experts"] = seconds
    place: dict[str, Any] = {
        "device": str(device),
        "precision": str(pick_precision("auto", device)).removeprefix("torch."),
    }
    if peak:
        place |= {"device_name": torch.cuda.get_device_name(device), "peak_tflops": peak}
    return result | place | {"crop_lr_px": crop, "threads": torch.get_num_threads(), "rounds": rounds}


def _interleaved(
    networks: Mapping[str, nn.Module], inputs: NetworkInputs, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Profile -> seconds of the forward pass and of the step in each round."""
    times: dict[str, list[tuple[float, float]]] = {profile: [] for profile in networks}
    for turn in range(rounds + 1):
        for profile, network in networks.items():
            measured = _timed_step(network, inputs)
            if turn:  # the first is a warm-up
                times[profile].append(measured)
    return times


def _figures(
    network: nn.Module, inputs: NetworkInputs, times: Sequence[tuple[float, float]], peak: float | None
) -> dict[str, float]:
    """A network's medians and counts at one batch."""
    forward, step = (statistics.median(column) for column in zip(*times, strict=True))
    gflop = _gflop(network, inputs)
    return {
        "seconds_forward": forward,
        "seconds_step": step,
        "gflop_forward": gflop,
        **({"share_of_peak": STEP_OVER_FORWARD * gflop / 1000 / step / peak} if peak else {}),
        "saved_mib": saved_mib(network, partial(network, *inputs)),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as lines of text, each profile's time and memory over direct's where that was measured."""
    lines = ["profile  batch  forward s   step s    GFLOP  saved MiB  parameters  time and memory of direct's"]
    for profile, batches in result.items():
        if profile not in (*PROFILES, *PLAIN):
            continue
        for batch, row in _rows(batches):
            line = (
                f"{profile:<8} {batch:>5} {row['seconds_forward']:>10.3f} {row['seconds_step']:>8.3f} "
                f"{row['gflop_forward']:>8.1f} {row['saved_mib']:>10.1f} {row['parameters']:>11,}"
            )
            if "share_of_peak" in row:
                line += f"  {row['share_of_peak']:.3f} of the device's peak"
            if "direct" in result:
                whole = result["direct"][batch]
                line += "".join(f"  {row[key] / whole[key]:.3f}" for key in ("seconds_step", "saved_mib"))
            lines.append(line)
    for profile in (name for name in result if name in (*PROFILES, *PLAIN)):
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


def _dispatched(network: nn.Module, inputs: NetworkInputs) -> dict[str, Any]:
    """The operations of forward, loss and backward on a GPU, counted without one."""
    counts = count_step(network, inputs)
    return {
        "operations": counts.operations,
        "kernels": counts.kernels,
        "synchronisations": counts.synchronisations.total(),
        "compiles_whole": compiles_whole(network, inputs),
    }


def _built(profile: str, channels: Mapping[str, int], scale: int) -> nn.Module:
    torch.manual_seed(0)
    return build_fusion(build(FusionConfig, {"profile": profile}, "bench step"), channels, scale)


def _timed_step(network: nn.Module, inputs: NetworkInputs) -> tuple[float, float]:
    """Seconds of the forward pass; and of forward, L1 loss, backward and AdamW."""
    device, optimiser = inputs[0].device, torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    start = now(device)
    with training_autocast(device):
        output = network(*inputs)
    middle = now(device)
    (output.float() - inputs[1][:, 0]).abs().mean().backward()
    optimiser.step()
    end = now(device)
    optimiser.zero_grad()
    return middle - start, end - start


def training_autocast(device: torch.device) -> AbstractContextManager:
    """Training's own precision on this device."""
    dtype = pick_precision("auto", device)
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)


def write_trace(path: Path, networks: Mapping[str, nn.Module], inputs: NetworkInputs) -> None:
    """Writes one step of each network as torch.profiler sees it."""
    with torch.profiler.profile() as profiler:
        for profile, network in networks.items():
            with torch.profiler.record_function(profile):
                _timed_step(network, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))


def _gflop(network: nn.Module, inputs: NetworkInputs) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() / 1e9


def _seconds(experts: Callable[[Tensor], Any], lr: Tensor) -> float:
    """The better of two runs: they are long, and the first one also touches the weights for the first time."""
    times = []
    for _ in range(2):
        start = now(lr.device)
        experts(lr)
        times.append(now(lr.device) - start)
    return min(times)


def _full_size(names: Sequence[str], scale: int, device: torch.device) -> Callable[[Tensor], Any]:
    # train does not import extract, except where the experts themselves are asked for
    from championship_sr.extract.config import load_expert_config
    from championship_sr.extract.experts.expert import load_expert

    loaded = [load_expert(load_expert_config(name), device, scale, random_weights=True) for name in names]
    return lambda lr: [expert(lr) for expert in loaded]
