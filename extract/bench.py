"""`bench extract`: the whole extraction against the bare forward passes of the same tiles, interleaved in one run."""

import statistics
import tempfile
import time
from collections.abc import Sequence
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
    px_per_second: float  # LR pixels, of the extraction
    peak_gib: float
    load_seconds: float  # building, reading weights, trying them: once an expert, not in the overhead
    bare_seconds: tuple[float, ...]  # of each round
    extract_seconds: tuple[float, ...]


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
        bare, whole = [], []
        for shard in range(rounds):
            padded = [expert.pad(as_input(lr).to(device)) for lr in lrs[shard]]
            steps = [lambda p=padded: bare.append(_bare_seconds(expert, p))]
            steps.append(lambda s=shard: whole.append(_extract_seconds(manifest, expert, s, tiling)))
            for step in steps[:: 1 if shard % 2 else -1]:  # neither always has the warmer machine
                step()
        return ExpertBench(
            name=config.name,
            overhead=statistics.median(w / b for w, b in zip(whole, bare, strict=True)),
            px_per_second=tiles * tile_px**2 / statistics.median(whole),
            peak_gib=peak_memory_gib(device),
            load_seconds=load_seconds,
            bare_seconds=tuple(bare),
            extract_seconds=tuple(whole),
        )


def totals(results: Sequence[ExpertBench]) -> dict[str, float]:
    """The same figures for all experts one after the other."""
    bare, whole = (sum(sum(getattr(r, key)) for r in results) for key in ("bare_seconds", "extract_seconds"))
    px = sum(r.px_per_second * statistics.median(r.extract_seconds) for r in results)
    seconds = sum(statistics.median(r.extract_seconds) for r in results)
    return {
        "overhead": whole / bare,
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


def _bare_seconds(expert: LoadedExpert, padded: list[Tensor]) -> float:
    expert.close()  # without the taps' hooks
    started = time.perf_counter()
    with torch.inference_mode():
        for image in padded:
            expert.bare(image)
        if expert.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    expert.open()
    return seconds


def _extract_seconds(manifest: Manifest, expert: LoadedExpert, shard: int, tiling: Tiling) -> float:
    started = time.perf_counter()
    run_expert(manifest, expert, [shard], tiling)
    return time.perf_counter() - started
