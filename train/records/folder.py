"""The folder of a run: its configuration, its experts, and whether it can be resumed.

config.yaml     the resolved configuration, the section `train`
experts.yaml    the store's entry of each expert, in the order of the network's inputs
run.yaml        where the store was, how many images it had, the run that this one began from, and what trained
images.jsonl    see train/records/seen.py
metrics.jsonl   one line an event
tensorboard/    the same to look at
checkpoints/    see train/records/checkpoint.py
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from championship_sr.store.config import build, dump_yaml, read_yaml, to_plain
from championship_sr.store.disk import files
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.expert_files import parse_expert
from championship_sr.store.remote.bucket import store_place
from championship_sr.train.config import TrainConfig

log = logging.getLogger(__name__)

CONFIG_FILE, EXPERTS_FILE, RUN_FILE, LOCK_FILE = "config.yaml", "experts.yaml", "run.yaml", "run.lock"
PAIRS_STORE = "pairs.store"  # the store with only the images, if folders are trained from
BEGINNINGS = ("run.", EXPERTS_FILE, PAIRS_STORE)  # of the names in a run's folder before it has its configuration
FREE_TO_CHANGE = (
    "compile",
    "device",
    "data.threads",
    "data.buffer_mib",
    "data.ahead_mib",
    "data.cache",
    "data.cache_gb",
    "log_every",
    "tensorboard",
)


def read_config(run: Path) -> TrainConfig:
    """The resolved configuration of a run."""
    path = run / CONFIG_FILE
    return build(TrainConfig, read_yaml(path).get("train") or {}, str(path), "train")


def read_experts(run: Path) -> dict[str, Expert]:
    """The store's entries of the experts that the run was trained from, in the order of the network's inputs."""
    path = run / EXPERTS_FILE
    return {name: parse_expert(entry, f"{path}: {name}") for name, entry in read_yaml(path).items()}


def read_store(run: Path) -> Path | str:
    """Where the run's store was when it began: a folder, or a URL."""
    return store_place(read_yaml(run / RUN_FILE)["store"])


def read_image_count(run: Path) -> int | None:
    """How many images the run's store had when the run began; images added since come after them."""
    return read_yaml(run / RUN_FILE).get("images") if (run / RUN_FILE).exists() else None


def check_folder(run: Path) -> None:
    """Raises ConfigError if the folder exists and holds anything other than a run."""
    if (run / CONFIG_FILE).exists() or not run.exists():
        return
    if not run.is_dir() or any(not path.name.startswith(BEGINNINGS) for path in run.iterdir()):
        raise ConfigError(f"{run}: not a run and not empty; choose another --out")


def begin(
    run: Path,
    config: TrainConfig,
    entries: Mapping[str, Expert],
    store: Path | str,
    *,
    trained: bool,
    resume: bool,
    changes: bool,
    images: int | None = None,
    teacher: Expert | None = None,
    init: Path | None = None,
) -> None:
    """Writes what the run is made of, or checks that it may continue with this configuration and these experts.

    trained  whether it has a checkpoint; a run without one starts again
    resume   continue an existing run
    changes  accept a configuration that differs, except in the network
    images   how many the store has; an existing run keeps to those that the store had then
    teacher  what the run learns from besides HR
    init     the run from which this one starts
    raises   ConfigError or StoreError naming what differs
    """
    taught_by = {"teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint}} if teacher else {}
    if trained and not resume:
        raise ConfigError(f"{run}: already holds a run. Continue it with --resume {run}, or choose another --out")
    if trained:
        _check_config(run, config, changes)
        _check_experts(run, entries)
        if taught_by.get("teacher") != read_yaml(run / RUN_FILE).get("teacher"):
            raise StoreError(f"{run}: the store's teacher is not the one the run started with; choose another --out")
        images, init = read_image_count(run), read_yaml(run / RUN_FILE).get("init", init)
    run.mkdir(parents=True, exist_ok=True)
    files.write_atomic(run / EXPERTS_FILE, dump_yaml({name: asdict(entry) for name, entry in entries.items()}).encode())
    made_by = {name: version(name) for name in ("torch", "numpy")}
    begun = {"init": str(init)} if init else {}
    record = {"store": store, "images": images, **taught_by, **begun, "versions": made_by}
    files.write_atomic(run / RUN_FILE, dump_yaml(record).encode())
    # last: this file makes the folder a run
    files.write_atomic(run / CONFIG_FILE, dump_yaml({"train": to_plain(config)}).encode())


def scale_of(entries: Mapping[str, Expert]) -> int:
    """How much larger the experts' images are than LR."""
    return next(spec.resolution for entry in entries.values() for spec in entry.arrays if spec.name == "sr")


def feature_channels(entry: Expert) -> int:
    """How many channels the expert's features have, all its taps together; 0 for an expert without features."""
    return sum(spec.channels for spec in entry.arrays if spec.name != "sr")


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one of dotted paths."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        result |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return result


def _check_config(run: Path, config: TrainConfig, changes: bool) -> None:
    old, new = flat(to_plain(read_config(run))), flat(to_plain(config))
    differing = [
        f"{key} is {old.get(key)} there, {new.get(key)} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE
    ]
    fixed = [line for line in differing if line.startswith(("fusion.", "experts ", "teacher.", "student"))]
    if fixed or (differing and not changes):
        raise ConfigError(f"{run}: the run has another configuration: {'; '.join(fixed or differing)}")
    for line in differing:
        log.warning("%s: %s", run, line)


def _check_experts(run: Path, entries: Mapping[str, Expert]) -> None:
    known = read_experts(run)
    if list(known) != list(entries):
        raise StoreError(f"{run}: trained from the experts {', '.join(known)}, not from {', '.join(entries)}")
    for name, entry in entries.items():
        there, now = feature_channels(known[name]), feature_channels(entry)
        if there != now:
            raise StoreError(
                f"{run}: the store's {name} has {now} feature channels, but the run's network takes {there}"
            )
        old, new = flat(known[name].identity), flat(entry.identity)
        keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if keys or known[name].fingerprint != entry.fingerprint:
            differing = ", ".join(keys) or "its arrays"
            raise StoreError(f"{run}: the store's {name} is not the one the run started with: {differing} differ")
