"""Where the raw windows of a step lie on the host, between the store's maps and the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from championship_sr.store.disk.maps import prefer_large_pages
from championship_sr.store.shards.reader import StoredArray
from championship_sr.train.data.sampler import WindowPlace

LINE = 64  # bytes that the processor's caches hold together
LEVELS_OF_8_IN_16_BITS = 257  # 255 * 257 == 65535


class Field(NamedTuple):
    """An array that every image has."""

    source: str
    name: str
    resolution: int


@dataclass(frozen=True)
class Windows:
    """How the windows of a field lie in a slot.

    Where the store has an image in strips of whole columns, the slot has a window in them too: its rows follow each
    other in a strip, so that copying them takes half of the time, and the device cuts the window out.

    shape       (rows, cols, raw channels) of a window
    strip_cols  columns of a strip; None: no strips
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    strip_cols: int | None

    @property
    def n_bytes(self) -> int:
        """Bytes of a window."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def room(self) -> tuple[int, ...]:
        """The shape of what holds a window: (strips, rows, strip_cols * raw channels), or its own."""
        rows, cols, channels = self.shape
        if self.strip_cols is None:
            return self.shape
        return (cols + self.strip_cols - 2) // self.strip_cols + 1, rows, self.strip_cols * channels

    def read(self, array: StoredArray, out: np.ndarray, y: int, x: int) -> int:
        """Copies the window at (y, x) into `out`, and returns its first column within its first strip."""
        if self.strip_cols is None:
            self._read_plain(array, out, y, x)
            return 0
        if array.strip_cols == self.strip_cols and array.raw_dtype == self.dtype:
            array.read_strips(out, y, x, self.shape[1])
            return x % self.strip_cols
        # an image of another width or depth than the first has another layout in the store
        window = np.empty(self.shape, self.dtype)
        self._read_plain(array, window, y, x)
        for strip, first in zip(out, range(0, self.shape[1], self.strip_cols), strict=False):
            piece = window[:, first : first + self.strip_cols].reshape(len(window), -1)
            strip[:, : piece.shape[1]] = piece
        return 0

    def _read_plain(self, array: StoredArray, out: np.ndarray, y: int, x: int) -> None:
        if array.raw_dtype == self.dtype:
            array.read_into(out, y, x)
        else:  # a store may hold photographs of 8 and of 16 bits
            np.multiply(array.read(y, x, *out.shape[:2]), LEVELS_OF_8_IN_16_BITS, out=out, dtype=out.dtype)

    def cut(self, raw: Tensor, begins: list[int]) -> Tensor:
        """The windows alone, (B, rows, cols, raw channels), which begin at these columns of their first strips."""
        if self.strip_cols is None:
            return raw
        integers = (
            raw.view(torch.int16) if raw.dtype == torch.uint16 else raw
        )  # torch supports few operations on unsigned numbers
        rows = integers.unflatten(-1, (self.strip_cols, -1)).transpose(1, 2).flatten(2, 3)
        return torch.stack([rows[i, :, x : x + self.shape[1]] for i, x in enumerate(begins)]).view(raw.dtype)


@dataclass(frozen=True)
class Layout:
    """The layout of a batch in one block of memory: each part begins at a cache line, LR and HR come first.

    own  field -> the codec's parameters that differ from array to array, name -> how many numbers
    """

    windows: dict[Field, Windows]
    samples: int
    own: dict[Field, dict[str, int]]

    @property
    def n_bytes(self) -> int:
        """Bytes of the block."""
        return sum(_in_lines(n_bytes) for _, n_bytes, _, _ in self._parts())

    def split(self, memory: Tensor) -> tuple[dict[Field, Tensor], dict[Field, dict[str, Tensor]]]:
        """The raw windows (B, *room) of each field and its parameters (B, K), as views of the block."""
        raw: dict[Field, Tensor] = {}
        params: dict[Field, dict[str, Tensor]] = {of: {} for of in self.windows}
        start = 0
        for (of, name), n_bytes, dtype, shape in self._parts():
            part = memory[start : start + n_bytes].view(dtype).view(self.samples, *shape)
            start += _in_lines(n_bytes)
            if name is None:
                raw[of] = part
            else:
                params[of][name] = part
        return raw, params

    def _parts(self) -> Iterator[tuple[tuple[Field, str | None], int, torch.dtype, tuple[int, ...]]]:
        """Field and parameter (None: the windows), bytes, type and shape of a sample."""
        for of, windows in self.windows.items():
            dtype = torch.from_numpy(np.empty(0, windows.dtype)).dtype
            yield (of, None), self.samples * prod(windows.room) * dtype.itemsize, dtype, windows.room
        for of, counts in self.own.items():
            for name, count in counts.items():
                yield (of, name), self.samples * count * 4, torch.float32, (count,)


def _in_lines(n_bytes: int) -> int:
    return -(-n_bytes // LINE) * LINE


@dataclass(frozen=True)
class Raw:
    """The raw windows of one step, on the device or on the way there, and what is needed to decode them.

    params  of each field: those that every sample has its own of, (B, K)
    begins  the column of its first strip where each sample's window begins
    arrays  where each sample's window comes from: its codec and the parameters that all share
    """

    layout: Layout
    memory: Tensor
    begins: dict[Field, list[int]]
    arrays: dict[Field, list[StoredArray]]
    places: list[WindowPlace]

    def cut(self) -> tuple[dict[Field, Tensor], dict[Field, dict[str, Tensor]]]:
        """The windows (B, rows, cols, raw channels), which may share the block's memory, and their parameters."""
        raw, params = self.layout.split(self.memory)
        return {of: self.layout.windows[of].cut(part, self.begins[of]) for of, part in raw.items()}, params


class Slot:
    """Memory for the raw windows of one step, filled again for a later step once the device has its copy."""

    def __init__(self, layout: Layout, pinned: bool) -> None:
        self.layout, self.memory = layout, room(layout.n_bytes, pinned)
        self.raw, params = layout.split(self.memory)
        # the same memory
        self._host = {of: raw.numpy() for of, raw in self.raw.items()}
        self._params = {of: {name: own.numpy() for name, own in by_name.items()} for of, by_name in params.items()}
        self._begins = {of: [0] * layout.samples for of in layout.windows}
        self._arrays: dict[Field, list] = {of: [None] * layout.samples for of in layout.windows}
        self.places: list[WindowPlace] = []
        self.left: Any = None  # the event of the device's copy

    def read(self, of: Field, row: int, array: StoredArray, y: int, x: int) -> None:
        """Fills a field of a sample with its window at (y, x)."""
        self._begins[of][row] = self.layout.windows[of].read(array, self._host[of][row], y, x)
        self._arrays[of][row] = array
        for name, values in self._params[of].items():
            values[row] = array.params[name]

    def on(self, memory: Tensor) -> Raw:
        """The windows read, with their bytes in `memory`, which may be the slot's own."""
        begins, arrays = (
            {of: list(rows) for of, rows in by_field.items()} for by_field in (self._begins, self._arrays)
        )
        return Raw(self.layout, memory, begins, arrays, self.places)


def room(n_bytes: int, pinned: bool) -> Tensor:
    """Bytes on the host, pinned so that a GPU copies them without waiting, or otherwise in large pages."""
    memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned)
    if not pinned:  # pinned memory is allocated already
        prefer_large_pages(memory.data_ptr(), n_bytes)
    return memory
