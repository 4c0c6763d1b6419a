"""The refinement on a command line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.diffusion.refine import Refiner
from championship_sr.evaluate.diffusion.weights import load_refiner


def diffusion_options(command: Callable) -> Callable:
    """The command with --diffusion and --alpha, passed on as `diffusion` and `alpha`; None if not given."""
    folder = click.option(
        "--diffusion",
        type=click.Path(path_type=Path, file_okay=False),
        help="Refine with TSD-SR's diffusion model, loading its weights from this folder (see docs/track-b.md).",
    )
    alpha = click.option(
        "--alpha",
        type=click.FloatRange(0, 1),
        help="Share of the unrefined image in the output, from 0 to 1. Default: 0.5.",
    )
    return folder(alpha(command))


def refiner_from_options(
    diffusion: Path | None, alpha: float | None, config: DiffusionConfig | None = None, device: str = "auto"
) -> Refiner | None:
    """The refiner that was asked for, or None.

    raises  click.UsageError for --alpha alone; otherwise as load_refiner
    """
    if diffusion is None:
        if alpha is not None:
            raise click.UsageError("--alpha needs --diffusion FOLDER")
        return None
    config = config or DiffusionConfig()
    return load_refiner(diffusion, config if alpha is None else replace(config, alpha=alpha), device)
