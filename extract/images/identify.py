"""Identifies images by the checksums of their pixels."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from championship_sr.extract.images.decode import UnreadableImage
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.images.results import ResultFile, look_at, stamp_of
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import SOURCES_FILE
from championship_sr.store.progress import progress

DECODING_THREADS = min(8, os.cpu_count() or 1)


In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class SourceFiles:
    """The checksums of a pair's files, and the sizes and times by which unchanged files are recognised."""

    stamps: list[list]  # [path, bytes, time of change in ns] of each file
    lr_size: tuple[int, int]
    lr_sha256: str
    hr_sha256: str | None  # None where there is no HR
    results: dict[str, ResultFile] = field(default_factory=dict)  # expert -> what another program made of the image


def sha256_of(array: np.ndarray) -> str:
    """The sha256 of an array's bytes in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def digests(lr: np.ndarray, hr: np.ndarray | None) -> tuple[str, str | None]:
    """The sha256 of both images of a pair."""
    return sha256_of(lr), None if hr is None else sha256_of(hr)


def in_threads(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`work` of each item in order, computed a few items ahead of the consumer."""
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


def identify(
    pairs: list[Pair], files: dict[str, dict[str, Path]], known: dict[str, SourceFiles], faults: list[str], first: bool
) -> dict[str, SourceFiles]:
    """Image id -> source, of every pair that can be decoded; files whose size and time are known are not read.

    files  expert -> image id -> the result that another program made of it
    """

    def work(pair: Pair) -> tuple[SourceFiles | None, list[str]]:
        own = {expert: paths[pair.id] for expert, paths in files.items() if pair.id in paths}
        stamps, there = [stamp_of(path) for path in pair.files], known.get(pair.id)
        # the size differs if a photograph was not rotated according to its EXIF data
        there = there if there and there.stamps == stamps and there.lr_size == pair.lr_size else None
        new = {name: path for name, path in own.items() if not (there and _is_known(there.results.get(name), path))}
        if there and not new:
            return there, []
        try:
            lr, hr = pair.read()
        except UnreadableImage as error:
            return None, [str(error)]
        source = there or SourceFiles(stamps, lr.shape[:2], *digests(lr, hr))
        seen, unreadable = _results(new, lr, pair.scale)
        return replace(source, results=source.results | seen), unreadable

    outcomes = list(progress(in_threads(work, pairs), total=len(pairs), desc="checking", unit="image", first=first))
    faults += [fault for _, unreadable in outcomes for fault in unreadable]
    return {pair.id: source for pair, (source, _) in zip(pairs, outcomes, strict=True) if source}


def _results(files: dict[str, Path], lr: np.ndarray, scale: int) -> tuple[dict[str, ResultFile], list[str]]:
    """What is known of each expert's result for one image, and the faults of unreadable ones."""
    seen, unreadable = {}, []
    for expert, path in files.items():
        try:
            seen[expert] = look_at(path, lr, scale)
        except UnreadableImage as error:
            unreadable.append(f"expert {expert}: {error}")
    return seen, unreadable


def _is_known(result: ResultFile | None, path: Path) -> bool:
    return result is not None and result.stamp == stamp_of(path)


def _source(lr_size: Sequence[int], results: dict[str, dict] | None = None, **values: Any) -> SourceFiles:
    rows, cols = lr_size
    return SourceFiles(
        **values, lr_size=(rows, cols), results={name: ResultFile(**result) for name, result in (results or {}).items()}
    )


def read_sources(root: Path) -> dict[str, SourceFiles]:
    try:
        content = parse_json(read_small(root / SOURCES_FILE))
        return {name: _source(**source) for name, source in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, StoreError):
        return {}  # the file only saves time
