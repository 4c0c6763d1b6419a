"""What an image is known by: the checksums of its files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from championship_sr.extract.images.decode import UnreadableImage
from championship_sr.extract.images.pairs import Pair
from championship_sr.store.format.layout import SOURCES_FILE

DECODING_THREADS = min(8, os.cpu_count() or 1)


In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Source:
    """What was found in a pair's files, and by which sizes and times they are known to be unchanged."""

    stamps: list[list]  # [path, bytes, time of change in ns] of each file
    lr_size: tuple[int, int]
    lr_sha256: str
    hr_sha256: str


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
