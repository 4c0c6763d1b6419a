"""The command that measures extraction."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from championship_sr.extract.commands.options import (
    device_option,
    json_option,
    precision_option,
    scale_option,
)
from championship_sr.extract.config import FULL_SIZE, expert_configs

if TYPE_CHECKING:
    from championship_sr.extract.bench.writing import WritingBench


@click.command("extract")
@click.argument("entries", nargs=-1, metavar="[NAME | FILE.yaml]...")
@click.option(
    "--tile-px",
    type=click.IntRange(min=1),
    help="Side of a tile in LR pixels; 64 by default, and 256 on a GPU and with --writing.",
)
@click.option("--tiles", type=click.IntRange(min=1), help="Tiles in each shard; 2 by default, and 4 with --writing.")
@click.option(
    "--writing",
    is_flag=True,
    help="Measure encoding, hashing and writing alone, with experts that cost nothing.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Rounds; each times the forward passes alone and a whole shard.",
)
@scale_option
@click.option(
    "--container",
    type=click.Choice(["zarr", "hdf5"]),
    default="zarr",
    show_default=True,
    help="Container of the store that is written.",
)
@precision_option
@device_option
@json_option
def bench_extract(entries, tile_px, tiles, writing, rounds, scale, container, precision, device, as_json):
    """Measure the time of a whole extraction relative to the forward passes alone on the same tiles.

    Experts whose weights files are missing run with random weights.
    """
    from championship_sr.extract.bench.overhead import BenchConfig, opened
    from championship_sr.extract.bench.writing import CHANNELS, WritingConfig, bench_writing
    from championship_sr.extract.device import bench_px, pick_device

    where, results = pick_device(device or "auto"), []
    if writing and entries:
        raise click.UsageError("--writing measures experts of its own; name none")
    if writing:
        config = WritingConfig(tile_px or WritingConfig.tile_px, tiles or WritingConfig.tiles, rounds, scale, container)
        _tell_writing([bench_writing(config, where, channels) for channels in CHANNELS], as_json)
        return
    tile_px, tiles = tile_px or bench_px(where), tiles or BenchConfig.tiles
    with opened(BenchConfig(tile_px, tiles, rounds, scale, container, precision)) as bench:
        for expert in expert_configs(entries or FULL_SIZE):
            last = bench.expert(expert, where)
            results.append(last)
            click.echo(f"{last.name}: {bench_text(asdict(last))}", err=as_json)
        figures = bench.totals(results)
    if as_json:
        click.echo(json.dumps({**figures, "experts": {r.name: asdict(r) for r in results}}))
    else:
        click.echo(f"all: {bench_text(figures)}, with {figures['pairs_seconds']:.2f} s to read and store the images")


def bench_text(figures: dict[str, Any]) -> str:
    """One line's figures of `bench extract`."""
    from championship_sr.extract.limits import bus_text

    ratios = f"overhead {figures['overhead']:.3f} (processor time {figures['cpu_overhead']:.3f})"
    text = f"{ratios}, {figures['px_per_second']:,.0f} px/s, {figures['peak_gib']:.2f} GiB, "
    text += f"{figures['share_of_peak']:.3f} of the device's peak"
    return f"{text}, {bus_text(figures['share_of_bus'])}" if "share_of_bus" in figures else text


def _tell_writing(results: Sequence["WritingBench"], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"writing": {str(result.channels): asdict(result) for result in results}}))
        return
    from championship_sr.extract.limits import bus_text

    for result in results:
        click.echo(
            f"{result.channels} channels: {result.px_per_second:,.0f} px/s, {result.mb_per_second:,.0f} MB/s "
            f"(plain synced writes: {result.disk_mb_per_second:,.0f} MB/s), "
            f"{result.cpu_px_per_second:,.0f} px per second of one core; arrays that come encoded, as from a GPU: "
            f"{result.encoded_px_per_second:,.0f} px/s, {result.encoded_cpu_px_per_second:,.0f} per second of one core"
            f"; {bus_text(result.share_of_bus)}"
        )
