"""Options and output helpers that the commands of this stage share."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from championship_sr.extract.config import PRECISIONS, ExtractConfig
from championship_sr.store.config import load_section
from championship_sr.store.errors import ConfigError

config_option = click.option(
    "--config", "path", type=click.Path(path_type=Path), help="YAML file with an `extract` section."
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override one configuration value; repeatable."
)
expert_option = click.option(
    "--expert", "names", multiple=True, metavar="NAME|FILE.yaml", help="Use only this expert; repeatable."
)
features_option = click.option("--without-features", is_flag=True, help="Store only the experts' SR images.")
random_option = click.option(
    "--random-weights",
    is_flag=True,
    help="Run with random weights, to estimate time and size without the weights files.",
)
device_option = click.option("--device", help="Device to run on: auto, cpu, cuda, cuda:N or mps.")
trust_option = click.option(
    "--trust-architecture",
    "trusted",
    multiple=True,
    metavar="MODULE",
    help="Allow the store or run to load its network from this Python module, whose code is then run; repeatable.",
)
cache_option = click.option(
    "--cache", help="Folder for downloaded shards of a store at a URL. Default: in the user's cache folder."
)
cache_gb_option = click.option("--cache-gb", type=float, help="Largest size of that folder in GB. Default: 100.")
scale_option = click.option("--scale", default=4, show_default=True, help="Upscaling factor of the experts.")
precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Arithmetic the experts run in.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


@dataclass(frozen=True)
class Given:
    """The extraction that a command line describes: a file, overrides, and options by their keys."""

    path: Path | None
    assignments: tuple[str, ...]
    options: dict[str, Any]

    def config(self, options: Mapping[str, Any]) -> ExtractConfig:
        """The configuration, with further options over it."""
        return extract_config(self.path, self.assignments, {**self.options, **options})


def cache_assignments(section: str, cache: str | None, cache_gb: float | None) -> tuple[str, ...]:
    """What --cache and --cache-gb say, as assignments in this section of a configuration."""
    values = {"cache": cache, "cache_gb": cache_gb}
    return tuple(f"{section}.{key}={json.dumps(value)}" for key, value in values.items() if value is not None)


def source_options(command: Callable) -> Callable:
    """Options that select what is extracted: --config, --store, --root, --hr, --lr, --expert, --without-features."""
    return config_option(data_options(expert_option(features_option(command))))


def run_options(command: Callable) -> Callable:
    """--random-weights, --device, --set and --json; `given` has these and the source, but for --expert and --json."""

    @wraps(command)
    def gathered(path, store, roots, hr, lr, without_features, random_weights, device, assignments, **others):
        options = {
            "store": store,
            "data.roots": roots,
            "data.hr": hr,
            "data.lr": lr,
            "features": False if without_features else None,
            "random_weights": random_weights or None,
            "device": device,
        }
        return command(given=Given(path, assignments, options), **others)

    return random_option(device_option(set_option(json_option(gathered))))


def data_options(command: Callable) -> Callable:
    """--store, --root, --hr and --lr, for runs without a YAML file."""
    for option in (
        click.option(
            "--lr",
            multiple=True,
            metavar="DIR",
            help="Folder of LR images: one for each --hr, or LR images without HR; repeatable.",
        ),
        click.option(
            "--hr",
            multiple=True,
            metavar="DIR",
            help="Folder of HR images; without --lr, LR images are downscaled from them. Repeatable.",
        ),
        click.option(
            "--root",
            "roots",
            multiple=True,
            metavar="DIR",
            help="Root folder of a data set in a known layout (see docs/images.md); repeatable.",
        ),
        click.option("--store", metavar="DIR|URL", help="The feature store: a folder, or an s3:// or gs:// URL."),
    ):
        command = option(command)
    return command


def extract_config(path: Path | None, assignments: tuple[str, ...], options: dict[str, Any]) -> ExtractConfig:
    """The extract section of a file, with the command line's options over it; None and () are not given."""
    given = [f"extract.{key}={json.dumps(value)}" for key, value in options.items() if value or value is False]
    keys = [text.removeprefix("extract.").partition("=")[0].partition(".")[0] for text in (*assignments, *given)]
    for key, asked in (("store", "--store"), ("data", "--root, --hr or --lr")):
        if path is None and key not in keys:
            raise ConfigError(f"give {asked}, or a --config with an `extract` section")
    return load_section(ExtractConfig, path, "extract", assignments, given)


def size_text(n_bytes: float) -> str:
    """Bytes in a readable unit: 1.02 TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def table(rows: list[list[str]]) -> str:
    """Rows as left-aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
