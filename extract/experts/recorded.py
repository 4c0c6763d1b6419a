"""What a store's experts say now, for `store.live.compare_live`: each made again from what the store recorded of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from championship_sr.extract.config import ExpertConfig, load_expert_config
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.experts.tiling import as_input, run_tiled
from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.variants import transform
from championship_sr.store.live import LiveDifference, compare_live
from championship_sr.store.shards.reader import Store


@dataclass(frozen=True)
class LiveCheck:
    """One expert's stored arrays beside its answers now."""

    name: str
    changed: tuple[str, ...]  # what the expert is now that the store's entry does not say
    differences: tuple[LiveDifference, ...]

    @property
    def faults(self) -> list[str]:
        """Everything that does not fit, a line each; empty if stored equals live."""
        far = [
            f"{self.name}: image {d.image}, {d.array}: {d.error:.3g} away from the live expert, allowed {d.allowed:.3g}"
            for d in self.differences
            if not d.within
        ]
        return [f"{self.name}: {text}" for text in self.changed] + far


def check_live(root: Path, n_images: int, names: Sequence[str] | None = None, device: str = "auto") -> list[LiveCheck]:
    """Runs the store's experts again on images from all over it, one expert after the other.

    raises  WeightsError, ConfigError if an expert cannot be loaded by what the store recorded of it
    """
    result = []
    for name, entry in Store(root, names).experts.items():
        store = Store(root, [name])
        with live_expert(entry, store.scale, pick_device(device), any_weights=True) as expert:
            made, now = entry.identity, expert.identity
            changed = [
                f"{key} is {made.get(key)} in the store, {now[key]} now" for key in now if made.get(key) != now[key]
            ]
            index = {image.id: i for i, image in enumerate(store.images)}

            def recompute(_name, image, variant, store=store, entry=entry, expert=expert, index=index):
                lr = store.array(index[image.id], PAIRS, "lr").load()
                return answer(expert, entry, transform(lr, variant))

            result.append(LiveCheck(name, tuple(changed), compare_live(store, recompute, n_images)))
    return result


def live_expert(
    entry: Expert, scale: int, device: torch.device, config: ExpertConfig | None = None, *, any_weights: bool = False
) -> LoadedExpert:
    """The expert that a store's entry describes, loaded again and run as it was run for the store.

    config       where its weights are now; None: where the entry says
    any_weights  other weights than the store was made with are taken too
    raises       WeightsError if they are missing or others, StoreError if the entry does not say where they were
    """
    made = entry.identity
    expert = load_expert(
        config or recorded_config(entry),
        device,
        scale,
        bool(made.get("random_weights")),
        precision=made.get("precision", "fp32"),
        channels_last=bool(made.get("channels_last")),
        compiled=bool(made.get("compile")),
    )
    found, expected = expert.identity["weights_sha256"], made.get("weights_sha256")
    if found != expected and not any_weights:
        expert.close()
        raise WeightsError(
            f"expert {entry.name}: was made with other weights (sha256 {str(expected)[:12]}) "
            f"than {expert.config.weights} holds now ({str(found)[:12]})"
        )
    return expert


def recorded_config(entry: Expert) -> ExpertConfig:
    """The configuration that the expert was extracted with.

    raises  StoreError if the entry has none
    """
    if not entry.notes.get("config"):
        raise StoreError(f"expert {entry.name}: its entry holds no configuration (notes.config) to load it again from")
    return load_expert_config(entry.notes["config"])


def answer(expert: LoadedExpert, entry: Expert, lr: np.ndarray) -> dict[str, np.ndarray]:
    """Array name -> (rows, cols, C) float32: what extraction would store of this LR image, before its codec."""
    tiling = entry.identity["tiling"]
    with torch.inference_mode():
        sr, features = run_tiled(expert, as_input(lr), tiling["tile_px"], tiling["halo_px"])
    outputs = {"sr": sr} | features
    return {name: np.ascontiguousarray(tensor[0].permute(1, 2, 0).numpy()) for name, tensor in outputs.items()}
