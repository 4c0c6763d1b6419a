"""The command line: `python pipeline.py COMMAND`, installed as `championship-sr`."""

import importlib
import io
import logging
import sys
import warnings

import click
from click.shell_completion import CompletionItem

from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.progress import tell_every

# where each command lives: a module is imported when its command is used, so that --help needs no torch
COMMANDS = {
    "demo": (
        "championship_sr.evaluate.demo.demo:demo",
        "Run everything once on bundled photographs: extract, train, evaluate, report.",
    ),
    "plan": (
        "championship_sr.extract.commands.plan:plan",
        "Estimate the size and time of an extraction; write nothing.",
    ),
    "extract": (
        "championship_sr.extract.commands.extract:extract",
        "Run the frozen experts once and fill the feature store.",
    ),
    "store": (
        "championship_sr.extract.commands.store:store",
        "Inspect, verify, merge, convert, copy and prune feature stores.",
    ),
    "train": ("championship_sr.train.commands:train", "Train the fusion from a feature store."),
    "evaluate": (
        "championship_sr.evaluate.commands:evaluate",
        "Score a run against every expert, their mean and the oracles.",
    ),
    "submit": (
        "championship_sr.evaluate.commands:submit_command",
        "Write an NTIRE submission: results, readme.txt and zip.",
    ),
    "export": ("championship_sr.evaluate.commands:export_command", "Export a run to share: weights and a model card."),
    "upscale": ("championship_sr.evaluate.commands:upscale", "Super-resolve an image or a folder of images."),
    "experts": ("championship_sr.train.pretraining.commands:experts", "List, check and pretrain experts."),
    "bench": ("championship_sr.pipeline:bench", "Run the benchmarks behind the README's figures."),
}
BENCHMARKS = {
    "loader": (
        "championship_sr.train.commands:bench_loader",
        "Measure how fast a store is read, compared with memcpy and other formats.",
    ),
    "step": ("championship_sr.train.commands:bench_step", "Measure the cost of a training step in each profile."),
    "extract": (
        "championship_sr.extract.commands.bench:bench_extract",
        "Measure the overhead of extraction over the experts' forward passes.",
    ),
}
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: name -> (module:command, what it does)."""

    def __init__(self, *args, table: dict[str, tuple[str, str]], **options) -> None:
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, _, attribute = self.table[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The matching commands, without importing any of them, and the group's own options."""
        items = [
            CompletionItem(name, help=text) for name, (_, text) in self.table.items() if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Log more details.")
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest picture to read, in millions of pixels; larger ones are refused. Default: 179.",
)
@click.option(
    "--progress-every",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to print progress when standard error is not a terminal; 0 turns it off.",
)
@click.version_option(package_name="championship-sr")
def cli(debug: bool, verbose: bool, max_megapixels: float | None, progress_every: float) -> None:
    """Train a fusion of frozen super-resolution experts from a feature store.

    extract runs the experts once, train reads their stored outputs, and evaluate shows what the fusion adds.
    """
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # from inside spandrel's networks
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged or large pictures get a one-line message of our own
    for name in ("imagecodecs", "tifffile"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths that are not UTF-8 are printed unchanged
    if max_megapixels:
        from championship_sr.extract.images.picture import allow_megapixels

        allow_megapixels(max_megapixels)
    tell_every(progress_every)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


@click.group(cls=LazyGroup, table=BENCHMARKS)
def bench() -> None:
    """Run the benchmarks behind the README's figures."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Runs the command line; bad input ends in one line on stderr and exit status 1 or 2."""
    debug = "--debug" in sys.argv
    try:
        status = cli.main(prog_name="championship-sr", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        status = fail("interrupted; run the same command again to continue", EXIT_INTERRUPTED)
    except click.UsageError as error:
        error.show()
        status = EXIT_USAGE
    except (ConfigError, click.ClickException) as error:
        if debug:
            raise
        status = fail(one_line(error), EXIT_USAGE)
    except (StoreError, WeightsError, OSError) as error:
        if debug:
            raise
        status = fail(one_line(error), EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        # torch, which not every command loads, has an error of its own for a device's memory
        if debug or not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        status = fail(f"out of memory: {one_line(error)}", EXIT_FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, status: int) -> int:
    click.echo(f"error: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
