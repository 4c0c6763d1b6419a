"""`bench extract`: the whole extraction against the bare forward passes of the same tiles, interleaved in one run."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from championship_sr.extract.config import ExpertConfig, ExtractConfig
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.experts.tiling import Tiling, as_input
from championship_sr.extract.experts.weights_file import weights_path
from championship_sr.extract.limits import bus_gbytes_per_second, share_of_bus
from championship_sr.extract.memory import peak_memory
from championship_sr.extract.run.job import run_expert
from championship_sr.extract.run.prepare import PairsWriter, prepare
from championship_sr.extract.run.register import describe
from championship_sr.extract.run.shares import Rank
from championship_sr.store.codecs import get_codec
from championship_sr.store.config import build
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.progress import progress
from championship_sr.store.shards.reader import Store

SILENT = Rank(rank=1)  # whose progress is not shown

Seconds = tuple[float, float]  # of the wall clock, of processor time


@dataclass(frozen=True)
class BenchConfig:
    """What is timed: `rounds` shards of `tiles` images of one tile each."""

    tile_px: int = 64  # side, LR pixels
    tiles: int = 2
    rounds: int = 3
    scale: int = 4
    container: str = "zarr"
    precision: str = "fp32"


@dataclass(frozen=True)
class ExpertBench:
    """One expert's figures; medians over the rounds."""

    name: str
    overhead: float  # seconds of the extraction over those of the bare forwards; 1.00 means no overhead
    cpu_overhead: float  # the same in seconds of processor time, which other programs disturb less
    px_per_second: float  # LR pixels, of the extraction
    flop_per_px: float  # of one LR pixel
    share_of_peak: float  # of what the device reaches in one large matrix product, by the whole extraction
    peak_tflops: float
    share_of_bus: float | None  # of the speed of pinned copies, by the encoded arrays; None on a device without a bus
    bus_gbytes_per_second: float | None
    peak_gib: float
    load_seconds: float  # building, loading and trying the network: once per expert, not in the overhead
    bare_seconds: tuple[float, ...]  # of each round
    extract_seconds: tuple[float, ...]
    bare_cpu_seconds: tuple[float, ...]
    extract_cpu_seconds: tuple[float, ...]


class Bench:
    """A store of noise in a temporary folder, in which experts are timed one after the other."""

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        """Writes the HR images, and times the pairs: decoding, LR images, hashes, shards; once for all experts."""
        self.config = config
        rng, side = np.random.default_rng(0), config.scale * config.tile_px
        for i in range(config.rounds * config.tiles):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{i:06}.png")
        values = {
            "store": str(folder / "store"),
            "data": {"hr": [str(folder)]},
            "scale": config.scale,
            "container": config.container,
            "images_per_shard": config.tiles,
            "tile_px": config.tile_px,
            "halo_px": 0,
            "precision": config.precision,
        }
        self.run = build(ExtractConfig, values, "bench extract")
        self.pairs_seconds = seconds(self._pairs)

    def _pairs(self) -> None:
        run = self.run
        self.manifest, pairs, _ = prepare(
            Path(run.store),
            run.data,
            scale=run.scale,
            container=run.container,
            images_per_shard=run.images_per_shard,
            first=False,
        )
        with PairsWriter(self.manifest, pairs, list(range(self.config.rounds)), first=False) as written:
            written.finish()

    def expert(self, entry: ExpertConfig, device: torch.device) -> ExpertBench:
        """Each round times a shard's bare forwards and its extraction, from the stored pairs to the record."""
        started, random = time.perf_counter(), not weights_path(entry).is_file()
        with (
            peak_memory(device) as peak,
            load_expert(entry, device, self.config.scale, random, precision=self.config.precision) as expert,
        ):
            load_seconds = time.perf_counter() - started
            self.manifest.add_expert(describe(expert, self.run, self._tiling))
            _run_bare(expert, self._lrs(expert, 0)[:1])  # the extra cost of the first forward of a size
            shards = progress(range(self.config.rounds), desc=entry.name, unit="round")
            bare, whole = zip(*(self._round(expert, shard) for shard in shards), strict=True)
            flop_per_px, peak_tflops = expert.flop_per_px(), expert.peak_tflops()
        (bare_wall, bare_cpu), (wall, cpu) = zip(*bare, strict=True), zip(*whole, strict=True)
        px_per_second = self._round_px / statistics.median(wall)
        return ExpertBench(
            name=entry.name,
            overhead=_ratio(wall, bare_wall),
            cpu_overhead=_ratio(cpu, bare_cpu),
            px_per_second=px_per_second,
            flop_per_px=flop_per_px,
            share_of_peak=px_per_second * flop_per_px / 1e12 / peak_tflops,
            peak_tflops=peak_tflops,
            share_of_bus=share_of_bus(px_per_second * self._bytes_per_px(entry.name), device),
            bus_gbytes_per_second=bus_gbytes_per_second(device),
            peak_gib=peak.gib,
            load_seconds=load_seconds,
            bare_seconds=bare_wall,
            extract_seconds=wall,
            bare_cpu_seconds=bare_cpu,
            extract_cpu_seconds=cpu,
        )

    def totals(self, results: Sequence[ExpertBench]) -> dict[str, float]:
        """The same figures for all experts one after the other, and the pairs before them."""
        wall, cpu = (seconds / self.config.rounds for seconds in self.pairs_seconds)
        bare_wall, bare_cpu = 0.0, 0.0
        for result in results:  # of medians, so that one disturbed round changes nothing
            one, other = statistics.median(result.bare_seconds), statistics.median(result.bare_cpu_seconds)
            bare_wall, wall = bare_wall + one, wall + one * result.overhead
            bare_cpu, cpu = bare_cpu + other, cpu + other * result.cpu_overhead
        return {
            "overhead": wall / bare_wall,
            "cpu_overhead": cpu / bare_cpu,
            "peak_gib": max(result.peak_gib for result in results),
            "px_per_second": self._round_px / wall,  # of images that all experts have seen
            "share_of_peak": sum(self._round_px * r.flop_per_px / r.peak_tflops for r in results) / 1e12 / wall,
            "pairs_seconds": self.pairs_seconds[0],
        }

    @property
    def _tiling(self) -> Tiling:
        return Tiling(self.config.tile_px, 0)

    @property
    def _round_px(self) -> int:
        return self.config.tiles * self.config.tile_px**2

    def _bytes_per_px(self, expert: str) -> int:
        """Bytes of an expert's encoded arrays for one LR pixel."""
        specs = self.manifest.specs(expert)
        return sum(get_codec(spec.codec).pixel_bytes(spec.channels) * spec.resolution**2 for spec in specs)

    def _round(self, expert: LoadedExpert, shard: int) -> tuple[Seconds, Seconds]:
        """Seconds of the bare forwards of a shard's tiles, and of the shard's extraction."""
        lrs = self._lrs(expert, shard)

        def bare() -> Seconds:
            with _unhooked(expert):
                return seconds(lambda: _run_bare(expert, lrs))

        def whole() -> Seconds:
            return seconds(lambda: run_expert(self.manifest, expert, [shard], self._tiling, rank=SILENT))

        if shard % 2:  # so that neither always runs on the warmer machine
            first = bare()
            return first, whole()
        first = whole()
        return bare(), first

    def _lrs(self, expert: LoadedExpert, shard: int) -> list[Tensor]:
        store = Store(self.manifest.root, experts=())
        images = range(shard * self.config.tiles, (shard + 1) * self.config.tiles)
        return [expert.pad(as_input(store.array(i, PAIRS, "lr").load()).to(expert.device)) for i in images]


@contextmanager
def opened(config: BenchConfig) -> Iterator[Bench]:
    """The benchmark's store, removed after the block."""
    with tempfile.TemporaryDirectory(prefix="bench-extract-") as folder:
        yield Bench(config, Path(folder))


def _ratio(ours: Sequence[float], bare: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, bare, strict=True))


def _run_bare(expert: LoadedExpert, padded: list[Tensor]) -> None:
    with torch.inference_mode():
        for image in padded:
            expert.bare(image)
        if expert.device.type == "cuda":
            torch.cuda.synchronize(expert.device)


@contextmanager
def _unhooked(expert: LoadedExpert) -> Iterator[None]:
    """The block without the taps' hooks on the expert."""
    expert.close()
    yield
    expert.open()


def seconds(work: Callable[[], object]) -> Seconds:
    """Wall and processor seconds of the work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
