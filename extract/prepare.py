"""Pairs on disk -> the store's list of images and its `pairs` shards; every file is decoded before any expert runs."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from championship_sr.extract.config import DataConfig
from championship_sr.extract.images import Pair, UnreadableImage, find_pairs, joined
from championship_sr.extract.shares import until_done
from championship_sr.store.disk import leases
from championship_sr.store.disk.files import write_atomic
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import LOCK_FILE, Manifest, assign_shards
from championship_sr.store.shards.writer import write_shard

log = logging.getLogger(__name__)

SOURCES_FILE = "sources.json"  # what a store was read from, so that unchanged files are not read again
DECODING_THREADS = min(8, os.cpu_count() or 1)
POLL_SECONDS = 0.01

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Source:
    """What was found in a pair's files, and by which sizes and times they are known to be unchanged."""

    stamps: list[list]  # [path, bytes, time of change in ns] of each file
    lr_size: tuple[int, int]
    lr_sha256: str
    hr_sha256: str


def prepare(
    root: Path,
    data: DataConfig,
    *,
    scale: int,
    container: str,
    images_per_shard: int,
    limit: int | None = None,
    progress: bool = True,
) -> tuple[Manifest, dict[str, Pair]]:
    """The store of these images, made or gone on with, and its pairs by image id.

    limit    only the first of the images
    raises   StoreError listing every image that does not fit, or naming what the store in `root` has differently
    """
    faults: list[str] = []
    pairs = find_pairs(data, scale, left_out=faults)[:limit]
    known = _read_sources(root)
    sources = _identify(pairs, known, faults, progress)
    if faults:
        raise StoreError(joined(faults))
    images = assign_shards(
        (
            Image(
                id=pair.id,
                name=pair.name,
                lr_size=sources[pair.id].lr_size,
                lr_sha256=sources[pair.id].lr_sha256,
                hr_sha256=sources[pair.id].hr_sha256,
                shard=0,
                lr_source=pair.lr_source,
            )
            for pair in pairs
        ),
        images_per_shard,
    )
    manifest = Manifest.create(root, scale=scale, container=container, images=images)
    if sources != known:
        content = {name: asdict(source) for name, source in sources.items()}
        with leases.held(root / LOCK_FILE, wait=True):  # of many processes that begin at once
            write_atomic(root / SOURCES_FILE, json.dumps(content).encode())
    return manifest, {pair.id: pair for pair in pairs}


class PairsWriter:
    """Writes the shards of LR and HR images that are not there yet, in a thread, while experts read those that are.

    A `with` block around the experts. What goes wrong in the thread, such as a file that is no longer what it was when
    the store was made, is raised by `wait`, `finish` and at the end of the block; an exception in it stops the thread.
    """

    def __init__(self, manifest: Manifest, pairs: dict[str, Pair], shards: list[int], progress: bool = True) -> None:
        self._manifest, self._pairs, self._shards, self._progress = manifest, pairs, shards, progress
        self._stopped = False

    def wait(self, shard: int) -> None:
        """Returns when the shard's pairs are there."""
        while not self._manifest.is_recorded(PAIRS, shard) and not self._written.done():
            time.sleep(POLL_SECONDS)
        if self._written.done():
            self._written.result()

    def finish(self) -> None:
        """Returns when all pairs are there."""
        self._written.result()

    def __enter__(self) -> "PairsWriter":
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pairs")
        self._written = self._pool.submit(self._write)
        return self

    def __exit__(self, kind: type | None, *_exception: object) -> None:
        self._stopped = kind is not None
        self._pool.shutdown()
        if kind is None:
            self.finish()

    def _write(self) -> None:
        missing = set(self._manifest.missing_shards(PAIRS)) & set(self._shards)
        total = sum(len(self._manifest.images_of(shard)) for shard in missing)
        with tqdm(total=total, desc="pairs", unit="image", disable=None if self._progress else True) as bar:
            for shard in until_done(lambda: self._manifest.missing_shards(PAIRS), self._shards):
                with suppress(ShardBusy):
                    self._write_shard(shard, bar)
                if self._stopped:
                    return

    def _write_shard(self, shard: int, bar: tqdm) -> None:
        images = self._manifest.images_of(shard)
        with write_shard(self._manifest, PAIRS, shard) as out:
            read = in_threads(lambda image: self._pairs[image.id].read(), images)
            for image, (lr, hr) in zip(images, read, strict=True):
                if (sha256_of(lr), sha256_of(hr)) != (image.lr_sha256, image.hr_sha256):
                    hr_path = self._pairs[image.id].hr
                    raise StoreError(f"{hr_path}: changed while the store was being made; run the command again")
                out.add(image.id, {"lr": lr, "hr": hr})
                bar.update()


def sha256_of(array: np.ndarray) -> str:
    """The sha256 of an array's bytes in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def in_threads(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`work` of each item in order, done a few items ahead of whoever takes the results."""
    items = iter(items)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        waiting = [pool.submit(work, item) for item in islice(items, 2 * DECODING_THREADS)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(work, item) for item in islice(items, 1)]
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _identify(pairs: list[Pair], known: dict[str, Source], faults: list[str], progress: bool) -> dict[str, Source]:
    """Image id -> source, of every pair that can be decoded; files whose size and time are known are not read."""

    def work(pair: Pair) -> Source | UnreadableImage:
        stamps = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in pair.files]
        if pair.id in known and known[pair.id].stamps == stamps:
            return known[pair.id]
        try:
            lr, hr = pair.read()
        except UnreadableImage as error:
            return error
        return Source(stamps, lr.shape[:2], sha256_of(lr), sha256_of(hr))

    disable = None if progress else True
    results = list(tqdm(in_threads(work, pairs), total=len(pairs), desc="checking", unit="image", disable=disable))
    faults += [str(result) for result in results if isinstance(result, UnreadableImage)]
    return {p.id: source for p, source in zip(pairs, results, strict=True) if isinstance(source, Source)}


def _read_sources(root: Path) -> dict[str, Source]:
    try:
        content = json.loads((root / SOURCES_FILE).read_text(encoding="utf-8"))
        sources = {name: Source(**source) for name, source in content.items()}
    except (OSError, ValueError, TypeError):
        return {}  # it only saves time
    return {name: Source(s.stamps, tuple(s.lr_size), s.lr_sha256, s.hr_sha256) for name, s in sources.items()}
