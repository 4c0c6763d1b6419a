"""`bench extract`: the whole extraction against the bare forward passes of the same tiles, interleaved in one run."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from extract.check import peak_memory_gib, reset_peak_memory
from extract.config import DataConfig, ExpertConfig, ExtractConfig
from extract.entry import describe
from extract.experts import LoadedExpert, load_expert
from extract.prepare import sha256_of
from extract.run import run_expert
from extract.statedict import weights_path
from extract.tiling import Tiling, as_input
from store.layout import PAIRS
from store.manifest import Image, Manifest
from store.writer import write_shard


@dataclass(frozen=True)
class ExpertBench:
    """One expert's figures; medians over the rounds."""

    name: str
    overhead: float  # extraction's seconds over the bare forwards', 1.00 is free
    cpu_overhead: float  # the same in seconds of processor time, which other programs disturb less
    px_per_second: float  # LR pixels, of the extraction
    peak_gib: float
    load_seconds: float  # building, reading weights, trying them: once an expert, not in the overhead
    bare_seconds: tuple[float, ...]  # of each round
    extract_seconds: tuple[float, ...]
    bare_cpu_seconds: tuple[float, ...]
    extract_cpu_seconds: tuple[float, ...]


def bench_expert(
    config: ExpertConfig, device: torch.device, *, scale: int, tile_px: int, tiles: int, rounds: int, container: str
) -> ExpertBench:
    """Each round times the bare forwards of a shard's tiles, and the extraction of that shard from pairs to record."""
    started = time.perf_counter()
    reset_peak_memory(device)
    with (
        load_expert(config, device, scale, not weights_path(config).is_file()) as expert,
        tempfile.TemporaryDirectory(prefix="bench-extract-") as folder,
    ):
        load_seconds = time.perf_counter() - started
        manifest, lrs = _store(Path(folder) / "store", scale, tile_px, tiles, rounds, container)
        run = ExtractConfig(store=folder, data=DataConfig(hr=(folder,)), scale=scale, tile_px=tile_px, halo_px=0)
        tiling = Tiling(tile_px, 0)
        manifest.add_expert(describe(expert, run, tiling))
        bare: list[tuple[float, float]] = []  # wall seconds, processor seconds
        whole: list[tuple[float, float]] = []
        for shard in range(rounds):
            padded = [expert.pad(as_input(lr).to(device)) for lr in lrs[shard]]
            steps = [lambda p=padded: bare.append(_seconds(lambda: _run_bare(expert, p), expert))]
            steps.append(lambda s=shard: whole.append(_seconds(lambda: run_expert(manifest, expert, [s], tiling))))
            for step in steps[:: 1 if shard % 2 else -1]:  # neither always has the warmer machine
                step()
        (bare_wall, bare_cpu), (wall, cpu) = zip(*bare, strict=True), zip(*whole, strict=True)
        return ExpertBench(
            name=config.name,
            overhead=_ratio(wall, bare_wall),
            cpu_overhead=_ratio(cpu, bare_cpu),
            px_per_second=tiles * tile_px**2 / statistics.median(wall),
            peak_gib=peak_memory_gib(device),
            load_seconds=load_seconds,
            bare_seconds=bare_wall,
            extract_seconds=wall,
            bare_cpu_seconds=bare_cpu,
            extract_cpu_seconds=cpu,
        )


def _ratio(ours: Sequence[float], bare: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, bare, strict=True))


def totals(results: Sequence[ExpertBench]) -> dict[str, float]:
    """The same figures for all experts one after the other."""

    def total(key: str) -> float:
        return sum(sum(getattr(result, key)) for result in results)

    px = sum(r.px_per_second * statistics.median(r.extract_seconds) for r in results)
    seconds = sum(statistics.median(r.extract_seconds) for r in results)
    return {
        "overhead": total("extract_seconds") / total("bare_seconds"),
        "cpu_overhead": total("extract_cpu_seconds") / total("bare_cpu_seconds"),
        "peak_gib": max(r.peak_gib for r in results),
        "px_per_second": px / seconds / len(results),  # of images that all experts have seen
    }


def _store(
    root: Path, scale: int, tile_px: int, tiles: int, rounds: int, container: str
) -> tuple[Manifest, list[list[np.ndarray]]]:
    """A store of noise: `rounds` shards of `tiles` images; and their LR images."""
    rng = np.random.default_rng(0)
    lrs = [[rng.integers(0, 256, (tile_px, tile_px, 3), np.uint8) for _ in range(tiles)] for _ in range(rounds)]
    hr = np.zeros((scale * tile_px, scale * tile_px, 3), np.uint8)
    images = [
        Image(f"{shard}-{i}", "noise", (tile_px, tile_px), sha256_of(lr), sha256_of(hr), shard, "bicubic")
        for shard, group in enumerate(lrs)
        for i, lr in enumerate(group)
    ]
    manifest = Manifest.create(root, scale=scale, container=container, images=images)
    for shard, group in enumerate(lrs):
        with write_shard(manifest, PAIRS, shard) as out:
            for i, lr in enumerate(group):
                out.add(f"{shard}-{i}", {"lr": lr, "hr": hr})
    return manifest, lrs


def _run_bare(expert: LoadedExpert, padded: list[Tensor]) -> None:
    with torch.inference_mode():
        for image in padded:
            expert.bare(image)
        if expert.device.type == "cuda":
            torch.cuda.synchronize()


def _seconds(work: Callable[[], object], unhooked: LoadedExpert | None = None) -> tuple[float, float]:
    """Wall and processor seconds of the work; without the taps' hooks on the expert, if one is given."""
    if unhooked:
        unhooked.close()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    if unhooked:
        unhooked.open()
    return seconds
