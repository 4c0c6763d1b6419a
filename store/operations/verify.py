"""Every fault of a store in one report: what is recorded is there, whole, finite and of these images."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from championship_sr.store.containers.chunks import Described
from championship_sr.store.containers.registry import CONTAINER_MODULES
from championship_sr.store.disk import files, leases
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import CONTAINERS, PAIRS, array_key, shard_number, shard_stem, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import variant_size
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.store.shards.record import read_record

SIGN = 0x8000  # of a 16-bit float
THREADS = min(8, os.cpu_count() or 1)

Hashes = Callable[[Image], tuple[str | None, str | None]]  # sha256 of LR and HR as they are now; None: not known
Progress = Callable[[int], Any]  # takes the bytes that were read since the last call


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; `shard` where removing and remaking a shard mends it."""

    message: str
    source: str | None = None
    shard: int | None = None


@dataclass(frozen=True)
class Report:
    """All that `verify` found; a shard that was never made is missing, which is no fault."""

    faults: tuple[Fault, ...]
    missing: dict[str, int]  # source -> shards without a record
    arrays: int
    n_bytes: int
    seconds: float
    removed: tuple[str, ...]  # shards, by `repair`


def verify(
    root: Path,
    hashes: Hashes | None = None,
    repair: bool = False,
    progress: Progress = lambda n_bytes: None,
    threads: int = THREADS,
) -> Report:
    """Read every recorded byte of a store and say what is wrong with it.

    hashes  of the source images now, to be compared with those that the store was made from
    repair  remove every shard that has a fault, so that `extract` makes exactly those again
    raises  StoreError if the folder is no store, or nothing in it can be judged
    """
    started = perf_counter()
    damaged: list[str] = []
    manifest = Manifest.load(root, damaged)
    faults = [Fault(message) for message in damaged]
    arrays, n_bytes = 0, 0
    with ThreadPoolExecutor(threads) as pool:
        for source in manifest.sources:
            check = _SourceCheck(manifest, source, pool, progress)
            faults += check.faults
            arrays, n_bytes = arrays + check.arrays, n_bytes + check.n_bytes
    faults += _changed_sources(manifest, hashes) if hashes else []
    removed = _remove_bad(manifest, faults) if repair else ()
    missing = {source: len(manifest.missing_shards(source)) for source in manifest.sources}
    return Report(tuple(faults), missing, arrays, n_bytes, perf_counter() - started, removed)


def recorded_bytes(root: Path) -> int:
    """The bytes that `verify` will read, as far as records can be read: a progress bar's total."""
    manifest = Manifest.load(root, [])
    total = 0
    for source in manifest.sources:
        for shard in manifest.recorded_shards(source):
            with suppress(StoreError, LookupError, TypeError, ValueError):  # faults that verify reports
                entries = read_record(manifest, source, shard)["arrays"].values()
                total += sum(int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize for entry in entries)
    return total


class _SourceCheck:
    """The faults of one source's shards, with what was read to find them."""

    def __init__(self, manifest: Manifest, source: str, pool: ThreadPoolExecutor, progress: Progress):
        self.faults: list[Fault] = []
        self.arrays = self.n_bytes = 0
        self._manifest, self._source, self._pool, self._progress = manifest, source, pool, progress
        self._index = {image.id: i for i, image in enumerate(manifest.images)}
        self._container = CONTAINER_MODULES[manifest.container]
        try:
            self._store = Store(manifest.root, [] if source == PAIRS else [source], whole=False)
        except StoreError as error:
            self.faults.append(Fault(str(error)))
            return
        for shard in manifest.recorded_shards(source):
            try:
                self._check(shard)
            except StoreError as error:
                self.faults.append(Fault(str(error), source, shard))
        self.faults += _unrecorded(manifest, source)

    def _check(self, shard: int) -> None:
        record = read_record(self._manifest, self._source, shard)
        path = self._manifest.shard_path(self._source, shard)
        if not path.exists():
            raise StoreError(f"{path}: missing, although it is recorded")
        wanted = self._wanted(shard)
        if record["arrays"].keys() != wanted.keys():
            raise StoreError(f"{path}: records other arrays than it must hold: {_difference(record['arrays'], wanted)}")
        described = self._container.describe(path)
        jobs = [
            self._pool.submit(self._array_fault, key, wanted[key], record["arrays"][key], described.get(key))
            for key in sorted(wanted)
        ]
        for job in jobs:
            message, n_bytes = job.result()
            self.arrays, self.n_bytes = self.arrays + 1, self.n_bytes + n_bytes
            if message:
                self.faults.append(Fault(f"{path}: {message}", self._source, shard))

    def _wanted(self, shard: int) -> dict[str, tuple]:
        """Key -> arguments of `Store.array`, and the shape that the array must have."""
        source, manifest = self._source, self._manifest
        result = {}
        for image in manifest.images_of(shard):
            for spec in manifest.specs(source):
                for variant in manifest.variants(source):
                    size = variant_size(image.lr_size, variant)
                    shape = (*(side * spec.resolution for side in size), spec.channels)
                    place = (self._index[image.id], source, spec.name, variant)
                    result[array_key(image.id, spec.name, variant)] = place, shape
        return result

    def _array_fault(self, key: str, wanted: tuple, entry: dict, described: Described | None) -> tuple[str | None, int]:
        place, shape = wanted
        if described is None:
            return f"{key} is missing", 0
        there, recorded = (described.shape, described.dtype), (tuple(entry["shape"]), entry["dtype"])
        if there != recorded or described.attributes.get("codec") is None:
            return f"{key} is {there[1]} {there[0]} in the file, {recorded[1]} {recorded[0]} in the record", 0
        if entry["offset"] is not None and described.offset != entry["offset"]:
            return f"{key}: its chunks do not lie where the record says", 0
        try:
            array = self._store.array(*place)
            if array.shape != shape:
                return f"{key} has the shape {array.shape}, expected {shape}", 0
            return self._content_fault(key, array, entry["sha256"])
        except StoreError as error:
            return str(error), 0

    def _content_fault(self, key: str, array: StoredArray, sha256: str) -> tuple[str | None, int]:
        digest, finite, n_bytes = hashlib.sha256(), True, 0
        for band in array.bands():
            digest.update(band.data)
            finite = finite and _is_finite(band, array.codec.name)
            n_bytes += band.nbytes
            self._progress(band.nbytes)
        if digest.hexdigest() != sha256:
            return f"{key} is damaged: its bytes are not those that were written (sha256)", n_bytes
        return (None if finite else f"{key} holds values that are not finite"), n_bytes


def _is_finite(raw: np.ndarray, codec: str) -> bool:
    if raw.dtype == np.float32:
        return bool(np.isfinite(raw).all())
    infinity = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(codec.partition("+")[0])
    # as integers, infinities and NaN lie above all other numbers of their sign: no array is made on the way
    return infinity is None or bool(raw.view(np.int16).max() < infinity and raw.view(np.uint16).max() < SIGN + infinity)


def _difference(recorded: dict, wanted: dict) -> str:
    extra, lacking = sorted(recorded.keys() - wanted.keys()), sorted(wanted.keys() - recorded.keys())
    return ", ".join([f"no {key}" for key in lacking[:3]] + [f"an unexpected {key}" for key in extra[:3]])


def _unrecorded(manifest: Manifest, source: str) -> list[Fault]:
    """Shards without a record that nobody is writing, and files that are nobody's."""
    folder = source_dir(manifest.root, source)
    recorded = set(manifest.recorded_shards(source))
    faults = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        shard = shard_number(path.name)
        if shard is None or path.suffix in (".lock", ".json", leases.SUFFIX):
            continue
        if path.suffix == files.TMP or path.suffix not in CONTAINERS.values() or shard not in recorded:
            if leases.is_held(folder / f"{shard_stem(shard)}.lock"):
                continue
            why = "unfinished" if path.suffix == files.TMP else "without a record"
            if shard in recorded and path.suffix != files.TMP:
                why = f"not a shard of a {manifest.container} store"
            faults.append(Fault(f"{path}: {why}; the next extract removes it", source, None))
    return faults


def _changed_sources(manifest: Manifest, hashes: Hashes) -> list[Fault]:
    faults = []
    for image in manifest.images:
        try:
            now = hashes(image)
        except OSError as error:
            faults.append(Fault(f"image {image.id} ({image.name}): cannot be read any more: {error}"))
            continue
        for what, there, found in zip(("LR", "HR"), (image.lr_sha256, image.hr_sha256), now, strict=True):
            if found not in (None, there):
                hashes_differ = f"sha256 {found[:12]}..., was {there[:12]}..."
                message = f"the {what} image has changed since the store was made ({hashes_differ})"
                faults.append(Fault(f"image {image.id} ({image.name}): {message}"))
    return faults


def _remove_bad(manifest: Manifest, faults: list[Fault]) -> tuple[str, ...]:
    bad = sorted({(fault.source, fault.shard) for fault in faults if fault.shard is not None})
    for source, shard in bad:
        with leases.held(source_dir(manifest.root, source) / f"{shard_stem(shard)}.lock", watch=True):
            files.remove(manifest.record_path(source, shard))  # first, so that a kill here leaves an unrecorded shard
            files.sync(source_dir(manifest.root, source))
            files.remove(manifest.shard_path(source, shard))
    return tuple(str(manifest.shard_path(source, shard)) for source, shard in bad)
