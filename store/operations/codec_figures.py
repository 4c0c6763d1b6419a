"""Bytes, error and speed of each codec, measured on a store's own arrays."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from championship_sr.store.codecs import fit_pca, get_codec
from championship_sr.store.errors import StoreError
from championship_sr.store.format.description import assign_shards
from championship_sr.store.format.entries import ArraySpec, Expert
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.store.shards.writer import write_shard

FEATURE_CODECS = ("float32", "float16", "float16+zstd", "float16+blosc", "bfloat16", "int8", "int8+zstd")
SR_CODECS = ("float32", "float16", "uint16", "uint8", "uint8+zstd", "uint8+blosc")
WINDOW_PX = 64  # side of the windows that are read, LR pixels
WINDOWS = 64
ROUNDS = 5  # rounds over all windows, of which the fastest counts: the first fills the page cache


@dataclass(frozen=True)
class CodecFigures:
    """One codec on one array name of all experts; speeds in float32 bytes a second, page cache full."""

    array: str
    codec: str
    bytes_per_lr_px: float  # of all experts together, as they lie in the files
    snr_db: dict[str, float]  # expert -> variance of the array over the mean squared error
    max_error: float  # in units of the array's standard deviation, the worst expert's
    write_mb_s: float  # encoded, checksummed, written and synced
    read_mb_s: float  # random windows, raw
    load_mb_s: float  # random windows, decoded to float32 on one thread


def measure_codecs(
    root: Path, codecs: Sequence[str] | None = None, sr_codecs: Sequence[str] | None = None, sample: int = 8
) -> Iterator[CodecFigures]:
    """Yields the figures of each codec; the store should hold float32, or its own codec's error goes unseen.

    sample  bases are fitted to tiles of this many first images, and all figures are of the others
    raises  StoreError if no image is left
    """
    store = Store(root)
    if sample >= len(store.images):
        raise StoreError(f"{root}: {len(store.images)} images; a sample of {sample} leaves none to measure")
    names = sorted({spec.name for expert in store.experts.values() for spec in expert.arrays})
    for name in names:
        chosen = (sr_codecs or SR_CODECS) if name == "sr" else (codecs or FEATURE_CODECS)
        for codec in chosen:
            folder = Path(tempfile.mkdtemp(prefix="codecs-", dir=Path(root).absolute().parent))
            try:
                yield _measure(store, name, codec, sample, folder / "store")
            finally:
                shutil.rmtree(folder)


def _measure(store: Store, name: str, codec: str, sample: int, root: Path) -> CodecFigures:
    images = assign_shards(store.images[sample:], len(store.images))
    manifest = Manifest.create(root, scale=store.scale, container=store.manifest.container, images=images)
    written, seconds = 0, 0.0
    for expert in store.experts:
        n_bytes, spent = _write(store, manifest, expert, name, codec, sample)
        written, seconds = written + n_bytes, seconds + spent
    coded = Store(root, whole=False)
    snr, worst = {}, 0.0
    for expert in store.experts:
        snr[expert], error = _errors(store, coded, expert, name, sample)
        worst = max(worst, error)
    lr_px = sum(image.lr_size[0] * image.lr_size[1] for image in images)
    stored = sum(path.stat().st_size for pattern in ("c.0.0.0", "*.h5") for path in root.rglob(pattern))
    read, load = _speeds(coded, name)
    return CodecFigures(name, codec, stored / lr_px, snr, worst, written / seconds / 1e6, read, load)


def _write(store: Store, manifest: Manifest, expert: str, name: str, codec: str, sample: int) -> tuple[int, float]:
    old = next(spec for spec in store.experts[expert].arrays if spec.name == name)
    entry = Expert(expert, (ArraySpec(name, old.channels, old.resolution, codec),), {})
    basis = {}
    if manifest.needs_basis(entry):
        tiles = (store.array(i, expert, name).load() for i in range(sample))
        basis[name] = fit_pca(tiles, get_codec(codec).components)
    manifest.add_expert(entry, basis=basis)
    values = [store.array(i, expert, name).load() for i in range(sample, len(store.images))]
    coder, corner = get_codec(codec), values[0][:1]
    coder.encode(corner, coder.params(corner, basis.get(name)))  # imports what it needs before the clock starts
    started = perf_counter()
    with write_shard(manifest, expert, 0) as out:
        for image, array in zip(manifest.images, values, strict=True):
            out.add(image.id, {name: array})
    return sum(array.nbytes for array in values), perf_counter() - started


def _errors(store: Store, coded: Store, expert: str, name: str, sample: int) -> tuple[float, float]:
    power, noise, worst = 0.0, 0.0, 0.0
    for i, _ in enumerate(coded.images):
        values = store.array(i + sample, expert, name).load().astype(np.float64)
        error = coded.array(i, expert, name).load() - values
        power, noise = power + values.var() * values.size, noise + (error**2).sum()
        worst = max(worst, float(np.abs(error).max() / values.std()))
    return float(10 * np.log10(power / noise)) if noise else float("inf"), worst


def _speeds(coded: Store, name: str) -> tuple[float, float]:
    windows = list(_windows(coded, name))
    n_bytes = sum(array.shape[2] * rows * cols * 4 for array, _, _, rows, cols in windows)
    speeds = []
    for method in (StoredArray.read, StoredArray.load):
        rounds = []
        for _ in range(ROUNDS):
            started = perf_counter()
            for array, *window in windows:
                method(array, *window)
            rounds.append(perf_counter() - started)
        speeds.append(n_bytes / min(rounds) / 1e6)
    return speeds[0], speeds[1]


def _windows(coded: Store, name: str) -> Iterator[tuple[StoredArray, int, int, int, int]]:
    draw = np.random.default_rng(0)
    for _ in range(WINDOWS):
        image, expert = int(draw.integers(len(coded.images))), str(draw.choice(list(coded.experts)))
        array = coded.array(image, expert, name)
        side = WINDOW_PX * array.shape[0] // coded.images[image].lr_size[0]
        rows, cols = (min(side, size) for size in array.shape[:2])
        y, x = (int(draw.integers(size - part + 1)) for size, part in zip(array.shape, (rows, cols), strict=False))
        yield array, y, x, rows, cols
