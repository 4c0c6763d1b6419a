"""The command `extract`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from championship_sr.extract.commands.options import Given, run_options, source_options
from championship_sr.store.errors import ConfigError

if TYPE_CHECKING:
    from championship_sr.extract.run.on_ray import RayOptions


@click.command()
@source_options
@click.option(
    "--rebuild",
    multiple=True,
    metavar="NAME",
    help="Extract this expert again and replace it once that is complete; repeatable.",
)
@click.option(
    "--part", metavar="I/N", help="Extract only part I of N of the shards, to divide the work among N machines."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Put only the first N images into the store.")
@click.option(
    "--staging", metavar="DIR", help="Local folder for the shards of an s3:// or gs:// store before they are uploaded."
)
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", help="Run on this machine or on a Ray cluster."
)
@click.option(
    "--address", help="Address of the Ray cluster. Default: RAY_ADDRESS, or a cluster started on this machine."
)
@click.option("--actors", type=click.IntRange(min=1), help="Ray: number of actors. Default: as many as fit.")
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(min=0),
    help="Ray: GPUs for each actor. Default: 1 if the cluster has GPUs, otherwise 0.",
)
@click.option(
    "--cpus-per-actor",
    type=click.IntRange(min=1),
    help="Ray: CPU cores for each actor. Default: the node's cores divided by its GPUs, or all of them.",
)
@click.option("--variants", help="Flips and rotations to store, for example identity,mirror.")
@run_options
def extract(
    given: Given, names, rebuild, part, limit, staging, engine, address, actors, gpus_per_actor, cpus_per_actor,
    variants, as_json,
):  # fmt: skip
    """Run the frozen experts once over all images and fill the feature store.

    An interrupted extraction continues where it stopped: shards that the store records as done are kept.
    """
    from championship_sr.extract.run.extraction import extract as run
    from championship_sr.extract.run.shares import Part, Rank

    config = given.config({"variants": variants and variants.split(",")})
    cluster = _cluster(engine, address, actors, gpus_per_actor, cpus_per_actor)
    summary = run(config, names, rebuild, part and Part.parse(part), limit, staging and Path(staging), cluster)
    if not Rank.from_environment().first:
        return
    if as_json:
        click.echo(json.dumps(asdict(summary)))
        return
    for name, done in summary.experts.items():
        speed = f", {done.lr_px / done.seconds:,.0f} px/s" if done.shards_written else ""
        click.echo(f"{name}: {done.shards_written} shards written{speed}")
    click.echo(f"{summary.store}: {summary.images} images, {summary.shards} shards")


def _cluster(
    engine: str, address: str | None, actors: int | None, gpus: float | None, cpus: int | None
) -> "RayOptions | None":
    if engine == "ray":
        from championship_sr.extract.run.on_ray import RayOptions

        return RayOptions(address, actors, gpus, cpus)
    if any(value is not None for value in (address, actors, gpus, cpus)):
        raise ConfigError("--address, --actors, --gpus-per-actor and --cpus-per-actor belong to --engine ray")
    return None
