"""The commands of `experts`: list, check, live and tiling; train/pretraining/commands.py adds pretrain."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from championship_sr.extract.commands.options import (
    config_option,
    device_option,
    expert_option,
    json_option,
    precision_option,
    random_option,
    scale_option,
    set_option,
    table,
    trust_option,
)
from championship_sr.extract.config import (
    FULL_SIZE,
    entry_names,
    expert_configs,
)
from championship_sr.store.config import override, read_yaml
from championship_sr.store.errors import StoreError


@click.group()
def experts() -> None:
    """List, check and pretrain experts."""


def chosen(entries: tuple[str, ...], path: Path | None, assignments: tuple[str, ...], default: tuple[str, ...]):
    """The experts named by hand, or those of a configuration, or the default ones."""
    if path is None:
        return expert_configs(entries or default)
    content = override(read_yaml(path), assignments)
    listed = tuple((content.get("extract") or {}).get("experts") or FULL_SIZE)
    return expert_configs(listed, entries)


@experts.command("list")
@click.argument("entries", nargs=-1, metavar="[NAME | FILE.yaml]...")
@config_option
@set_option
@scale_option
@json_option
def list_experts(entries, path, assignments, scale, as_json):
    """List the configured experts and whether their weights are on disk."""
    from championship_sr.extract.experts.check import listed

    items = [listed(config, scale) for config in chosen(entries, path, assignments, tuple(entry_names()))]
    if as_json:
        click.echo(json.dumps([asdict(item) for item in items]))
        return
    rows = [["expert", "parameters", "tap", "channels", "licence", "weights"]]
    for item in items:
        millions = f"{item.parameters / 1e6:.2f} M" if item.parameters else "?"
        several = len(item.taps) > 1
        taps = ", ".join(f"{name}: {path}" if several else path for name, path in item.taps.items()) or "none"
        channels = ", ".join(str(item.channels.get(name, "?")) for name in item.taps) or "none"
        where = f"on disk: {item.weights}" if item.state == "there" else item.state
        if item.state == "missing":
            where = f"missing: {item.weights}" + (f" from {item.url}" if item.url else "")
        rows.append([item.name, millions, taps, channels, item.licence or "?", where])
    click.echo(table(rows))


@experts.command()
@click.argument("entries", nargs=-1, metavar="[NAME | FILE.yaml]...")
@config_option
@set_option
@scale_option
@precision_option
@click.option(
    "--equivariance",
    "turned",
    is_flag=True,
    help="Measure how far each expert is from commuting with flips and rotations.",
)
@click.option("--image", type=click.Path(path_type=Path), help="LR image for --equivariance. Default: noise.")
@random_option
@device_option
@json_option
def check(entries, path, assignments, scale, precision, turned, image, random_weights, device, as_json):
    """Load each expert, run it on a small image, and check scale, taps, finiteness and determinism."""
    import torch

    from championship_sr.extract.device import pick_device
    from championship_sr.extract.experts.check import check as run
    from championship_sr.extract.experts.check import equivariance
    from championship_sr.extract.experts.expert import load_expert
    from championship_sr.extract.experts.tiling import as_input
    from championship_sr.extract.images.decode import decode
    from championship_sr.extract.images.picture import eight_bit

    lr = eight_bit(decode(image)) if image else np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    results = []
    for config in chosen(entries, path, assignments, FULL_SIZE):
        with load_expert(config, pick_device(device or "auto"), scale, random_weights, precision=precision) as expert:
            result: dict[str, Any] = asdict(run(expert))
            if turned:
                with torch.inference_mode():
                    result["equivariance"] = [asdict(entry) for entry in equivariance(expert, as_input(lr))]
        results.append(result)
        if not as_json:
            click.echo(check_text(result))
    if as_json:
        click.echo(json.dumps(results))
    wavering = [result["name"] for result in results if not result["deterministic"]]
    if wavering:
        raise click.ClickException(f"{', '.join(wavering)}: not deterministic, two runs on the same image differ")


def check_text(result: dict[str, Any]) -> str:
    """One expert's lines of `experts check`."""
    channels = ", ".join(f"{name} {n}" for name, n in result["channels"].items())
    lines = [
        f"{result['name']}: x{result['scale']}, {result['parameters'] / 1e6:.2f} M parameters, channels: {channels}, "
        f"{'deterministic' if result['deterministic'] else 'NOT deterministic'}, "
        f"{result['seconds']:.2f} s for 32 x 32, peak {result['peak_gib']:.2f} GiB"
    ]
    for entry in result.get("equivariance", []):
        cosines = ", ".join(f"{name} {cosine:.3f}" for name, cosine in entry["cosine"].items())
        lines.append(f"  {entry['variant']:14} SR {entry['psnr_db']:.1f} dB, cosine of {cosines}")
    return "\n".join(lines)


@experts.command()
@click.argument("root", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--images", "n_images", default=2, show_default=True, help="Number of images, spread over the store.")
@expert_option
@trust_option
@device_option
@json_option
def live(root, n_images, names, trusted, device, as_json):
    """Run a store's experts again on some of its images and compare with what is stored, within codec error."""
    from championship_sr.extract.experts.recorded import check_live

    checks = check_live(root, n_images, names or None, device or "auto", trusted)
    if as_json:
        click.echo(json.dumps([asdict(check) | {"faults": check.faults} for check in checks]))
    for check in checks if not as_json else ():
        worst = max(difference.error / difference.allowed for difference in check.differences)
        click.echo(
            f"{check.name}: {len(check.differences)} arrays compared, largest difference {worst:.2f} of the tolerance"
        )
    faults = [fault for check in checks for fault in check.faults]
    if faults:
        raise StoreError(f"{root}: {'; '.join(faults)}")


@experts.command()
@click.argument("entries", nargs=-1, required=True, metavar="[NAME | FILE.yaml]...")
@click.option("--images", "folder", required=True, type=click.Path(path_type=Path), help="Folder of LR images.")
@click.option(
    "--limit",
    default=3,
    show_default=True,
    metavar="N",
    help="Use only the first N images that are larger than a tile.",
)
@click.option("--tile-px", default=64, show_default=True, help="Side of a tile in LR pixels.")
@click.option("--halo", "halos", default="0,4,8,16,24", show_default=True, help="Halos to measure, in LR pixels.")
@scale_option
@device_option
def tiling(entries, folder, limit, tile_px, halos, scale, device):
    """Measure how tiling changes an expert's output, as a Markdown table."""
    import torch

    from championship_sr.extract.bench.tiling_error import tiling_errors
    from championship_sr.extract.device import pick_device
    from championship_sr.extract.experts.expert import load_expert
    from championship_sr.extract.experts.tiling import as_input
    from championship_sr.extract.images.decode import decode
    from championship_sr.extract.images.pairs import image_files
    from championship_sr.extract.images.picture import eight_bit

    lrs = [as_input(eight_bit(decode(path))) for path in image_files(folder)]
    lrs = [lr for lr in lrs if max(lr.shape[-2:]) > tile_px][:limit]
    if not lrs:
        raise click.UsageError(f"{folder}: no image is larger than a tile of {tile_px}")
    click.echo("| expert | halo | SR, dB | SR, largest of 255 | features, dB | features, largest in std | work |")
    click.echo("|---|---|---|---|---|---|---|")
    for config in expert_configs(entries):
        with load_expert(config, pick_device(device or "auto"), scale) as expert, torch.inference_mode():
            for e in tiling_errors(expert, lrs, tile_px, [int(halo) for halo in halos.split(",")]):
                figures = f"{e.sr_psnr_db:.1f} | {e.sr_max:.2f} | {e.features_psnr_db:.1f} | {e.features_max:.2f}"
                click.echo(f"| {e.name} | {e.halo_px} | {figures} | {e.work:.2f} |")
