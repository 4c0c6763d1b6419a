"""Every fault of a store in one report: what is recorded is there, whole, finite and of these images."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from championship_sr.store.codecs import Params
from championship_sr.store.disk import files, leases
from championship_sr.store.errors import StoreError, Unreadable
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import CONTAINERS, PAIRS, lock_path, shard_number, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.faults import Fault
from championship_sr.store.operations.survey import survey
from championship_sr.store.progress import BytesDone, silent
from championship_sr.store.shards.metadata import metadata_faults
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.store.shards.record import WantedArray, read_record, wanted_arrays

SIGN = 0x8000  # of a 16-bit float
THREADS = min(8, os.cpu_count() or 1)

Hashes = Callable[[Image], tuple[str | None, str | None]]  # sha256 of LR and HR as they are now; None: not known


@dataclass(frozen=True)
class Report:
    """All that `verify` found; a shard that was never made counts as missing, not as a fault."""

    faults: tuple[Fault, ...]
    missing: dict[str, int]  # source -> shards without a record
    arrays: int
    n_bytes: int
    seconds: float


def verify(
    root: Path,
    hashes: Hashes | None = None,
    progress: BytesDone = silent,
    threads: int = THREADS,
) -> Report:
    """Read every recorded byte of a store and say what is wrong with it; nothing is changed.

    hashes  of the source images now, to be compared with those that the store was made from
    raises  StoreError if the folder is not a store, or nothing in it can be checked; Unreadable
    """
    started = perf_counter()
    surveyed = survey(root)
    manifest, faults = surveyed.manifest, list(surveyed.faults)
    arrays, n_bytes, missing = 0, 0, {}
    with ThreadPoolExecutor(threads) as pool:
        for source in manifest.sources:
            check = SourceCheck(manifest, source, pool, progress)
            faults += check.everything()
            arrays, n_bytes = arrays + check.arrays, n_bytes + check.n_bytes
            with suppress(StoreError, OSError):  # a fault that has been found
                missing[source] = len(manifest.missing_shards(source))
    faults += _changed_sources(manifest, hashes) if hashes else []
    return Report(tuple(faults), missing, arrays, n_bytes, perf_counter() - started)


def recorded_bytes(root: Path) -> int:
    """The bytes that `verify` will read, as far as records can be read: a progress bar's total."""
    total = 0
    with suppress(StoreError, OSError):  # faults that verify reports
        manifest = survey(root).manifest
        for source in manifest.sources:
            for shard in manifest.recorded_shards(source):
                with suppress(StoreError):
                    entries = read_record(manifest, source, shard)["arrays"].values()
                    total += sum(int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize for entry in entries)
    return total


class _RawStore(Store):
    """A store whose arrays are compared as stored: nothing is decoded, so no basis is needed."""

    def basis(self, name: str) -> dict[str, Params]:
        return {}


class SourceCheck:
    """The faults of one source's shards; `arrays` and `n_bytes` count what was read to find them."""

    def __init__(self, manifest: Manifest, source: str, pool: ThreadPoolExecutor, progress: BytesDone = silent):
        self.arrays = self.n_bytes = 0
        self._manifest, self._source, self._pool, self._progress = manifest, source, pool, progress
        self._store = _RawStore(manifest.root, [] if source == PAIRS else [source], whole=False, manifest=manifest)

    def everything(self) -> list[Fault]:
        """The faults of all shards and of the basis, and leftovers that belong to no shard."""
        manifest, source = self._manifest, self._source
        try:
            with files.reading(source_dir(manifest.root, source)):
                faults = self._basis_fault()
                for shard in manifest.recorded_shards(source):
                    faults += self.shard(shard)
                return faults + strays(manifest, source)
        except FileNotFoundError:
            return [Fault(f"{source_dir(manifest.root, source)}: removed while it was being read", source)]
        except Unreadable as error:
            return [Fault(str(error), source, unread=True)]

    def shard(self, shard: int) -> list[Fault]:
        """The faults of one recorded shard."""
        try:
            return self._checked(shard)
        except StoreError as error:
            return [self._fault(error, shard)]

    def _checked(self, shard: int) -> list[Fault]:
        manifest, source = self._manifest, self._source
        record = read_record(manifest, source, shard)
        wanted = wanted_arrays(manifest, source, shard)
        wrong = metadata_faults(manifest, source, shard, record)
        jobs = [self._pool.submit(self._content_fault, wanted[key]) for key in sorted(wanted.keys() - wrong.keys())]
        faults = [self._fault(error, shard) for error in wrong.values()]
        for job in jobs:
            error, n_bytes = job.result()
            self.arrays, self.n_bytes = self.arrays + 1, self.n_bytes + n_bytes
            if error:
                faults.append(self._fault(error, shard))
        return faults

    def _fault(self, error: StoreError, shard: int) -> Fault:
        unread = isinstance(error, Unreadable)
        return Fault(str(error), self._source, None if unread else shard, unread=unread)

    def _basis_fault(self) -> list[Fault]:
        if self._source == PAIRS:
            return []
        try:
            self._manifest.basis(self._source)
        except StoreError as error:
            return [Fault(str(error), self._source, unread=isinstance(error, Unreadable))]
        return []

    def _content_fault(self, wanted: WantedArray) -> tuple[StoreError | None, int]:
        try:
            array = self._store.array(wanted.image, self._source, wanted.name, wanted.variant)
            array.read_through()
            return self._damage(array)
        except StoreError as error:
            return error, 0

    def _damage(self, array: StoredArray) -> tuple[StoreError | None, int]:
        digest, finite, n_bytes = hashlib.sha256(), True, 0
        for band in array.bands():
            digest.update(band.data)
            finite = finite and _is_finite(band, array.codec.name)
            n_bytes += band.nbytes
            self._progress(band.nbytes)
        path = self._manifest.shard_path(self._source, array.shard)
        if digest.hexdigest() != array.entry.sha256:
            told = f"{path}: {array.key} is damaged: its bytes are not those that were written (sha256)"
            return StoreError(told), n_bytes
        return (None if finite else StoreError(f"{path}: {array.key} holds non-finite values")), n_bytes


def _is_finite(raw: np.ndarray, codec: str) -> bool:
    if raw.dtype == np.float32:
        return bool(np.isfinite(raw).all())
    infinity = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(codec.partition("+")[0])
    # as integers, infinities and NaN are above all other numbers of their sign: this needs no temporary array
    return infinity is None or bool(raw.view(np.int16).max() < infinity and raw.view(np.uint16).max() < SIGN + infinity)


def strays(manifest: Manifest, source: str) -> list[Fault]:
    """Shards without a record that no process is writing, and files that belong to no shard."""
    folder = source_dir(manifest.root, source)
    known = set(range(manifest.n_shards))
    recorded = set(manifest.recorded_shards(source))
    faults = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        shard = shard_number(path.name)
        if shard is None or path.suffix in (".lock", leases.SUFFIX):
            continue
        why = _why_stray(path, shard, manifest.container, known, recorded)
        if why and not _is_held(lock_path(manifest.root, source, shard)):
            goes = shard in known - recorded and path.suffix in (files.TMP, CONTAINERS[manifest.container])
            what = "the next extract removes it" if goes else "store verify --repair moves it away"
            faults.append(Fault(f"{path}: {why}; {what}", source, path=str(path)))
    return faults


def _why_stray(path: Path, shard: int, container: str, known: set[int], recorded: set[int]) -> str | None:
    if path.suffix == files.TMP:
        return "unfinished"
    if shard not in known:
        return "of a shard that the store does not have"
    if path.suffix == ".json":
        return None
    if path.suffix != CONTAINERS[container]:
        return f"not a shard of a {container} store"
    return None if shard in recorded else "without a record"


def _is_held(lock: Path) -> bool:
    try:
        return leases.is_held(lock)
    except OSError:  # the folder cannot be written to, so there is no telling
        return True


def _changed_sources(manifest: Manifest, hashes: Hashes) -> list[Fault]:
    faults = []
    for image in manifest.images:
        try:
            now = hashes(image)
        except (OSError, StoreError) as error:
            faults.append(Fault(f"image {image.id} ({image.name}): can no longer be read: {error}"))
            continue
        for what, recorded, sha256 in zip(("LR", "HR"), (image.lr_sha256, image.hr_sha256), now, strict=True):
            if sha256 and recorded and sha256 != recorded:
                hashes_differ = f"sha256 {sha256[:12]}..., was {recorded[:12]}..."
                message = f"the {what} image has changed since the store was made ({hashes_differ})"
                faults.append(Fault(f"image {image.id} ({image.name}): {message}"))
    return faults
