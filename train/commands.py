"""The commands `train` and `bench`."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import click

from championship_sr.extract.commands.options import (
    cache_assignments,
    cache_gb_option,
    cache_option,
    device_option,
    trust_option,
)
from championship_sr.store.config import dump_yaml, load_section, to_plain
from championship_sr.store.errors import ConfigError
from championship_sr.train.config import TrainConfig
from championship_sr.train.fusion.config import ARCHITECTURE_KEY

AT_LEAST_1 = click.IntRange(min=1)
DEFAULT_PROFILE, STUDENT_PROFILE, TAUGHT_STUDENT_PROFILE = "swift.yaml", "student.yaml", "distilled.yaml"


@click.command()
@click.option("--store", metavar="DIR|URL", help="The feature store to train from: a folder, or an s3:// or gs:// URL.")
@cache_option
@cache_gb_option
@click.option(
    "--config", type=click.Path(path_type=Path), help="YAML file with a `train` section. Default: the swift profile."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one value, for example train.steps=500; repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a new run.")
@click.option("--resume", type=click.Path(path_type=Path), help="Continue the run in this folder.")
@click.option(
    "--student",
    metavar="NAME|FILE.yaml",
    help="Train this expert's network, which sees only LR, instead of the fusion.",
)
@click.option(
    "--teacher",
    metavar="fitted|mean|RUN",
    help="Also learn from a teacher: the experts averaged with fitted or equal weights, or a run's images.",
)
@click.option("--teacher-x8", is_flag=True, help="Average the teacher over the eight stored variants.")
@click.option("--init", type=click.Path(path_type=Path), help="Start from the weights of this run or export.")
@click.option("--live", is_flag=True, help="Run the experts in every step, for comparison or to save disk space.")
@trust_option
@device_option
@click.option(
    "--compare-features",
    "compares",
    is_flag=True,
    help="Train two short runs in --out, with and without the experts' features, and report the difference.",
)
@click.option("--describe", is_flag=True, help="Print the parameters, FLOPs and time of each phase without training.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
def train(
    store: str | None,
    cache: str | None,
    cache_gb: float | None,
    config: Path | None,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    student: str | None,
    teacher: str | None,
    teacher_x8: bool,
    init: Path | None,
    live: bool,
    trusted: tuple[str, ...],
    device: str | None,
    compares: bool,
    describe: bool,
    as_json: bool,
) -> None:
    """Train the fusion, or with --student a single network, from a feature store.

    A new run needs --store and --out; the same command continues it after an interruption. --resume continues a run
    with its own store and configuration; --set changes what can still be changed. --init starts a new run from the
    network and weights of another. The new run may use other experts; any that are new start with weight 0.
    """
    assignments += cache_assignments("train.data", cache, cache_gb)
    assignments += student_assignments(student, teacher, teacher_x8)
    if device:
        assignments += (f"train.device={device}",)
    if compares:
        _refuse("--compare-features trains its own runs", resume=resume, init=init, live=live or None)
        _compare_features(store, out, config, assignments, as_json)
        return
    place: Path | str | None = store
    if resume:
        _refuse("--resume uses the run's own settings", config=config, out=out, init=init, student=student)
        place, settings = _of_run(resume, store, assignments, trusted)
    else:
        if student:
            _refuse("--student trains the network of its own entry", init=init)
        profile = (TAUGHT_STUDENT_PROFILE if teacher else STUDENT_PROFILE) if student else DEFAULT_PROFILE
        settings = read_settings(config, assignments, profile, init)
    if live:
        settings = replace(settings, live=replace(settings.live, enabled=True))
    if describe:
        _describe(settings, place, as_json)
        return
    run = resume or out
    if not place or not run:
        raise click.UsageError("give --store and --out, or --resume")
    from championship_sr.train.run.loop import train as run_training

    run = run_training(settings, place, run, resume=True, changes=bool(resume), trusted=trusted, init=init)
    if os.environ.get("RANK", "0") == "0":  # torchrun's number of this process
        _report(run, as_json)


@click.group()
def bench() -> None:
    """Run the benchmarks behind the README's figures."""


@bench.command("step")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=AT_LEAST_1,
    help="Crops per step; repeatable. Default: 1 and 4, or 16 on a GPU.",
)
@click.option("--crop", type=click.IntRange(min=8), default=64, show_default=True, help="Side of a crop in LR pixels.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    default=("direct", "paper", "swift"),
    show_default=True,
    help="Profile to measure; repeatable.",
)
@click.option("--rounds", type=AT_LEAST_1, default=3, show_default=True, help="Rounds whose medians are reported.")
@click.option("--live/--no-live", default=True, help="Whether to measure the four full-size experts too.")
@device_option
@click.option("--trace", type=click.Path(path_type=Path), help="Write a torch.profiler trace of one step to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
def bench_step(batches, crop, profiles, rounds, live, device, trace, as_json) -> None:
    """Measure the cost of a training step in each profile, with and without running the experts in it."""
    from championship_sr.extract.device import pick_device
    from championship_sr.train.bench.step import bench_step as run
    from championship_sr.train.bench.step import table

    where = pick_device(device or "auto")
    result = run(batches, crop, profiles=profiles, rounds=rounds, live=live, device=where, trace=trace)
    click.echo(json.dumps(result) if as_json else table(result))


@bench.command("loader")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder for the stores, which take about 6 GB.")
@click.option("--rounds", type=AT_LEAST_1, default=5, show_default=True, help="Rounds whose medians are reported.")
@click.option("--seconds", default=1.0, show_default=True, help="Seconds each reader is measured in each round.")
@click.option("--batch-size", type=AT_LEAST_1, default=8, show_default=True, help="Crops per batch.")
@click.option("--threads", type=AT_LEAST_1, default=2, show_default=True, help="Threads of each reader.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
def bench_loader(folder, rounds, seconds, batch_size, threads, device, as_json) -> None:
    """Measure how fast a store is read, compared with a plain copy of the same bytes and with other formats."""
    from championship_sr.extract.device import pick_device
    from championship_sr.train.bench.loader import bench_loader as run

    where = pick_device(device or "auto")
    result = run(folder, rounds=rounds, seconds=seconds, batch_size=batch_size, threads=threads, device=where)
    click.echo(json.dumps(result) if as_json else dump_yaml(result).rstrip())


def read_settings(
    config: Path | None, assignments: tuple[str, ...], profile: str = DEFAULT_PROFILE, init: Path | None = None
) -> TrainConfig:
    """The section `train` of the file, or of the default profile with the network of the run `init`."""
    if init and not config:
        from championship_sr.train.records.folder import read_config

        assignments = (f"train.fusion={json.dumps(to_plain(read_config(init).fusion))}", *assignments)
    with ExitStack() as stack:
        default = resources.files("championship_sr.configs").joinpath(profile)
        path = config or stack.enter_context(resources.as_file(default))
        return load_section(TrainConfig, path, "train", assignments)


def student_assignments(student: str | None, teacher: str | None, x8: bool) -> tuple[str, ...]:
    """What the options --student, --teacher and --teacher-x8 set."""
    given = {"student": student, "teacher.of": teacher, "teacher.x8": x8 or None}
    return tuple(f"train.{key}={json.dumps(value)}" for key, value in given.items() if value is not None)


def _refuse(reason: str, **options: Any) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{reason}; leave out {' and '.join(given)}")


def _of_run(
    run: Path, store: str | None, assignments: tuple[str, ...], trusted: tuple[str, ...]
) -> tuple[Path | str, TrainConfig]:
    from championship_sr.train.records.folder import CONFIG_FILE, read_store

    if not (run / CONFIG_FILE).exists():
        raise ConfigError(f"{run}: not a training run (it has no {CONFIG_FILE})")
    settings = load_section(TrainConfig, run / CONFIG_FILE, "train", assignments)
    if not any(assignment.startswith("train.live.experts=") for assignment in assignments):
        _check_named(settings.live.experts, trusted)
    if settings.fusion.architecture:
        from championship_sr.extract.experts.architecture import Origin, find_factory

        find_factory(settings.fusion.architecture, ARCHITECTURE_KEY, Origin(run / CONFIG_FILE, trusted))
    if settings.student_entry:
        from championship_sr.extract.experts.architecture import Origin
        from championship_sr.extract.experts.recorded import vetted

        vetted(settings.student_entry, Origin(run / CONFIG_FILE, trusted))
    return store or read_store(run), settings


def _check_named(entries: Sequence[str], trusted: tuple[str, ...]) -> None:
    """Raises ConfigError for experts named by a run, not by the user, if their networks are not trusted."""
    for entry in entries:
        from championship_sr.extract.config import load_expert_config
        from championship_sr.extract.experts.architecture import Origin
        from championship_sr.extract.experts.recorded import vetted

        vetted(load_expert_config(entry), Origin(Path(entry), trusted))


def _describe(settings: TrainConfig, store: Path | str | None, as_json: bool) -> None:
    from championship_sr.extract.config import FULL_SIZE_CHANNELS
    from championship_sr.extract.device import pick_device
    from championship_sr.train.bench.phases import describe, plain, table
    from championship_sr.train.fusion.network import build_fusion
    from championship_sr.train.students.student import new_student

    channels, scale = FULL_SIZE_CHANNELS, 4
    if store:
        from championship_sr.train.records.folder import feature_channels
        from championship_sr.train.run.sources import open_store

        opened = open_store(store, settings.experts or None, settings.data)
        channels = {name: feature_channels(entry) for name, entry in opened.experts.items()}
        scale = opened.scale
    student = settings.student_entry
    if student:
        channels = {}
    network = new_student(student, scale) if student else build_fusion(settings.fusion, channels, scale)
    network.to(pick_device(settings.device))
    costs = describe(network, channels, scale, crop=settings.data.crop_px)
    click.echo(json.dumps({"channels": channels, "phases": plain(costs)}) if as_json else table(costs))


def _compare_features(
    store: str | None, out: Path | None, config: Path | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    if not store or not out:
        raise click.UsageError("--compare-features needs --store and --out")
    from championship_sr.train.run.features_worth import SHORT, compare_features

    worth = compare_features(read_settings(config, (() if config else SHORT) + assignments), store, out)
    if os.environ.get("RANK", "0") == "0":  # torchrun's number of this process
        click.echo(json.dumps(asdict(worth)) if as_json else worth.sentence())


def _report(run: Path, as_json: bool) -> None:
    from championship_sr.train.records.checkpoint import choose
    from championship_sr.train.records.folder import read_config
    from championship_sr.train.records.journal import read_metrics

    best = choose(run, "best")
    lines: dict[str, float] = next((event["psnr"] for event in read_metrics(run) if event["event"] == "reference"), {})
    if as_json:
        result = {"run": str(run), "best": {"step": best.step, "psnr": best.psnr}, "reference_psnr": lines}
        click.echo(json.dumps(result))
        return
    for method, psnr in lines.items():
        click.echo(f"{method:<12} {psnr:.3f} dB")
    student = read_config(run).student_entry
    scored = f"{best.psnr:.3f} dB " if best.psnr is not None else ""
    click.echo(f"{student.name if student else 'fusion':<12} {scored}at step {best.step}")
    click.echo(str(run / f"{student.name}.yaml" if student else run))
