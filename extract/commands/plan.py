"""The command `plan`."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from championship_sr.extract.commands.options import (
    Given,
    run_options,
    size_text,
    source_options,
    table,
)
from championship_sr.extract.config import ExtractConfig, chosen_experts
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from championship_sr.extract.cost.cluster import ClusterPlan
    from championship_sr.extract.cost.estimate import Plan

POSITIVE = click.FloatRange(min=0, min_open=True)


def cluster_options(command: Any) -> Any:
    """The options that describe a cluster; all but --px-per-second need --nodes or --gpus-per-node."""
    for option in (
        click.option("--seed", default=0, help="Random seed of the simulation."),
        click.option("--price", type=click.FloatRange(min=0), help="Price of one GPU hour, for the cost estimate."),
        click.option("--shard-seconds", type=click.FloatRange(min=0), default=2, show_default=True,
                     help="Seconds each shard takes besides its forward passes: opening, syncing, uploading."),
        click.option("--restart-minutes", type=click.FloatRange(min=0), default=10, show_default=True,
                     help="Minutes until a failed node is back and its shards are released."),
        click.option("--mtbf-hours", type=POSITIVE,
                     help="Mean time between failures of one node. Default: nodes never fail."),
        click.option("--speed-spread", type=click.FloatRange(0, 1), default=0.05, show_default=True,
                     help="Standard deviation of the nodes' speeds, as a fraction of the mean."),
        click.option("--px-per-second", "speeds", multiple=True, metavar="NAME=N|FILE",
                     help="An expert's speed on that machine in LR pixels per second, or a file with the output of "
                          "`bench extract --json`; repeatable."),
        click.option("--gpus-per-node", type=click.IntRange(min=1), default=1, show_default=True,
                     help="GPUs on each node."),
        click.option("--nodes", type=click.IntRange(min=1), help="Plan for a cluster of this many nodes."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@source_options
@click.option("--images", type=click.IntRange(min=1), help="Plan for this many images without reading any.")
@click.option(
    "--lr-size", default="339x510", metavar="HxW", help="Mean LR size for --images (default: that of DF2K, 339x510)."
)
@cluster_options
@run_options
def plan(
    given: Given, names, images, lr_size, nodes, gpus_per_node, speeds, speed_spread, mtbf_hours, restart_minutes,
    shard_seconds, price, seed, as_json,
):  # fmt: skip
    """Estimate what an extraction will cost: bytes for each expert and codec, free disk space and hours.

    Nothing is written. The hours come from one timed forward pass of each expert on this machine, or from
    --px-per-second. With --nodes, a cluster with slow and failing nodes is simulated for several shard sizes.
    """
    from championship_sr.extract.cost.cluster import plan_cluster
    from championship_sr.extract.cost.estimate import plan as make
    from championship_sr.extract.cost.estimate import planned_sizes
    from championship_sr.extract.cost.simulate import Cluster

    config = _config(given, images)
    sizes = [_size(lr_size)] * images if images else planned_sizes(config, chosen_experts(config, names))
    made = make(config, sizes, names, given_speeds(speeds))
    shared = None
    if nodes or gpus_per_node > 1:
        failures = mtbf_hours or math.inf
        cluster = Cluster(nodes or 1, gpus_per_node, speed_spread, failures, restart_minutes * 60, shard_seconds)
        shared = plan_cluster(made, config, sizes, cluster, price=price, seed=seed)
    elif price is not None or mtbf_hours:
        raise click.UsageError("--price and --mtbf-hours need --nodes or --gpus-per-node")
    if as_json:
        totals = ("hours", "bytes", "bytes_without_features")
        content = asdict(made) | {key: getattr(made, key) for key in totals}
        click.echo(json.dumps(content | ({"cluster": _plain(shared)} if shared else {})))
        return
    click.echo(plan_text(made))
    if shared:
        click.echo("\n" + cluster_text(made, shared))


def _config(given: Given, images: int | None) -> ExtractConfig:
    """The configuration; it needs no store, as nothing is written, and no images if they are only counted."""
    named = given.path or any(text.startswith("extract.store=") for text in given.assignments)
    options: dict[str, Any] = {}
    if not named or images:
        options["store"] = given.options["store"] or "."  # only used to look up its disk's free space
    if images:
        options["data.hr"] = given.options["data.hr"] or ["."]
    return given.config(options)


def given_speeds(given: tuple[str, ...]) -> dict[str, float]:
    """Expert -> LR pixels a second, from NAME=N and from files of `bench extract --json`; the last one counts.

    raises  ConfigError for anything else
    """
    speeds: dict[str, float] = {}
    for text in given:
        name, equals, number = text.partition("=")
        try:
            speeds |= {name: float(number)} if equals else _measured(Path(text))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, StoreError) as error:
            raise ConfigError(
                f"--px-per-second {text}: expected NAME=NUMBER or a file of `bench extract --json` ({error})"
            ) from None
    slow = [name for name, speed in speeds.items() if not 0 < speed < math.inf]
    if slow:
        raise ConfigError(f"--px-per-second {slow[0]}: must be more than 0, found {speeds[slow[0]]}")
    return speeds


def _measured(path: Path) -> dict[str, float]:
    experts = parse_json(read_small(path).splitlines()[-1])["experts"]
    return {name: float(result["px_per_second"]) for name, result in experts.items()}


FEATURES_LATER = (
    "start without features (extract --without-features); whether they are worth their bytes to you, "
    "train --compare-features measures on a store of a few images (extract --limit)"
)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise click.UsageError(f"--lr-size {text}: expected ROWSxCOLUMNS, for example 339x510")
    return int(match[1]), int(match[2])


def plan_text(made: "Plan") -> str:
    """The plan for one device, as text."""
    measured = any(expert.measured for expert in made.experts)
    rows = [
        [
            "expert",
            "channels",
            "LR px/s",
            "of peak",
            "of the bus",
            "hours",
            *made.experts[0].bytes_by_codec,
            "without features",
        ]
    ]
    for expert in made.experts:
        notes = ["random weights"] * expert.random_weights + ["images"] * (expert.px_per_second is None)
        notes += ["speed given"] * (measured and not expert.measured and expert.px_per_second is not None)
        sizes = [size_text(n) for n in expert.bytes_by_codec.values()]
        rows.append(
            [
                expert.name + (f" ({', '.join(notes)})" if notes else ""),
                " ".join(map(str, expert.channels.values())) or "none",
                "" if expert.px_per_second is None else f"{expert.px_per_second:,.0f}",
                *("" if share is None else f"{share:.3f}" for share in (expert.share_of_peak, expert.share_of_bus)),
                f"{expert.hours:,.1f}",
                *sizes,
                size_text(expert.bytes_without_features),
            ]
        )
    totals = [size_text(made.total_bytes(codec)) for codec in made.experts[0].bytes_by_codec]
    totals.append(size_text(made.bytes_without_features))
    rows.append(["all, with LR and HR", "", "", "", "", f"{made.hours:,.1f}", *totals])
    free = "" if made.free_bytes is None else f"; free on its disk: {size_text(made.free_bytes)}"
    short = made.free_bytes is not None and made.free_bytes < made.bytes
    where = "one forward measured on this machine" if measured else "the given speeds"
    if all(expert.px_per_second is None for expert in made.experts):
        where = "nothing, since images are only copied"
    return "\n".join(
        [
            f"{made.images:,} images, {_pixels_text(made.lr_px)}, {made.shards:,} shards",
            f"hours from {where}; bytes for each codec of features + SR, and for SR alone:",
            *([_limits_text(made)] if made.peak_tflops else []),
            "",
            table(rows),
            "",
            f"with this configuration's codecs the store takes {size_text(made.bytes)}, "
            f"without features {size_text(made.bytes_without_features)}{free}{' (too little)' * short}",
            *([FEATURES_LATER] if made.bytes_without_features < made.bytes else []),
        ]
    )


def _limits_text(made: "Plan") -> str:
    """What the shares in the table are of."""
    bus = made.bus_gbytes_per_second
    copied = "there is no bus to cross" if bus is None else f"pinned copies from it {bus:.1f} GB/s"
    return f"of peak: one large matrix product reaches {made.peak_tflops:.3g} TFLOP/s on this device; {copied}"


def _pixels_text(n: int) -> str:
    """LR pixels in a readable unit: 596 M, or the exact number if it is small."""
    return f"{n / 1e6:,.0f} M LR pixels" if n >= 10e6 else f"{n:,} LR pixels"


def cluster_text(made: "Plan", shared: "ClusterPlan") -> str:
    """The plan for a cluster, as text."""
    cluster, chosen = shared.cluster, shared.chosen
    fails = "no node fails"
    if math.isfinite(cluster.mtbf_hours):
        back = cluster.restart_seconds / 60
        fails = f"each node fails every {cluster.mtbf_hours:,.0f} h and is back after {back:g} min"
    fewest, most = (pick(choice.trials for choice in shared.choices) for pick in (min, max))
    trials = f"{most}" if fewest == most else f"{fewest} to {most}"
    rows = [["images/shard", "shards", "shard size", "hours", "worst", "lost", "fixed",
             "inodes zarr", "inodes hdf5", "PUTs zarr", "PUTs hdf5"]]  # fmt: skip
    for choice in shared.choices:
        counts = [f"{numbers[name]:,}" for numbers in (choice.inodes, choice.requests) for name in ("zarr", "hdf5")]
        rows.append(
            [
                f"{choice.images_per_shard:,}" + " *" * (choice is chosen),
                f"{choice.shards:,}",
                size_text(choice.shard_bytes),
                f"{choice.hours:,.2f}",
                f"{choice.worst_hours:,.2f}",
                f"{choice.lost:.2%}",
                f"{choice.fixed:.2%}",
                *counts,
            ]
        )
    lines = [
        f"{cluster.nodes} x {cluster.gpus_per_node} GPUs; node speeds differ by {cluster.speed_spread:.0%}; {fails}; "
        f"each shard takes {cluster.shard_seconds:g} s besides its forward passes; simulated {trials} times:",
        "",
        table(rows),
        "",
        f"* extract.images_per_shard={shared.advised}: the smallest shards that cost no extra time. "
        f"{chosen.hours:,.2f} h; {shared.ideal_hours:,.2f} h if nothing were lost and no GPU waited",
        f"{shared.gpu_hours:,.0f} GPU hours"
        + ("" if shared.cost is None else f", {shared.cost:,.0f} at {shared.price:g} per hour"),
        f"{size_text(shared.bytes)} to storage at {size_text(shared.bytes_per_second)}/s on average, "
        f"{size_text(shared.fastest_bytes_per_second)}/s for the expert that writes fastest "
        f"({size_text(shared.fastest_bytes_per_second / cluster.nodes)}/s per node)",
        f"images.jsonl: {size_text(shared.manifest_bytes)}, read by every process",
    ]
    return "\n".join(lines)


def _plain(shared: "ClusterPlan") -> dict[str, Any]:
    content = asdict(shared)
    if not math.isfinite(shared.cluster.mtbf_hours):
        content["cluster"]["mtbf_hours"] = None  # JSON has no infinity
    more = ("gpu_hours", "cost", "bytes_per_second")
    return content | {key: getattr(shared, key) for key in more}
