"""What each expert costs: parameters, seconds and stored bytes; what single networks cost beside a fusion."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from championship_sr.evaluate.inference.inputs import Device
from championship_sr.evaluate.model import Model
from championship_sr.evaluate.scoring.complementarity import ExpertCost
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.images.results import ResultImages
from championship_sr.store.operations.info import info
from championship_sr.store.remote.cache import RemoteStoreReader
from championship_sr.store.shards.reader import Store

TIMED_PX = 64  # side of the window that an expert is timed on, LR pixels


def live_costs(experts: Sequence[LoadedExpert | ResultImages], device: Device) -> dict[str, ExpertCost]:
    """Expert -> its cost for one LR pixel, timed on a small window; not of those whose images are given."""
    return {
        expert.name: ExpertCost(expert.n_parameters, seconds_of(expert, torch.device(device)) / TIMED_PX**2)
        for expert in experts
        if isinstance(expert, LoadedExpert)
    }


def seconds_of(expert: LoadedExpert, device: torch.device) -> float:
    """Seconds for a window of TIMED_PX x TIMED_PX LR pixels, the second one after the first."""
    window, taken = torch.full((1, 3, TIMED_PX, TIMED_PX), 0.5, device=device), 0.0
    for _ in range(2):
        started = time.perf_counter()
        image, _ = expert(window)
        image.sum().item()  # waits for the device
        taken = time.perf_counter() - started
    return taken


def stored_costs(
    store: Store, names: Sequence[str], live: Sequence[LoadedExpert], device: Device
) -> dict[str, ExpertCost]:
    """The same for a store's experts, with the bytes that a pixel takes on disk; seconds for the loaded ones.

    live  the experts that can be run, or none
    """
    timed = live_costs(live, device)
    bytes_of = _stored_bytes(store)
    costs = {}
    for name in names:
        parameters = store.experts[name].notes.get("parameters")
        costs[name] = ExpertCost(parameters, timed.get(name, ExpertCost()).seconds, bytes_of.get(name) or None)
    return costs


def _stored_bytes(store: Store) -> dict[str, float]:
    """Expert -> the bytes that an LR pixel takes in the store."""
    if not isinstance(store, RemoteStoreReader):
        return {source.name: source.bytes_per_lr_px for source in info(Path(store.root)).sources}
    lr_px = sum(image.lr_size[0] * image.lr_size[1] for image in store.images)
    shards = range(store.manifest.n_shards)
    return {name: store.remote.n_bytes(name, shards) / lr_px for name in store.experts}


def cost_lines(model: Model, students: Sequence[LoadedExpert]) -> list[str]:
    """The cost of single networks beside that of the fusion with its experts, one line each."""
    if not students:
        return []
    window = torch.full((1, 3, TIMED_PX, TIMED_PX), 0.5)
    costs = {student.name: (student.n_parameters, _gflop(partial(student, window))) for student in students}
    parameters = sum(value.numel() for value in model.network.parameters())
    if not model.images:
        lr = window.to(model.device)
        whole = parameters + sum(expert.n_parameters for expert in model.experts)
        costs["fusion with its experts"] = whole, _gflop(lambda: model.run(lr.cpu()))
    shown = [f"{name} {count / 1e6:.2f} M parameters, {gflop:.2f} GFLOP" for name, (count, gflop) in costs.items()]
    return [f"for a window of {TIMED_PX} x {TIMED_PX}: {'; '.join(shown)}"]


def _gflop(call: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9
