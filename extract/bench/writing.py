"""`bench extract --writing`: how fast a process encodes, hashes and writes an expert's outputs.

The experts cost nearly nothing, so that their extraction consists of the host's work. It takes turns with only hashing
and writing arrays that are already encoded, as they come from a GPU, and with plain writes of the same number of bytes
in the same number of files, synced like a store's: no extraction is faster than its disk.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from championship_sr.extract.bench.overhead import SILENT, Seconds, seconds
from championship_sr.extract.config import ExpertConfig, ExtractConfig
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.experts.tiling import Tiling
from championship_sr.extract.limits import share_of_bus
from championship_sr.extract.run.job import run_expert
from championship_sr.extract.run.on_device import Arriving
from championship_sr.extract.run.register import DEFAULT_CODEC, describe
from championship_sr.extract.run.sink import Sink
from championship_sr.store.codecs import get_codec
from championship_sr.store.config import build
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.progress import progress
from championship_sr.store.shards.encoding import encode
from championship_sr.store.shards.writer import write_shard

CHANNELS = (180, 256)  # the narrowest and the widest features of the published experts
SHARDS = 4  # of one extraction: each is synced and recorded while the next is on its way
SEED = 1


@dataclass(frozen=True)
class WritingConfig:
    """What is timed: `rounds` extractions of `SHARDS` shards of `tiles` images, each of one tile."""

    tile_px: int = 256  # side, LR pixels
    tiles: int = 4
    rounds: int = 3
    scale: int = 4
    container: str = "zarr"


@dataclass(frozen=True)
class WritingBench:
    """The figures for one number of channels; medians over the rounds, float16 features and images."""

    channels: int
    px_per_second: float  # LR pixels
    cpu_px_per_second: float  # LR pixels per second of processor time: the rate of one core
    encoded_px_per_second: float  # if the arrays are already encoded: only hashing and writing
    encoded_cpu_px_per_second: float
    mb_per_second: float
    disk_mb_per_second: float  # plain synced writes of the same number of bytes
    share_of_bus: float | None  # of the speed of pinned copies, by the encoded arrays; None on a device without a bus
    seconds: tuple[float, ...]  # of each round's extraction


class NearlyFree(nn.Module):
    """Noise instead of an SR image and features, made once for each size, so that a forward takes no time."""

    def __init__(self, channels: int, upscale: int) -> None:
        super().__init__()
        self.features, self.sr = Noise(channels), Noise(3, upscale)

    def forward(self, lr: Tensor) -> Tensor:
        self.features(lr)
        return self.sr(lr)


class Noise(nn.Module):
    """0..1, (B, channels, factor * h, factor * w) beside LR (B, 3, h, w)."""

    def __init__(self, channels: int, factor: int = 1) -> None:
        super().__init__()
        self._channels, self._factor = channels, factor
        self._kept: dict[torch.Size, Tensor] = {}

    def forward(self, lr: Tensor) -> Tensor:
        if lr.shape not in self._kept:
            batch, _, rows, cols = lr.shape
            size = batch, self._channels, self._factor * rows, self._factor * cols
            self._kept[lr.shape] = torch.rand(size, generator=torch.Generator().manual_seed(SEED)).to(lr.device)
        return self._kept[lr.shape]


def bench_writing(config: WritingConfig, device: torch.device, channels: int) -> WritingBench:
    """The figures of an expert with this many features; everything written is removed."""
    entry = ExpertConfig(
        name=f"nearly-free-{channels}",
        weights="nearly-free",  # no such file: its weights are random
        tap="features",
        architecture=f"{__name__}:NearlyFree",
        hyperparameters={"channels": channels, "upscale": config.scale},
    )
    n_px = SHARDS * config.tiles * config.tile_px**2
    n_bytes = n_px * 2 * (channels + 3 * config.scale**2)
    rounds: list[tuple[float, ...]] = []
    with load_expert(entry, device, config.scale, random_weights=True) as expert:
        for _ in progress(range(config.rounds + 1), desc=entry.name, unit="round"):
            with _store(config, expert) as manifest:
                whole = seconds(partial(_extract, manifest, expert, config))
            with _store(config, expert) as manifest:
                handed_over = _handed_over(manifest, expert.name)
                plain = _plain_writes(manifest.root, n_bytes, 2 * SHARDS * config.tiles)
            rounds.append((*whole, *handed_over, plain))
    wall, cpu, encoded, encoded_cpu, plain = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    return WritingBench(
        channels=channels,
        px_per_second=n_px / wall,
        cpu_px_per_second=n_px / cpu,
        encoded_px_per_second=n_px / encoded,
        encoded_cpu_px_per_second=n_px / encoded_cpu,
        mb_per_second=n_bytes / wall / 1e6,
        disk_mb_per_second=n_bytes / plain / 1e6,
        share_of_bus=share_of_bus(n_bytes / wall, device),
        seconds=tuple(whole for whole, *_ in rounds[1:]),  # the first round warms up
    )


@contextmanager
def _store(config: WritingConfig, expert: LoadedExpert) -> Iterator[Manifest]:
    """A store of noise whose pairs are written, and the expert's shards are not."""
    rng, size = np.random.default_rng(SEED), (config.tile_px, config.tile_px)
    images = [
        Image(f"noise{i}", "", size, f"{i:064x}", None, i // config.tiles, "file") for i in range(SHARDS * config.tiles)
    ]
    with tempfile.TemporaryDirectory(prefix="bench-writing-") as folder:
        manifest = Manifest.create(Path(folder), scale=config.scale, container=config.container, images=images)
        for shard in range(SHARDS):
            with write_shard(manifest, PAIRS, shard) as out:
                for image in manifest.images_of(shard):
                    out.add(image.id, {"lr": rng.integers(0, 256, (*size, 3), np.uint8)})
        values = {"store": folder, "data": {"lr": [folder]}, "scale": config.scale}
        run = build(ExtractConfig, values, "bench extract")
        manifest.add_expert(describe(expert, run, Tiling(config.tile_px, 0)))
        yield manifest


def _extract(manifest: Manifest, expert: LoadedExpert, config: WritingConfig) -> None:
    run_expert(manifest, expert, list(range(SHARDS)), Tiling(config.tile_px, 0), rank=SILENT)


def _handed_over(manifest: Manifest, expert: str) -> Seconds:
    """Seconds of all shards whose arrays come encoded."""
    rows, cols = manifest.images[0].lr_size
    noise = {
        spec.name: torch.rand(rows * spec.resolution, cols * spec.resolution, spec.channels)
        for spec in manifest.specs(expert)
    }
    codec = get_codec(DEFAULT_CODEC)
    encoded = {name: encode(values, codec, {}) for name, values in noise.items()}
    arrays = Arriving(encoded, {}, lambda: None, lambda name: None)

    def write() -> None:
        with Sink(manifest, expert) as sink:
            for shard in range(SHARDS):
                sink.open(shard)
                for image in manifest.images_of(shard):
                    sink.add(image.id, arrays, "identity")
                sink.close()

    return seconds(write)


def _plain_writes(folder: Path, n_bytes: int, n_files: int) -> float:
    """Seconds to write and sync so many bytes."""
    content = np.random.default_rng(SEED).bytes(n_bytes // n_files)
    started = time.perf_counter()
    for i in range(n_files):
        with open(folder / f"plain{i}", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - started
