"""How an array is cut into chunks: rows for features, strips of columns for images, tiles where compressed."""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.containers.compression import Compression
from championship_sr.store.errors import ConfigError

WIDE_CHANNELS = 16  # arrays with fewer channels are images, the others features
BAND_ROWS = 8  # the last band is padded to full size, so more rows would waste space
STRIP_COLS = 32  # for images, which are cut into strips of whole columns: measured in docs/log.md, "Store layout"
COMPRESSED_IMAGE_TILE = (32, 64)
COMPRESSED_TILE = (32, 32)  # for features: a window of 64 x 64 decodes 2.2 times its bytes


class ArrayToWrite(NamedTuple):
    """An encoded array, and how it is to lie in its shard."""

    name: str
    raw: np.ndarray
    chunk: tuple[int, ...] | None  # None: in one piece
    compression: Compression | None
    attributes: Mapping[str, Any]

    def stored_chunks(self) -> Iterator[memoryview]:
        """The bytes of each chunk in C order, as they are stored."""
        for piece in chunks_of(self.raw, self.chunk or self.raw.shape):
            yield memoryview(self.compression.encode(piece)) if self.compression else piece.data


class Described(NamedTuple):
    """What a container itself says about an array."""

    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]
    offset: int | None  # of the first chunk, None if they do not follow in order
    chunk: tuple[int, ...] | None
    compression: str | None


def default_chunk(shape: tuple[int, int, int], compressed: bool, container: str) -> tuple[int, ...] | None:
    """The shape of an array's chunks; None for one contiguous block (HDF5 only)."""
    rows, cols, channels = shape
    image = channels < WIDE_CHANNELS
    if compressed:
        return _tile(COMPRESSED_IMAGE_TILE if image else COMPRESSED_TILE, shape)
    if container == "hdf5":
        return None
    return _tile((rows, STRIP_COLS) if image else (BAND_ROWS, cols), shape)


def parsed_chunk(text: str, shape: tuple[int, int, int], compressed: bool, container: str) -> tuple[int, ...] | None:
    """The chunk shape that a word means: `default`, `rows`, or `tiles:32x64` (rows x columns)."""
    rows, cols, channels = shape
    if text == "default":
        return default_chunk(shape, compressed, container)
    if text == "rows":
        return (min(BAND_ROWS, rows), cols, channels) if container == "zarr" or compressed else None
    match = re.fullmatch(r"tiles:([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise ConfigError(f"chunks {text!r}: expected default, rows or tiles:ROWSxCOLUMNS")
    return _tile((int(match.group(1)), int(match.group(2))), shape)


def _tile(tile: tuple[int, int], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return min(tile[0], shape[0]), min(tile[1], shape[1]), shape[2]


def grid(shape: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[int, ...]:
    """How many chunks lie along each axis."""
    return tuple(-(-size // step) for size, step in zip(shape, chunk, strict=True))


def padded_bytes(shape: tuple[int, ...], chunk: tuple[int, ...] | None, itemsize: int) -> int:
    """Bytes of the array's chunks, with the last ones padded to full size."""
    return itemsize * (prod(grid(shape, chunk)) * prod(chunk) if chunk else prod(shape))


def chunks_of(array: np.ndarray, chunk: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Each chunk in C order, contiguous, with the last ones padded with zeros."""
    for place in np.ndindex(grid(array.shape, chunk)):
        piece = array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, chunk, strict=True))]
        if piece.shape != chunk:
            whole = np.zeros(chunk, array.dtype)
            whole[tuple(slice(size) for size in piece.shape)] = piece
            piece = whole
        yield np.ascontiguousarray(piece)
