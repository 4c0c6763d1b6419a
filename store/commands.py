"""`store info | verify | merge | convert | pull | push | rm | view | codecs`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.layout import CONTAINERS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import counted
from championship_sr.store.operations.codec_figures import CodecFigures, measure_codecs
from championship_sr.store.operations.convert import convert as convert_store
from championship_sr.store.operations.info import SourceInfo, StoreInfo
from championship_sr.store.operations.info import info as store_info
from championship_sr.store.operations.merge import merge as merge_stores
from championship_sr.store.operations.repair import damaged_bytes, planned, remove_damaged
from championship_sr.store.operations.repair import repair as repair_store
from championship_sr.store.operations.sheet import write_sheet
from championship_sr.store.operations.verify import Hashes, Report, recorded_bytes
from championship_sr.store.operations.verify import verify as verify_store
from championship_sr.store.progress import progress
from championship_sr.store.remote.transfer import JOBS, Moved
from championship_sr.store.remote.transfer import pull as pull_store
from championship_sr.store.remote.transfer import push as push_store
from championship_sr.store.shards.reader import Store

log = logging.getLogger(__name__)

FOLDER = click.Path(file_okay=False, path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
EXPERTS = click.option(
    "--expert", "names", multiple=True, help="Copy the image pairs and only this expert; repeatable."
)
REPAIR = click.option(
    "--repair",
    is_flag=True,
    help="Restore small files from the records, and move damaged shards to STORE/damaged so that extract remakes them.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="With --repair: only show what it would do.")
FILES_AT_A_TIME = click.option(
    "--jobs", type=click.IntRange(1), default=JOBS, show_default=True, help="Files to copy at once."
)


@click.group()
def store() -> None:
    """Inspect, verify, merge, convert, copy and prune feature stores."""


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@JSON
def info(root: Path, as_json: bool) -> None:
    """Show experts, images, shards, bytes, codecs and provenance, and what is missing."""
    about = store_info(root)
    click.echo(json.dumps(asdict(about)) if as_json else _told(about))


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@REPAIR
@DRY_RUN
@JSON
def verify(root: Path, repair: bool, dry_run: bool, as_json: bool, hashes: Hashes | None = None) -> None:
    """Read every byte and report every fault; exit with status 1 if there is one."""
    check_options(repair, dry_run)
    with _bar(recorded_bytes(root)) as bar:
        report = verify_store(root, hashes, progress=bar.update)
    plan = planned(root, report.faults) if repair else []
    if not as_json:
        _tell_faults(root, report)
        for step in plan:
            click.echo(f"would {step}" if dry_run else f"will {step}")
    done = repair_store(root, report.faults) if repair and not dry_run and plan else []
    if as_json:
        faults = [fault.plain() for fault in report.faults]
        click.echo(json.dumps({**vars(report), "faults": faults, "planned": plan, "repaired": done}))
    else:
        for step in done:
            click.echo(step)
    amount = f"{report.arrays} arrays, {report.n_bytes / 2**20:,.1f} MiB in {report.seconds:.1f} s"
    if report.faults:
        mended = _mended(report, done) if repair and not dry_run else ""
        raise StoreError(f"{root}: {counted(len(report.faults), 'fault')} in {amount}{mended}")
    if not as_json:
        click.echo(f"{root}: no fault in {amount}")


def check_options(repair: bool, dry_run: bool) -> None:
    """Refuse `--dry-run` without `--repair`."""
    if dry_run and not repair:
        raise ConfigError("--dry-run only works together with --repair; give both")


def _tell_faults(root: Path, report: Report) -> None:
    for fault in report.faults:
        click.echo(fault.message)
    for source, count in report.missing.items():
        if count:
            click.echo(f"{root}: {source} lacks {counted(count, 'shard')}, which were never made or have been removed")


@store.command()
@click.argument("roots", metavar="STORE...", nargs=-1, required=True, type=FOLDER)
@click.option("-o", "--output", required=True, type=FOLDER, help="The merged store.")
@click.option("--move", is_flag=True, help="Remove each shard from its source once the output has it.")
@click.option("--copy", is_flag=True, help="Copy shards even where hard links would do.")
@click.option("--complete", is_flag=True, help="Fail with exit status 1 if any shard is in none of the stores.")
@JSON
def merge(roots: tuple[Path, ...], output: Path, move: bool, copy: bool, complete: bool, as_json: bool) -> None:
    """Merge stores of the same images that hold different experts or different parts.

    The output says what is still missing; another merge or extract into the same store adds it.
    """
    merged = merge_stores(roots, output, move=move, copy=copy, complete=complete)
    if as_json:
        click.echo(json.dumps(asdict(merged)))
        return
    state = f"incomplete: {merged.lacking}" if merged.lacking else "nothing is missing"
    done = f"{counted(merged.shards, 'shard')} from {counted(len(roots), 'store')}"
    click.echo(f"{output}: {done}; {state}")


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@click.option("-o", "--output", required=True, type=FOLDER, help="The new store.")
@click.option(
    "--container", type=click.Choice(list(CONTAINERS)), help="Container of the new store. Default: that of the old one."
)
@click.option(
    "--codec",
    "codecs",
    metavar="ARRAY=CODEC",
    multiple=True,
    help="Codec for an array, for example features=pca64-int8; repeatable.",
)
@click.option(
    "--chunks", default="default", show_default=True, help="Chunk layout: default, rows or tiles:ROWSxCOLUMNS."
)
@click.option("--images-per-shard", type=click.IntRange(1), help="Images in each shard. Default: as in the old store.")
def convert(
    root: Path, output: Path, container: str | None, codecs: tuple[str, ...], chunks: str, images_per_shard: int | None
) -> None:
    """Write a copy of a store with another container, codec, chunk layout or shard size."""
    with _bar(recorded_bytes(root)) as bar:
        convert_store(
            root,
            output,
            container=container,
            codecs=_assigned(codecs),
            chunks=chunks,
            images_per_shard=images_per_shard,
            progress=bar.update,
        )
    click.echo(_told(store_info(output)))


@store.command()
@click.argument("url")
@click.argument("root", metavar="DIR", type=FOLDER)
@EXPERTS
@FILES_AT_A_TIME
@JSON
def pull(url: str, root: Path, names: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Download a store from object storage (s3:// or gs://); an interrupted download continues where it stopped."""
    with _bar(0) as bar:
        moved = pull_store(url, root, names, jobs=jobs, progress=bar.update, total=partial(_set_total, bar))
    _tell_moved(url, str(root), moved, as_json)


@store.command()
@click.argument("root", metavar="DIR", type=FOLDER)
@click.argument("url")
@EXPERTS
@FILES_AT_A_TIME
@JSON
def push(root: Path, url: str, names: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Upload a store to object storage (s3:// or gs://); an interrupted upload continues where it stopped."""
    with _bar(0) as bar:
        moved = push_store(root, url, names, jobs=jobs, progress=bar.update, total=partial(_set_total, bar))
    _tell_moved(str(root), url, moved, as_json)


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@click.option("--expert", "names", multiple=True, help="Remove this expert; repeatable.")
@click.option("--damaged", is_flag=True, help="Remove the shards that verify --repair moved to STORE/damaged.")
def rm(root: Path, names: tuple[str, ...], damaged: bool) -> None:
    """Remove experts, or the damaged shards that a repair set aside, from a store."""
    if not names and not damaged:
        raise ConfigError("store rm: nothing to remove; give --expert NAME or --damaged")
    manifest = Manifest.load(root, damaged=[])
    if damaged:
        n_bytes = damaged_bytes(root)
        remove_damaged(root)
        click.echo(f"{root}: removed {_size(n_bytes)} of damaged shards")
    gone = [name for name in names if not manifest.has_left(name)]
    there = [name for name in dict.fromkeys(names) if name not in gone]
    for name in there or names:  # if all are gone, the first one raises the error
        manifest.remove_expert(name)
    if names:
        told = f"; already removed: {', '.join(gone)}" if gone else ""
        click.echo(f"{root}: removed {', '.join(there)}{told}; left: {', '.join(manifest.experts) or 'no expert'}")


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@click.argument("image")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="PNG file to write. Default: IMAGE.png."
)
@click.option("--expert", "names", multiple=True, help="Show only this expert; repeatable.")
def view(root: Path, image: str, output: Path | None, names: tuple[str, ...]) -> None:
    """Draw IMAGE (an id or a name) as a PNG sheet: LR, HR, and each expert's SR, error and features."""
    output = output or Path(f"{image}.png")
    write_sheet(Store(root, names or None, whole=False), image, output)
    click.echo(f"{output}")


@store.command()
@click.argument("root", metavar="STORE", type=FOLDER)
@click.option(
    "--codec", "names", multiple=True, help="Codec to measure on feature maps, for example pca64-int8; repeatable."
)
@click.option(
    "--sr-codec", "sr_names", multiple=True, help="Codec to measure on SR images, for example uint8; repeatable."
)
@click.option(
    "--sample", default=8, show_default=True, help="Images that codecs are fitted to; the others are measured."
)
@JSON
def codecs(root: Path, names: tuple[str, ...], sr_names: tuple[str, ...], sample: int, as_json: bool) -> None:
    """Measure the size, error and speed of codecs on the arrays of a float32 store."""
    measurements = []
    for figures in measure_codecs(root, names, sr_names, sample):
        measurements.append(figures)
        log.info("%s %s: %s", figures.array, figures.codec, figures)
    click.echo(json.dumps([asdict(one) for one in measurements]) if as_json else _codec_table(measurements))


def _codec_table(figures: list[CodecFigures]) -> str:
    columns = "array | codec | B per LR pixel | SNR, dB | largest error, sd | write, MB/s | read, MB/s | decode, MB/s"
    lines = [f"| {columns} |", "|---|---|" + "---:|" * 6]
    for one in figures:
        snr = " / ".join(f"{value:.1f}" for value in one.snr_db.values())
        speeds = f"{one.write_mb_s:,.0f} | {one.read_mb_s:,.0f} | {one.load_mb_s:,.0f}"
        lines.append(
            f"| {one.array} | {one.codec} | {one.bytes_per_lr_px:.1f} | {snr} | {one.max_error:.2g} | {speeds} |"
        )
    return "\n".join(lines)


def _bar(total: int) -> tqdm:
    return progress(total=total, desc="store", unit="B", unit_scale=True, unit_divisor=1024)


def _set_total(bar: tqdm, n_bytes: int) -> None:
    bar.total = n_bytes
    bar.refresh()


def _tell_moved(origin: str, place: str, moved: Moved, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(moved)))
        return
    lacking = [f"{source} lacks {counted(count, 'shard')}" for source, count in moved.missing.items() if count]
    done = counted(moved.shards, "shard")
    click.echo(f"{place}: {done} from {origin}; {', '.join(lacking) or 'nothing is missing'}")


def _assigned(pairs: tuple[str, ...]) -> dict[str, str]:
    result = {}
    for pair in pairs:
        name, sign, codec = pair.partition("=")
        if not sign or not codec:
            raise ConfigError(f"--codec {pair}: expected ARRAY=CODEC, for example features=pca64-int8")
        result[name] = codec
    return result


def _told(about: StoreInfo) -> str:
    lines = [
        f"{about.root}: x{about.scale}, {about.container}, {about.images} images, {about.lr_px:,} LR pixels, "
        f"{about.shards} shards, {_size(about.n_bytes)}"
    ]
    lines += [_line(source) for source in about.sources]
    lines += [f"damaged: {message}" for message in about.damaged]
    if about.moved_away_bytes:
        lines.append(
            f"  damaged/: {_size(about.moved_away_bytes)} that a repair moved away; store rm --damaged removes it"
        )
    return "\n".join(lines)


def _line(source: SourceInfo) -> str:
    arrays = ", ".join(f"{array.name} {array.channels} x {array.codec}" for array in source.arrays)
    parts = [f"  {source.name}: {arrays}", _size(source.n_bytes), f"{source.bytes_per_lr_px:.1f} B per LR pixel"]
    if source.variants != ("identity",):
        parts.append(f"variants {', '.join(source.variants)}")
    parts += _provenance(source.identity)
    if len(source.devices) > 1:
        shares = (f"{device} ({counted(count, 'shard')})" for device, count in sorted(source.devices.items()))
        parts.append(f"MADE IN SEVERAL WAYS: {' / '.join(shares)}")
    if source.missing_shards:
        count = counted(len(source.missing_shards), "shard")
        parts.append(f"lacks {count}, the first is {source.missing_shards[0]}")
    if source.rebuilt_shards is not None:
        parts.append(f"being rebuilt: {counted(source.rebuilt_shards, 'shard')} so far")
    return "; ".join(parts)


def _provenance(identity: Mapping[str, Any]) -> list[str]:
    shown = []
    if "weights_sha256" in identity:
        shown.append(f"weights {str(identity['weights_sha256'])[:12]}")
    if "images" in identity:
        shown.append(f"images of another program, sha256 {str(identity['images']['sha256'])[:12]}")
    if identity.get("random_weights"):
        shown.append("RANDOM WEIGHTS")
    if "recoded" in identity:
        chains = (f"{name} {' -> '.join(chain)}" for name, chain in identity["recoded"].items())
        shown.append(f"recoded: {', '.join(chains)}")
    return shown


def _mended(report: Report, done: list[str]) -> str:
    """What was done, and what is left to do."""
    moved, restored = (sum(step.startswith(word) for step in done) for word in ("moved", "restored"))
    told = f"; {counted(restored, 'file')} restored, {moved} moved away" if restored else f"; {moved} moved away"
    left = sum(not fault.is_mended for fault in report.faults)
    return told + ("; run extract again" if moved else "") + (f"; {left} not mended so" if left else "")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.2f} MiB"
