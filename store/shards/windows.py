"""Windows of one stored array, for each of its possible layouts in the file."""

from dataclasses import dataclass
from functools import cache, partial
from math import prod

import numpy as np

from championship_sr.store.codecs import Codec, Params
from championship_sr.store.containers.chunks import grid
from championship_sr.store.containers.compression import Compression
from championship_sr.store.disk import maps
from championship_sr.store.errors import StoreError

NEAR = 16384  # gaps between runs of a window up to this many bytes are read too, not skipped


@dataclass(frozen=True, slots=True)
class Entry:
    """What a record says about one array, ready for use."""

    shape: tuple[int, int, int]
    raw_shape: tuple[int, int, int]
    dtype: np.dtype
    codec: Codec
    params: Params
    chunk: tuple[int, int, int]  # the whole array where it is not cut
    offset: int | None  # of the first chunk, the others following in C order; None: the container has a table
    file_bytes: int
    sha256: str  # of the raw array in row-major order


class Rows:
    """Whole rows, one after the other: a window is one strided copy."""

    def __init__(self, mapped: maps.FileMap, entry: Entry, offset: int):
        self._map, self._offset = mapped, offset
        self._array = mapped.view(entry.raw_shape, entry.dtype, offset)

    def read_into(self, out: np.ndarray, y: int, x: int) -> None:
        np.copyto(out, self._array[y : y + out.shape[0], x : x + out.shape[1]])

    def read_through(self) -> None:
        self._map.read_through(self._offset, self._array.nbytes)

    def band(self, y: int, rows: int) -> np.ndarray:
        """Whole rows where they lie, without a copy."""
        return self._array[y : y + rows]

    def prefetch(self, y: int, x: int, rows: int, cols: int) -> bool:
        pitch, step, _ = self._array.strides
        first, n_bytes = self._offset + y * pitch + x * step, cols * step
        if pitch - n_bytes <= NEAR:
            return self._map.prefetch(first, (rows - 1) * pitch + n_bytes)
        return self._map.prefetch(first, n_bytes, pitch, rows)


class Tiles:
    """Tiles in C order: a window is copied by columns of tiles, each in three pieces at most.

    Each row of a tile is one element to numpy, which then calls memmove in its innermost loop.
    """

    def __init__(self, mapped: maps.FileMap, entry: Entry, offset: int):
        self._rows, self._cols, channels = entry.chunk
        counts = grid(entry.raw_shape, entry.chunk)[:2]
        self._map, self._offset, self._channels = mapped, offset, channels
        # (down, across, rows, numbers of a row)
        shape = (*counts, self._rows, self._cols * channels)
        self._tiles = mapped.view(shape, entry.dtype, offset)

    def read_into(self, out: np.ndarray, y: int, x: int) -> None:
        if not out[0].flags.c_contiguous:
            raise ValueError("windows can only be read into contiguous rows")
        lines, down = out.reshape(out.shape[0], -1), _pieces(y, out.shape[0], self._rows)
        for tx, nx, left, n_cols, at_x in _pieces(x, out.shape[1], self._cols):
            first, start, width = (cols * self._channels for cols in (left, at_x, n_cols))
            tiles = _runs(self._tiles[:, tx : tx + nx, :, first : first + width], width)[..., 0]
            place = _runs(lines[:, start : start + nx * width], width)
            for ty, ny, top, n_rows, at_y in down:
                bands = place[at_y : at_y + ny * n_rows].reshape(ny, n_rows, nx)
                for column in range(nx):  # numpy's innermost loop then runs down the column, not across the window
                    bands[:, :, column] = tiles[ty : ty + ny, column, top : top + n_rows]

    def read_through(self) -> None:
        self._map.read_through(self._offset, self._tiles.nbytes)

    def read_strips(self, out: np.ndarray, y: int, x: int, cols: int) -> None:
        first, last = x // self._cols, (x + cols - 1) // self._cols
        np.copyto(out[: last - first + 1], self._tiles[0, first : last + 1, y : y + out.shape[1]])

    def prefetch(self, y: int, x: int, rows: int, cols: int) -> bool:
        band, tile, line = self._tiles.strides[:3]
        first, last = x // self._cols, (x + cols - 1) // self._cols
        asked = False
        for ty, ny, top, n_rows, _ in _pieces(y, rows, self._rows):
            offset = self._offset + ty * band + first * tile + top * line
            if n_rows == self._rows:  # whole tiles follow each other
                asked |= self._map.prefetch(offset, (last - first + 1) * tile, band, ny)
            else:
                asked |= self._map.prefetch(offset, n_rows * line, tile, last - first + 1)
        return asked


class Chunks:
    """Chunks anywhere in the file, compressed or not: decoded one by one and kept in the store's bounded cache."""

    def __init__(self, mapped: maps.FileMap, table: np.ndarray, entry: Entry, cache: maps.Cache, where: str):
        self._bytes, self._table, self._entry, self._cache, self._where = np.asarray(mapped), table, entry, cache, where
        self._counts = grid(entry.raw_shape, entry.chunk)
        self._map = mapped

    def read_into(self, out: np.ndarray, y: int, x: int) -> None:
        n_rows, n_cols, _ = self._entry.chunk
        for ty in range(y // n_rows, (y + out.shape[0] - 1) // n_rows + 1):
            for tx in range(x // n_cols, (x + out.shape[1] - 1) // n_cols + 1):
                chunk = self._chunk(ty * self._counts[1] + tx)
                top, left = ty * n_rows - y, tx * n_cols - x
                inside = chunk[max(-top, 0) : out.shape[0] - top, max(-left, 0) : out.shape[1] - left]
                top, left = max(top, 0), max(left, 0)
                out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside

    def prefetch(self, y: int, x: int, rows: int, cols: int) -> bool:
        n_rows, n_cols, _ = self._entry.chunk
        asked = False
        for ty in range(y // n_rows, (y + rows - 1) // n_rows + 1):
            for tx in range(x // n_cols, (x + cols - 1) // n_cols + 1):
                offset, n_bytes = self._table[ty * self._counts[1] + tx]
                asked |= self._map.prefetch(offset, n_bytes)
        return asked

    def read_through(self) -> None:
        for offset, n_bytes in self._table.tolist():
            self._map.read_through(offset, n_bytes)

    def _chunk(self, number: int) -> np.ndarray:
        compression = self._entry.codec.compression
        if compression is None:
            return self._decoded(number, None)
        make = partial(self._decoded, number, compression)
        return self._cache.get((self._where, number), make, lambda chunk: chunk.nbytes)

    def _decoded(self, number: int, compression: Compression | None) -> np.ndarray:
        offset, n_bytes = self._table[number]
        stored = self._bytes[offset : offset + n_bytes]
        n_bytes = prod(self._entry.chunk) * self._entry.dtype.itemsize
        content = compression.decode(stored, n_bytes, self._where) if compression else stored
        if len(content) != n_bytes:
            raise StoreError(f"{self._where}: a chunk of {len(content)} bytes, expected {n_bytes}")
        return np.frombuffer(content, self._entry.dtype).reshape(self._entry.chunk)


def _runs(lines: np.ndarray, numbers: int) -> np.ndarray:
    """The same memory, so many numbers of the last axis in each element."""
    return lines.view(_run(numbers * lines.itemsize))


@cache
def _run(n_bytes: int) -> np.dtype:
    return np.dtype((np.void, n_bytes))


def _pieces(start: int, size: int, step: int) -> list[tuple[int, int, int, int, int]]:
    """A run cut at the tiles: (first tile, tiles, first place in each, places in each, place in the window)."""
    end = start + size
    first, inside = divmod(start, step)
    if end <= (first + 1) * step:
        return [(first, 1, inside, size, 0)]
    pieces = []
    if inside:
        pieces.append((first, 1, inside, step - inside, 0))
        first += 1
    last, rest = divmod(end, step)
    if last > first:
        pieces.append((first, last - first, 0, step, first * step - start))
    if rest:
        pieces.append((last, 1, 0, rest, last * step - start))
    return pieces
