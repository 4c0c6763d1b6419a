"""Checkpoints of a run: written whole or not at all, a chosen few kept, and read back.

checkpoints/step-00001000/
  weights.safetensors    the moving average's weights: what was scored is what is kept and loaded
  training.safetensors   the network's own weights, the optimiser's moments, the random number generators' states
  state.json             step, PSNR and the rest, and the sha256 of all three
"""

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from championship_sr.extract.experts.architecture import Origin
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import CheckpointConfig, TrainConfig
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.records.folder import CONFIG_FILE, feature_channels, read_config, read_experts, scale_of

log = logging.getLogger(__name__)

CHECKPOINTS, DAMAGED = "checkpoints", ".damaged"
WEIGHTS_FILE, TRAINING_FILE, STATE_FILE = "weights.safetensors", "training.safetensors", "state.json"
Which = Literal["best", "last"] | int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; `psnr` is None where none was measured."""

    path: Path
    step: int
    psnr: float | None


@dataclass(frozen=True)
class LoadedFusion:
    """A trained network in eval mode with the weights that were scored, and what it was trained from."""

    network: nn.Module
    experts: tuple[str, ...]
    channels: dict[str, int]
    scale: int
    config: TrainConfig
    expert_entries: dict[str, Expert]
    checkpoint: Checkpoint


class Damaged(WeightsError):
    """A checkpoint whose files have changed since they were written."""


def folders(run: Path) -> list[Path]:
    """The folders of the run's checkpoints by step, whole or damaged; unfinished ones are not among them."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if not path.suffix)


def checkpoints(run: Path) -> list[Checkpoint]:
    """The run's checkpoints by step; those whose state is damaged are left out, with a line in the log."""
    whole = []
    for folder in folders(run):
        try:
            state = _read_state(folder)
        except Damaged as error:
            log.warning("skipping a checkpoint: %s", error)
        else:
            whole.append(Checkpoint(folder, state["step"], state["psnr"]))
    return whole


def choose(run: Path, which: Which) -> Checkpoint:
    """The checkpoint with the best PSNR, the last, or that of a step.

    Of equal ones the earliest is best, and of a run that was never validated the last.

    raises  StoreError if the run has no such checkpoint
    """
    known = checkpoints(run)
    if not known:
        raise StoreError(
            f"{run}: contains no checkpoint: not a training run, or one that stopped before its first checkpoint"
        )
    scored = [checkpoint for checkpoint in known if checkpoint.psnr is not None]
    if which == "best" and scored:
        return max(scored, key=lambda checkpoint: (checkpoint.psnr, -checkpoint.step))
    if which in ("best", "last"):
        return known[-1]
    steps = {checkpoint.step: checkpoint for checkpoint in known}
    if which not in steps:
        raise StoreError(f"{run}: no checkpoint of step {which} (has: {', '.join(map(str, steps))})")
    return steps[which]


def load_fusion(run: Path, which: Which = "best", trusted: Sequence[str] = ()) -> LoadedFusion:
    """The fusion network of a run, ready for inference.

    trusted  modules that the run may name as its network
    raises   StoreError if there is no such checkpoint, WeightsError if it is of another network or damaged,
             RefusedArchitecture if its network is one that the run names and the user does not
    """
    run = Path(run)
    checkpoint = choose(run, which)
    config, entries = read_config(run), read_experts(run)
    if config.student_entry:
        entry = run / f"{config.student_entry.name}.yaml"
        raise ConfigError(
            f"{run}: the run of a student, which is a single network; use it as an expert with --expert {entry}"
        )
    channels = {name: feature_channels(entry) for name, entry in entries.items()}
    scale = scale_of(entries)
    network = build_fusion(config.fusion, channels, scale, Origin(run / CONFIG_FILE, tuple(trusted)))
    check(checkpoint.path, (WEIGHTS_FILE,))
    load_weights(network, checkpoint.path / WEIGHTS_FILE)
    return LoadedFusion(network.eval(), tuple(entries), channels, scale, config, entries, checkpoint)


def check_experts(fusion: LoadedFusion, store: Store | Manifest) -> None:
    """Raises StoreError if the store has another scale, or an expert that differs from the run's."""
    if store.scale != fusion.scale:
        raise StoreError(f"{store.root}: scale {store.scale}; the run has {fusion.scale}")
    for name, trained in fusion.expert_entries.items():
        there = store.experts[name]
        deciding = ("weights_sha256", "taps") if fusion.config.fusion.features else ("weights_sha256",)
        for key in deciding:
            if there.identity.get(key) != trained.identity.get(key):
                raise StoreError(
                    f"{store.root}: expert {name} has another {key} than the one the run was trained with. "
                    f"Run: pipeline.py extract --rebuild {name}"
                )


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file, every key of it and no other.

    raises  WeightsError
    """
    copy_weights(network, read_tensors(path), path)


def copy_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: its weights do not fit the network in the configuration: {reason}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    raises  Damaged if it is missing or damaged
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise Damaged(f"{path}: missing") from None
    except SafetensorError as error:
        raise Damaged(f"{path}: damaged: {error}") from error


def save(
    run: Path,
    step: int,
    *,
    scored: nn.Module,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    psnr: float | None,
    extra: Mapping[str, Any],
) -> Checkpoint:
    """Writes the checkpoint of a step, whole or not at all.

    extra   everything else that a run needs to continue, for JSON
    raises  StoreError if it cannot be written, on a full disk for instance; the checkpoints before it are as they were
    """
    final = run / CHECKPOINTS / f"step-{step:08d}"
    unfinished = final.with_name(final.name + files.TMP)
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= _moments(network, optimiser) | _random_tensors()
    state = {"step": step, "psnr": psnr, "python_random": random.getstate(), "extra": dict(extra)}
    with files.written(final):
        try:
            files.remove(unfinished)
            unfinished.mkdir(parents=True)
            _save(scored.state_dict(), unfinished / WEIGHTS_FILE)
            _save(tensors, unfinished / TRAINING_FILE)
            hashes = {name: sha256_of(unfinished / name) for name in (WEIGHTS_FILE, TRAINING_FILE)}
            (unfinished / STATE_FILE).write_bytes(_with_hashes(state, hashes))
            files.publish(unfinished, final)
        except BaseException:
            files.remove(unfinished)  # the unfinished checkpoint may be what fills the disk
            raise
    return Checkpoint(final, step, psnr)


def rescored(checkpoint: Checkpoint, psnr: float, extra: Mapping[str, Any]) -> Checkpoint:
    """Adds the PSNR measured since the checkpoint was saved, and what else a run needs to continue."""
    path = checkpoint.path / STATE_FILE
    state = _read_state(checkpoint.path) | {"psnr": psnr, "extra": dict(extra)}
    hashes = parse_json(read_small(path)).get("sha256", {})
    with files.written(path):
        files.write_atomic(path, _with_hashes(state, hashes))
    return replace(checkpoint, psnr=psnr)


def restore(
    folder: Path, *, scored: nn.Module, network: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Checkpoint, dict[str, Any]]:
    """Puts everything back as it was when the checkpoint was saved; returns the checkpoint and `extra`.

    raises  Damaged before anything is changed
    """
    state, path = check(folder), folder / TRAINING_FILE
    weights, tensors = read_tensors(folder / WEIGHTS_FILE), read_tensors(path)
    copy_weights(scored, weights, folder / WEIGHTS_FILE)
    copy_weights(network, _under("network.", tensors), path)
    _restore_moments(network, optimiser, _under("optimiser.", tensors))
    _restore_random(_under("random.", tensors))
    version, numbers, gauss = state["python_random"]
    random.setstate((version, tuple(numbers), gauss))
    return Checkpoint(folder, state["step"], state["psnr"]), state["extra"]


def check(folder: Path, names: Sequence[str] = (WEIGHTS_FILE, TRAINING_FILE)) -> dict[str, Any]:
    """The state of a checkpoint whose files are those that were written.

    raises  Damaged naming the file that differs
    """
    state = _read_state(folder)
    hashes = parse_json(read_small(folder / STATE_FILE)).get("sha256", {})  # old checkpoints have none
    for name in names:
        path = folder / name
        if not path.exists():
            raise Damaged(f"{path}: missing")
        if name in hashes and sha256_of(path) != hashes[name]:
            raise Damaged(f"{path}: damaged: its bytes are not what was written (sha256)")
    return state


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that it no longer counts and its step can be saved again."""
    aside = folder.with_name(folder.name + DAMAGED)
    files.remove(aside)
    return folder.rename(aside)


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    try:
        state = parse_json(read_small(path))
        hashes = state.pop("sha256", None)
        if hashes and hashes[STATE_FILE] != _digest(state):
            raise ValueError("not what was written (sha256)")
        return {key: state[key] for key in ("step", "psnr", "python_random", "extra")}
    except FileNotFoundError:
        raise Damaged(f"{path}: missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{path.stat().st_size} bytes, {type(error).__name__}: {error}"
        raise Damaged(f"{path}: damaged ({reason})") from None


def _with_hashes(state: Mapping[str, Any], hashes: Mapping[str, str]) -> bytes:
    """The state's file: the state, and the sha256 of the other files and of itself."""
    return json.dumps({**state, "sha256": {**hashes, STATE_FILE: _digest(state)}}).encode()


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prune(run: Path, config: CheckpointConfig, milestones: Iterable[int]) -> None:
    """Removes checkpoints that are neither among the best nor the last nor milestones, and incomplete ones."""
    for torn in (run / CHECKPOINTS).glob("step-*" + files.TMP):
        files.remove(torn)
    saved = checkpoints(run)
    ranked = sorted((-checkpoint.psnr, checkpoint.step) for checkpoint in saved if checkpoint.psnr is not None)
    best = [step for _, step in ranked[: config.best]]
    kept = {*best, *(checkpoint.step for checkpoint in saved[-config.last :]), *milestones}
    for checkpoint in saved:
        if checkpoint.step not in kept:
            # renamed first: a half-removed folder must not look like a checkpoint
            doomed = checkpoint.path.with_name(checkpoint.path.name + files.TMP)
            checkpoint.path.rename(doomed)
            files.remove(doomed)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    except SafetensorError as error:  # what it makes of the system's error
        raise OSError(str(error)) from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _moments(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state under the parameters' names."""
    return {
        f"optimiser.{name}:{key}": torch.as_tensor(value)
        for name, parameter in network.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _restore_moments(network: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    index = {name: (number, parameter) for number, (name, parameter) in enumerate(network.named_parameters())}
    for key, value in tensors.items():
        name, _, part = key.rpartition(":")
        number, parameter = index[name]
        if value.shape == parameter.shape and part != "step":
            # in the parameter's own memory format: the fused optimiser goes by addresses
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        # which parameters are Muon's: as tensors on the device, each step would wait for them
        state.setdefault(number, {})[part] = value.item() if value.dtype is torch.bool else value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _random_tensors() -> dict[str, Tensor]:
    generator = np.random.get_state(legacy=False)
    keys, position = generator["state"]["key"], generator["state"]["pos"]
    states = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
    states["random.numpy_place"] = torch.tensor(
        [position, generator["has_gauss"], generator["gauss"]], dtype=torch.float64
    )
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["torch"])
    position, has_gauss, gauss = tensors["numpy_place"].tolist()
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
