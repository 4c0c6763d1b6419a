"""Where the raw windows of a step lie on the host, between the store's maps and the device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from championship_sr.store.disk.maps import prefer_large_pages
from championship_sr.store.shards.reader import StoredArray
from championship_sr.train.data.sampler import Place

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
        """Copies the window at (y, x) into `out`, and returns the column of its first strip where it begins."""
        if self.strip_cols is None:
            self._read_plain(array, out, y, x)
            return 0
        if array.strip_cols == self.strip_cols and array.raw_dtype == self.dtype:
            array.read_strips(out, y, x, self.shape[1])
            return x % self.strip_cols
        # an image of another width or depth than the first lies in the store otherwise
        window = np.empty(self.shape, self.dtype)
        self._read_plain(array, window, y, x)
        for strip, first in zip(out, range(0, self.shape[1], self.strip_cols), strict=False):
            piece = window[:, first : first + self.strip_cols].reshape(len(window), -1)
            strip[:, : piece.shape[1]] = piece
        return 0

    def _read_plain(self, array: StoredArray, out: np.ndarray, y: int, x: int) -> None:
        if array.raw_dtype == self.dtype:
            array.read_into(out, y, x)
        else:  # photographs of 8 and of 16 bits may lie in one store
            np.multiply(array.read(y, x, *out.shape[:2]), LEVELS_OF_8_IN_16_BITS, out=out, dtype=out.dtype)

    def cut(self, raw: Tensor, begins: list[int]) -> Tensor:
        """The windows alone, (B, rows, cols, raw channels), which begin at these columns of their first strips."""
        if self.strip_cols is None:
            return raw
        integers = raw.view(torch.int16) if raw.dtype == torch.uint16 else raw  # torch moves few unsigned numbers
        rows = integers.unflatten(-1, (self.strip_cols, -1)).transpose(1, 2).flatten(2, 3)
        return torch.stack([rows[i, :, x : x + self.shape[1]] for i, x in enumerate(begins)]).view(raw.dtype)


@dataclass
class Slot:
    """The raw windows of one step, overwritten by a later step once they are decoded."""

    windows: dict[Field, Windows]
    raw: dict[Field, Tensor]  # (B, *room); LR and HR come first
    begins: dict[Field, list[int]]  # the column of its first strip where each sample's window begins
    arrays: dict[Field, list[StoredArray]]  # where each sample's window comes from: its codec and parameters
    places: list[Place] = field(default_factory=list)
    left: "torch.cuda.Event | None" = None  # when the device has taken its copy

    def __post_init__(self) -> None:
        self.host = {of: raw.numpy() for of, raw in self.raw.items()}  # the same memory

    def read(self, of: Field, row: int, array: StoredArray, y: int, x: int) -> None:
        """Fills a field of a sample with its window at (y, x)."""
        self.begins[of][row] = self.windows[of].read(array, self.host[of][row], y, x)
        self.arrays[of][row] = array

    def cut(self, of: Field, device: torch.device | str) -> Tensor:
        """The field's windows on the device, (B, rows, cols, raw channels); they may share the slot's memory."""
        device = torch.device(device)
        raw = self.raw[of].to(device, non_blocking=device.type == "cuda")
        return self.windows[of].cut(raw, self.begins[of])


def new_slot(windows: Mapping[Field, Windows], samples: int, pinned: bool) -> Slot:
    """An empty slot: its fields lie side by side, each at the beginning of a cache line."""
    sizes = {of: samples * prod(each.room) * each.dtype.itemsize for of, each in windows.items()}
    ends = np.cumsum([-(-size // LINE) * LINE for size in sizes.values()]).tolist()
    memory, raw = room(ends[-1], pinned), {}
    for (of, size), start in zip(sizes.items(), [0, *ends], strict=False):
        dtype = torch.from_numpy(np.empty(0, windows[of].dtype)).dtype
        raw[of] = memory[start : start + size].view(dtype).view(samples, *windows[of].room)
    return Slot(dict(windows), raw, {of: [0] * samples for of in windows}, {of: [None] * samples for of in windows})


def room(n_bytes: int, pinned: bool) -> Tensor:
    """Bytes on the host that a GPU can take its copy of without waiting, or else in large pages."""
    memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned)
    if not pinned:  # pinned memory is there already
        prefer_large_pages(memory.data_ptr(), n_bytes)
    return memory
