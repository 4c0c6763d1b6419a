"""The demo: photographs, store, fusion and report, from scratch; each stage reuses what is already there."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import click

from championship_sr.evaluate.bundled import installed_run, trained_on
from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.demo.photographs import write_photographs
from championship_sr.evaluate.demo.progress import DemoStages
from championship_sr.evaluate.methods import BUNDLED, FUSION
from championship_sr.evaluate.model import load
from championship_sr.evaluate.report.report import REPORT
from championship_sr.evaluate.scoring.evaluation import ScoringOptions
from championship_sr.evaluate.scoring.scores import Scores
from championship_sr.evaluate.session import Results, evaluate_sets, write_results
from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.run.extraction import extract
from championship_sr.store.config import load_section
from championship_sr.store.format.layout import CONTAINERS
from championship_sr.train.config import TrainConfig
from championship_sr.train.run.loop import train
from championship_sr.train.schedule import parse_length

HELD_OUT = "held-out photographs"  # the names of the sets in the report
PARTS = ("photographs", "stores", "runs", "report")  # what the demo makes in its folder, and --fresh removes

T = TypeVar("T")


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Folder for the demo's files."
)
@click.option(
    "--container",
    type=click.Choice(sorted(CONTAINERS)),
    default="zarr",
    show_default=True,
    help="Container of the stores.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps. Default: as in configs/demo.yaml.")
@click.option("--fresh", is_flag=True, help="Start over instead of reusing earlier results.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def demo(out: Path, container: str, steps: int | None, fresh: bool, as_json: bool) -> None:
    """Run everything once on photographs that come with scikit-image: extract, train, evaluate, report.

    It takes minutes on two CPU cores.
    """
    job = Demo(out, container, steps)
    if fresh:
        job.clear()
    stores = job.stores()
    run = job.run(stores["training"])
    scores, report = job.evaluate(run, stores["held_out"])
    if as_json:
        gain = {method: scores.headline_gains(method) for method in (FUSION, BUNDLED) if method in scores.methods}
        told = {**scores.summary(), "gain": gain, "seconds": job.stages.seconds, "report": str(report)}
        click.echo(json.dumps(told))
        return
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in job.stages.seconds.items())
    click.echo(f"report: {report}\n{spent}\n\n{scores.table()}")


@dataclass
class Demo:
    """The demo's folder, and its stages in this run."""

    out: Path
    container: str = "zarr"
    steps: int | None = None  # of training; None: configs/demo.yaml's
    stages: DemoStages = field(default_factory=DemoStages)

    def __post_init__(self) -> None:
        steps, full = (
            parse_length(config.steps)[0] for config in (self.training, demo_config(TrainConfig, "train", {}))
        )
        self.stages.training = steps / full

    @cached_property
    def training(self) -> TrainConfig:
        """How the fusion is trained."""
        return demo_config(TrainConfig, "train", {} if self.steps is None else {"steps": self.steps})

    def clear(self) -> None:
        """Removes the files of an earlier demo, and nothing else."""
        for part in PARTS:
            shutil.rmtree(self.out / part, ignore_errors=True)

    def stores(self) -> dict[str, Path]:
        """Split -> store, filled by the bundled experts."""
        with self.stages.running("photographs"):
            folders = write_photographs(self.out / "photographs")
        stores = {split: self.out / "stores" / f"{split}-{self.container}.store" for split in folders}
        with self.stages.running("extract"):
            for split, folder in folders.items():
                own = {"store": stores[split], "container": self.container, "data.hr": [folder]}
                extract(demo_config(ExtractConfig, "extract", own))
        return stores

    def run(self, store: Path) -> Path:
        """The folder of the run, trained to its end; it begins from the bundled fusion where there is one."""
        run = self.out / "runs" / f"{self.container}-{self.training.steps}-steps"
        with self.stages.running("train"):
            train(self.training, store, run, resume=True, init=installed_run())
        return run

    def evaluate(self, run: Path, store: Path) -> tuple[Scores, Path]:
        """The scores on the held-out photographs, and the report."""
        with self.stages.running("evaluate"):
            bundled = installed_run()
            options = ScoringOptions(self_ensemble=False, bundled=load(bundled) if bundled else None)
            results = evaluate_sets(run=run, store=store, options=options, config=EvaluateConfig(), with_gallery=True)
            [scored] = results.sets.values()
            if bundled:
                scored = replace(scored, scores=replace(scored.scores, notes=(*scored.scores.notes, told_of(bundled))))
            write_results(self.out / "report", Results({HELD_OUT: scored}, results.model, results.left_out))
        return scored.scores, self.out / "report" / REPORT


def told_of(bundled: Path) -> str:
    """What the two fusions of the table were trained on."""
    return (
        f"bundled fusion: trained on {trained_on(bundled) or 'other photographs'}; "
        "fusion: begins from it and goes on with those of the demo. None of them is scored here"
    )


def demo_config(cls: type[T], section: str, own: dict[str, Any]) -> T:
    """A section of configs/demo.yaml with values of this demo's own."""
    assignments = [f"{section}.{key}={json.dumps(value, default=str)}" for key, value in own.items()]
    with ExitStack() as stack:
        path = stack.enter_context(resources.as_file(resources.files("championship_sr.configs").joinpath("demo.yaml")))
        return load_section(cls, path, section, assignments)
