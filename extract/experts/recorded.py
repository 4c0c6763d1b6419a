"""What a store's experts say now, for `store.live.compare_live`: each made again from what the store recorded of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from championship_sr.extract.config import ExpertConfig, load_expert_config
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.architecture import Origin, find_factory
from championship_sr.extract.experts.expert import CODE, LoadedExpert, load_expert
from championship_sr.extract.experts.tiling import as_input, run_tiled
from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.expert_files import EXPERT_FILE
from championship_sr.store.format.layout import PAIRS, source_dir
from championship_sr.store.format.variants import transform
from championship_sr.store.live import LiveDifference, compare_live
from championship_sr.store.shards.reader import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveCheck:
    """One expert's stored arrays compared with its current outputs."""

    name: str
    changed: tuple[str, ...]  # how the expert now differs from the store's entry
    differences: tuple[LiveDifference, ...]

    @property
    def faults(self) -> list[str]:
        """Everything that differs, one line each; empty if stored equals live."""
        far = [
            f"{self.name}: image {d.image}, {d.array}: {d.error:.3g} away from the live expert, allowed {d.allowed:.3g}"
            for d in self.differences
            if not d.within
        ]
        return [f"{self.name}: {text}" for text in self.changed] + far


def check_live(
    root: Path, n_images: int, names: Sequence[str] | None = None, device: str = "auto", trusted: Sequence[str] = ()
) -> list[LiveCheck]:
    """Runs the store's experts again on images from all over it, one expert after the other.

    trusted  modules that the store may name as architectures
    raises   WeightsError, ConfigError if an expert cannot be loaded as the store recorded it
    """
    result = []
    for name, entry in Store(root, names).experts.items():
        if "images" in entry.identity and not names:
            log.warning("%s: its images come from another program; it is not run again", name)
            continue
        store = Store(root, [name])
        config = recorded_config(entry, store_origin(root, name, trusted))
        with live_expert(entry, store.scale, pick_device(device), config, any_weights=True) as expert:
            changed = _changed(entry.identity, expert.identity)
            index = {image.id: i for i, image in enumerate(store.images)}

            def recompute(_name, image, variant, store=store, entry=entry, expert=expert, index=index):
                lr = store.array(index[image.id], PAIRS, "lr").load()
                return answer(expert, entry, transform(lr, variant))

            result.append(LiveCheck(name, tuple(changed), compare_live(store, recompute, n_images)))
    return result


def _changed(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each part of an expert's identity that differs; older stores do not record its code."""
    keys = [key for key in now if made.get(key) != now[key] and (key != CODE or key in made)]
    return [f"{key} is {made.get(key)} in the store, {now[key]} now" for key in keys]


def live_expert(
    entry: Expert, scale: int, device: torch.device, config: ExpertConfig, *, any_weights: bool = False
) -> LoadedExpert:
    """The expert that a store's entry describes, loaded again and run as it was run for the store.

    config       from `recorded_config`, or the user's own
    any_weights  accept other weights and other code than those with which the store was made
    raises       WeightsError if they are missing or others
    """
    made = entry.identity
    expert = load_expert(
        config,
        device,
        scale,
        bool(made.get("random_weights")),
        precision=made.get("precision", "fp32"),
        channels_last=bool(made.get("channels_last")),
        compiled=bool(made.get("compile")),
    )
    if not any_weights:
        try:
            _check_same(entry, expert)
        except WeightsError:
            expert.close()
            raise
    return expert


def _check_same(entry: Expert, expert: LoadedExpert) -> None:
    """Raises WeightsError if the expert's weights or the code of its network are not those that it was made with."""
    made, now = entry.identity, expert.identity
    digest, expected = now["weights_sha256"], made.get("weights_sha256")
    if digest != expected:
        raise WeightsError(
            f"expert {entry.name}: was made with weights of sha256 {str(expected)[:12]}, "
            f"but {expert.config.weights} now has {str(digest)[:12]}"
        )
    if CODE in made and made[CODE] != now.get(CODE):
        raise WeightsError(
            f"expert {entry.name}: the code of {expert.config.architecture} has changed since it was made "
            f"({made[CODE]} then, {now.get(CODE)} now)"
        )


def store_origin(root: Path, name: str, trusted: Sequence[str] = ()) -> Origin:
    """The origin of the architecture of a store's expert: its expert.yaml."""
    return Origin(source_dir(root, name) / EXPERT_FILE, tuple(trusted))


def recorded_config(entry: Expert, origin: Origin) -> ExpertConfig:
    """The configuration that the expert was extracted with, once what it names as its network may be imported.

    This is the gate between a description that anyone may have written and a configuration that is acted upon.

    raises  StoreError if the entry has none, RefusedArchitecture
    """
    recorded = entry.notes.get("config")
    if not isinstance(recorded, Mapping):
        raise StoreError(f"expert {entry.name}: its entry records no configuration (notes.config) to load it from")
    return vetted(load_expert_config(recorded), origin)


def vetted(config: ExpertConfig, origin: Origin) -> ExpertConfig:
    """The configuration, if each network that it names is one that such a file may name.

    raises  RefusedArchitecture, ConfigError
    """
    if config.architecture:
        find_factory(config.architecture, f"expert {config.name}: architecture", origin)
    if config.pretrain:
        find_factory(config.pretrain.network, f"expert {config.name}: pretrain.network", origin)
    return config


def answer(expert: LoadedExpert, entry: Expert, lr: np.ndarray) -> dict[str, np.ndarray]:
    """Array name -> (rows, cols, C) float32: what extraction would store of this LR image, before its codec."""
    tiling = entry.identity["tiling"]
    with torch.inference_mode():
        sr, features = run_tiled(expert, as_input(lr), tiling["tile_px"], tiling["halo_px"])
    outputs = {"sr": sr} | features
    return {name: np.ascontiguousarray(tensor[0].permute(1, 2, 0).numpy()) for name, tensor in outputs.items()}
