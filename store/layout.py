"""Where everything lies in a store and how a window is found in it: names, chunk shapes, the eight variants.

docs/format.md states the same in prose and is normative.
"""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.errors import ConfigError

FORMAT_VERSION = 1
PAIRS = "pairs"  # the source that holds lr and hr; every other source is an expert
CONTAINERS = {"zarr": ".zarr", "hdf5": ".h5"}
VARIANTS = ("identity", "mirror", "rot90", "rot180", "rot270", "mirror_rot90", "mirror_rot180", "mirror_rot270")

WIDE_CHANNELS = 16  # arrays with fewer channels are images, the others features
BAND_ROWS = 8  # a last band is filled up to whole, so that more rows would waste space
STRIP_COLS = 32  # of images, which lie in strips of whole columns: measured in docs/log.md, "Store layout"
COMPRESSED_IMAGE_TILE = (32, 64)
COMPRESSED_TILE = (32, 32)  # of features: a window of 64 x 64 decodes 2.2 times its bytes

UNFINISHED = (".tmp", ".rebuild")  # ends of names that are nobody's: files.TMP, and an expert made anew

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Described(NamedTuple):
    """What a container itself says about an array; `offset` of the first chunk, None if they do not follow in order."""

    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]
    offset: int | None


def checked_name(name: str, what: str) -> str:
    """The name, if it can be a folder and a part of an array's name on any system.

    raises  ConfigError otherwise
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r}: only letters, digits and ._+- are allowed, the first a letter or digit")
    if name.endswith(UNFINISHED):
        raise ConfigError(f"{what} {name!r}: must not end in {' or '.join(UNFINISHED)}")
    return name


def source_dir(root: Path, source: str, rebuild: bool = False) -> Path:
    """The folder of a source's shards; with `rebuild` the one beside it, where an expert is made anew."""
    if source == PAIRS:
        return root / PAIRS
    return root / "experts" / (f"{source}.rebuild" if rebuild else source)


def shard_stem(shard: int) -> str:
    """The name of a shard without its ending."""
    return f"shard-{shard:05d}"


def shard_number(name: str) -> int | None:
    """The number in a shard's name, None for a name of something else."""
    found = re.match(r"shard-(\d{5,})\.", name)
    return int(found.group(1)) if found else None


def array_key(image_id: str, name: str, variant: str = "identity") -> str:
    """The array's name inside its shard."""
    return f"{image_id}/{name}" if variant == "identity" else f"{image_id}/{name}@{variant}"


def variant_size(size: tuple[int, int], variant: str) -> tuple[int, int]:
    """Rows and columns of an image of this size after the variant."""
    return size[::-1] if _quarter_turns(variant) % 2 else size


def transform(array: Any, variant: str, axes: tuple[int, int] = (0, 1)) -> Any:
    """The array mirrored (left to right), then turned counter-clockwise; numpy or torch, a view where it can be.

    axes  the two spatial axes, rows first
    """
    rows, columns = axes
    if variant.startswith("mirror"):
        array = _flip(array, columns)
    turns = _quarter_turns(variant)
    if turns == 1:
        return _flip(array, columns).swapaxes(rows, columns)
    if turns == 2:
        return _flip(_flip(array, rows), columns)
    if turns == 3:
        return _flip(array.swapaxes(rows, columns), columns)
    return array


def inverse(variant: str) -> str:
    """The variant that undoes this one; a mirrored one undoes itself."""
    return {"rot90": "rot270", "rot270": "rot90"}.get(variant, variant)


def window_before(window: tuple[int, int, int, int], variant: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The window (y, x, rows, columns) of the untransformed image whose transform is this window of the variant.

    size  rows and columns of the untransformed image
    """
    y, x, rows, cols = window
    height, width = variant_size(size, variant)
    for _ in range(-_quarter_turns(variant) % 4):  # turn the window on, counter-clockwise, to a full turn
        y, x, rows, cols, height, width = width - x - cols, y, cols, rows, width, height
    if variant.startswith("mirror"):
        x = width - x - cols
    return y, x, rows, cols


def _quarter_turns(variant: str) -> int:
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    return int(variant.partition("rot")[2] or 0) // 90


def _flip(array: Any, axis: int) -> Any:
    return np.flip(array, axis) if isinstance(array, np.ndarray) else array.flip(axis)


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
    found = re.fullmatch(r"tiles:([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise ConfigError(f"chunks {text!r}: expected default, rows or tiles:ROWSxCOLUMNS")
    return _tile((int(found.group(1)), int(found.group(2))), shape)


def _tile(tile: tuple[int, int], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return min(tile[0], shape[0]), min(tile[1], shape[1]), shape[2]


def grid(shape: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[int, ...]:
    """How many chunks lie along each axis."""
    return tuple(-(-size // step) for size, step in zip(shape, chunk, strict=True))


def padded_bytes(shape: tuple[int, ...], chunk: tuple[int, ...] | None, itemsize: int) -> int:
    """Bytes of the array's chunks, the last ones filled up to whole."""
    return itemsize * (prod(grid(shape, chunk)) * prod(chunk) if chunk else prod(shape))


def chunks_of(array: np.ndarray, chunk: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Each chunk in C order, contiguous, the last ones filled up with zeros."""
    for place in np.ndindex(grid(array.shape, chunk)):
        piece = array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, chunk, strict=True))]
        if piece.shape != chunk:
            whole = np.zeros(chunk, array.dtype)
            whole[tuple(slice(size) for size in piece.shape)] = piece
            piece = whole
        yield np.ascontiguousarray(piece)
