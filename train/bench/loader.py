"""How fast a store is read, compared with a plain copy of the same bytes and with other formats.

All contenders serve windows at the sizes of a full extraction: features of 180, 180, 180 and 256 channels at
64 x 64, four SR images and HR at 256 x 256. They take turns, round after round, so that changes in the
machine's speed affect all of them; each figure is the median of the rounds.
"""

import gc
import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from championship_sr.extract.config import FULL_SIZE_CHANNELS
from championship_sr.extract.limits import now
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.progress import progress
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard
from championship_sr.train.bench.peers import PEERS, contenders
from championship_sr.train.data.loader import MIB, MOST_SLOTS, Buffers, Loader, Sampling
from championship_sr.train.data.slots import room

SCALE, CROP_PX, IMAGE_PX = 4, 64, 256
CPU = torch.device("cpu")
SEED = 1
PATCHES = 64  # that pt_files and the peers hold
COPIED_BATCHES = 4  # among which memcpy alternates: more than the processor's caches hold
COLD_STEPS = 10
COLD_ORDER = {"crops_per_visit": 4, "pool_visits": 1}  # for a store that is larger than memory: docs/training.md
READ_BYTES = 8 * MIB  # of one sequential read
RSS_STEPS = 50


@dataclass
class Runner:
    """One contender with one number of worker processes, and its samples a second in each round."""

    name: str
    workers: int
    open: Callable[[], Iterator[Any]]
    batch_size: int
    sample_bytes: int
    untimed: int  # batches that may have been ready before the clock starts
    rates: list[float] = field(default_factory=list)


def bench_loader(
    folder: Path | None = None,
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    batch_size: int = 8,
    threads: int = 2,
    n_images: int = 12,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """The figures of one run; the synthetic stores and everything else that it writes are removed at its end.

    folder   where to write them (about 6 GB); None: where temporary files go
    seconds  that a contender is measured in a round
    device   on a GPU, also measure batches decoded there, and its copies from pinned memory
    """
    options = {"batch_size": batch_size, "crop_px": CROP_PX, "seed": SEED, "threads": threads}
    with tempfile.TemporaryDirectory(dir=folder) as made, progress(unit="measurement", desc="bench") as bar:
        stores = {name: write_store(Path(made) / name, name, n_images) for name in ("zarr", "hdf5")}
        warm = warm_rounds(stores, options, rounds, seconds, bar, device)
        cold = [cold_round(stores["zarr"], options | COLD_ORDER, bar) for _ in range(rounds)]
        scattered = cold_figures([cold_round(stores["zarr"], options, bar) for _ in range(rounds)])
        rss = _in_fresh_process(peak_rss_mib, stores["zarr"], options)
    left_out = sorted(PEERS.keys() - warm["samples_per_second"].keys())
    return {
        **warm,
        **cold_figures(cold),
        "cold_order": COLD_ORDER,
        "cold_scattered": scattered,
        "peak_rss_mib": rss,
        "left_out": left_out,
        "rounds": rounds,
        **options,
    }


def warm_rounds(
    stores: dict[str, Path], options: dict[str, Any], rounds: int, seconds: float, bar: tqdm, device: torch.device = CPU
) -> dict[str, Any]:
    """The rates of every contender from memory; nothing that they opened stays open after the call."""
    loader = opened(stores["zarr"], options)
    runners = list(_runners(stores["zarr"].parent, loader, Store(stores["hdf5"])))
    if device.type != "cpu":
        runners += on_device(opened(stores["zarr"], options, device))
    bar.reset(total=rounds * (len(runners) + 4))
    for _ in range(rounds):
        for runner in runners:
            runner.rates.append(samples_per_second(runner, seconds))
            bar.update()
    return warm_figures(runners)


def write_store(root: Path, container: str, n_images: int) -> Path:
    """A store of random images at full-size shapes, one shard an image, every codec the default."""
    rng = np.random.default_rng(SEED)
    size, large = (IMAGE_PX, IMAGE_PX), (IMAGE_PX * SCALE, IMAGE_PX * SCALE, 3)
    images = [Image(f"random{i}", "", size, f"{i:064x}", f"{i:064x}", i, "file") for i in range(n_images)]
    manifest = Manifest.create(root, scale=SCALE, container=container, images=images)
    for name, channels in FULL_SIZE_CHANNELS.items():
        arrays = (ArraySpec("sr", 3, SCALE, "float16"), ArraySpec("features", channels, 1, "float16"))
        manifest.add_expert(Expert(name, arrays, {"random": True}))
    for source in manifest.sources:
        for image in images:
            with write_shard(manifest, source, image.shard) as out:
                if source == PAIRS:
                    lr, hr = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((*size, 3), large))
                    out.add(image.id, {"lr": lr, "hr": hr})
                else:
                    features = rng.random((*size, FULL_SIZE_CHANNELS[source]), np.float32)
                    out.add(image.id, {"sr": rng.random(large, np.float32), "features": features})
    return root


def _runners(folder: Path, loader: Loader, hdf5: Store) -> Iterator[Runner]:
    """Every contender, those in a DataLoader once without and once with worker processes."""
    batch_size = loader.sampler.batch_size
    raw_bytes = loader.batch_bytes // batch_size
    yield Runner("memcpy", 0, partial(copies, loader), batch_size, raw_bytes, MOST_SLOTS)
    yield Runner("store", 0, loader.filled, batch_size, raw_bytes, MOST_SLOTS)
    yield Runner("store_decoded", 0, loader.batches, batch_size, raw_bytes, MOST_SLOTS)
    places = [place for step in range(-(-PATCHES // batch_size)) for place in loader.places(step)]
    for name, opened in contenders(folder, loader.store, hdf5, places, CROP_PX):
        n_bytes = float32_bytes(loader) if name == "pt_files" else raw_bytes
        for workers in (0, loader.threads):
            batches = opened(workers, batch_size)
            yield Runner(name, workers, partial(iter, batches), batch_size, n_bytes, 1 + 2 * workers)


def opened(root: Path, options: Mapping[str, Any], device: torch.device = CPU) -> Loader:
    """A loader of the store; the options are those of its sampling, and `threads`."""
    sampling = {key: value for key, value in options.items() if key != "threads"}
    return Loader(Store(root), Sampling(**sampling), device=device, buffers=Buffers(options["threads"]))


def on_device(loader: Loader) -> list[Runner]:
    """Batches decoded on the device, and copies of the same bytes from pinned memory to it: the limit of its bus."""
    sizes = loader.sampler.batch_size, loader.batch_bytes // loader.sampler.batch_size
    return [
        Runner("store_on_device", 0, partial(synchronised, loader.batches, loader.device), *sizes, MOST_SLOTS),
        Runner("device_copy", 0, partial(synchronised, partial(pinned_copies, loader), loader.device), *sizes, 1),
    ]


def synchronised(batches: Callable[[], Iterator[Any]], device: torch.device) -> Iterator[Any]:
    """The same, yielding each once the device has it."""
    for batch in batches():
        now(device)
        yield batch


def pinned_copies(loader: Loader) -> Iterator[torch.Tensor]:
    """A raw batch's bytes, copied to the device again and again."""
    memory = room(loader.batch_bytes, pinned=loader.on_gpu)
    while True:
        yield memory.to(loader.device, non_blocking=True)


def float32_bytes(loader: Loader) -> int:
    """Bytes of one sample whose every number is a float32."""
    return 4 * sum(prod(windows.shape) for windows in loader.windows.values())


def copies(loader: Loader) -> Iterator[None]:
    """Plain copies of whole raw batches between buffers in memory, with as many threads as the loader."""
    sources = [room(loader.batch_bytes, pinned=False).fill_(1).numpy() for _ in range(COPIED_BATCHES)]
    targets = [room(loader.batch_bytes, pinned=False).numpy() for _ in range(loader.threads + 1)]

    def copy(step: int) -> None:
        np.copyto(targets[step % len(targets)], sources[step % len(sources)])

    with ThreadPoolExecutor(loader.threads) as pool:
        running = deque(pool.submit(copy, step) for step in range(loader.threads))
        for step in count(loader.threads):
            yield running.popleft().result()
            running.append(pool.submit(copy, step))


def samples_per_second(runner: Runner, seconds: float) -> float:
    """The contender's rate over this many seconds, or to the end of its epoch."""
    batches = runner.open()
    deque(islice(batches, runner.untimed), maxlen=0)
    began, served = time.perf_counter(), 0
    for _ in batches:
        served += runner.batch_size
        if time.perf_counter() - began >= seconds:
            break
    rate = served / (time.perf_counter() - began)
    if hasattr(batches, "close"):
        batches.close()
    return rate


def warm_figures(runners: list[Runner]) -> dict[str, Any]:
    """The results of the rounds in memory, each contender with its best number of worker processes."""
    best = {runner.name: runner for runner in sorted(runners, key=lambda runner: median(runner.rates))}
    rates = {name: median(runner.rates) for name, runner in best.items()}
    return {
        "samples_per_second": rates,
        "gbytes_per_second": {name: rates[name] * runner.sample_bytes / 1e9 for name, runner in best.items()},
        "workers": {name: runner.workers for name, runner in best.items()},
        "memcpy_ratio": rates["store"] / rates["memcpy"],
        **({"bus_ratio": rates["store_on_device"] / rates["device_copy"]} if "device_copy" in rates else {}),
    }


def cold_round(root: Path, options: dict[str, Any], bar: tqdm) -> tuple[float, float, float]:
    """Bytes a second of a sequential read, useful bytes a second of a loader, and bytes read per useful byte."""
    files = sorted(path for path in root.rglob("*") if path.suffix not in (".json", ".yaml") and path.is_file())
    _forget(files)
    sequential = _sequential_speed(files)
    bar.update()
    loader = opened(root, options)
    useful = useful_bytes(loader, COLD_STEPS)
    _forget(files)
    before, began = _bytes_read(), time.perf_counter()
    deque(loader.filled(0, COLD_STEPS), maxlen=0)
    seconds, read = time.perf_counter() - began, _bytes_read() - before
    bar.update()
    return sequential, useful / seconds, read / useful


def cold_figures(rounds: list[tuple[float, float, float]]) -> dict[str, float]:
    """The results of the rounds from disk."""
    disk, useful, read = (median(column) for column in zip(*rounds, strict=True))
    return {
        "disk_gbytes_per_second": disk / 1e9,
        "cold_gbytes_per_second": useful / 1e9,
        "cold_disk_ratio": useful / disk,
        "cold_bytes_read_per_useful": read,
    }


def useful_bytes(loader: Loader, steps: int) -> int:
    """Raw bytes of the windows of these steps, with shared bytes counted once."""
    seen = np.zeros((len(loader.store.images), IMAGE_PX, IMAGE_PX), bool)
    for step in range(steps):
        for place in loader.places(step):
            seen[place.image, place.y : place.y + CROP_PX, place.x : place.x + CROP_PX] = True
    return int(seen.sum()) * loader.batch_bytes // (loader.sampler.batch_size * CROP_PX**2)


def _forget(files: list[Path]) -> None:
    gc.collect()  # mapped pages stay cached; maps are closed with the stores that hold them
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sequential_speed(files: list[Path]) -> float:
    buffer, n_bytes, began = bytearray(READ_BYTES), 0, time.perf_counter()
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while n_read := file.readinto(buffer):
                n_bytes += n_read
    return n_bytes / (time.perf_counter() - began)


def _bytes_read() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["read_bytes"])


def peak_rss_mib(root: Path, options: dict[str, Any]) -> float:
    """The peak memory of this process, without mapped files, while a loader ran."""
    loader = opened(root, options)
    return max(_anonymous_mib() for _ in loader.filled(0, RSS_STEPS))


def _anonymous_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(status[key].split()[0]) for key in ("RssAnon", "RssShmem")) / 1024


def _in_fresh_process(function: Callable[..., float], *args: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)
