"""Progress of a long job: tqdm's bar on a terminal; elsewhere, as in SLURM or nohup logs, an occasional line."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm import tqdm

LINE = "{desc}: {unit} {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
_seconds = 30.0

# takes the bytes that were moved or read since the last call; fewer than 0 if they were lost
BytesDone = Callable[[int], Any]


def silent(n_bytes: int) -> None:
    """A `BytesDone` that shows nothing."""


def tell_every(seconds: float) -> None:
    """Sets how many seconds lie between two lines where there is no terminal; 0: no lines."""
    global _seconds
    _seconds = seconds


def progress(iterable: Iterable | None = None, *, first: bool = True, **options: Any) -> tqdm:
    """tqdm with these options, on standard error.

    first  whether this process is the one that speaks; the others are silent
    """
    if sys.stderr is None or not first:
        return tqdm(iterable, disable=True, **options)
    if sys.stderr.isatty():
        return tqdm(iterable, **options)
    lines = _Lines(sys.stderr, _seconds)
    return tqdm(iterable, file=lines, disable=not _seconds, bar_format=LINE, **options)


class _Lines:
    """What tqdm writes its bar to: the bar as it is becomes a line whenever one is due."""

    def __init__(self, out: TextIO, seconds: float) -> None:
        self._out, self._seconds = out, seconds
        self._due = time.monotonic() + seconds

    def write(self, text: str) -> None:
        line = text.strip()
        if line and time.monotonic() >= self._due:
            self._out.write(f"{line}\n")
            self._out.flush()
            self._due = time.monotonic() + self._seconds

    def flush(self) -> None:
        """Lines are flushed when they are written."""
