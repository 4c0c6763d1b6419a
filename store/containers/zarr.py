"""A shard as a Zarr v3 group: one array per image and name, each in one sharded chunk file.

Written by hand, to the letter of the Zarr v3 specification, for three things that zarr-python does not promise:
chunks in C order, so that a window is few runs of bytes; no gap before the first; and no time lost per chunk.
"""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from championship_sr.store.containers.chunks import ArrayToWrite, Described, grid
from championship_sr.store.containers.compression import Compression, get_compression
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import StoreError

INDEX_ENTRY = 16  # offset and length of a chunk, two little-endian u64
INDEX_CHECKSUM = 4  # crc32c
_CHUNK_FILE = "c.0.0.0"


class ZarrShardWriter:
    """An unfinished shard; nothing in it is synced before `publish`."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir()
        self._group(path)

    def put(self, array: ArrayToWrite) -> dict[str, Any]:
        """Writes one array and returns what a reader must know to find it."""
        folder = self.path / array.name
        if not folder.parent.exists():
            folder.parent.mkdir()
            self._group(folder.parent)
        folder.mkdir()
        shape, dtype = array.raw.shape, array.raw.dtype
        metadata = _array_metadata(shape, dtype, array.chunk or shape, array.compression, array.attributes)
        _write_json(folder / "zarr.json", metadata)
        index = []
        with open(folder / _CHUNK_FILE, "wb") as file:
            for stored in array.stored_chunks():
                index.append((file.tell(), stored.nbytes))
                file.write(stored)
            packed = np.array(index, "<u8").tobytes()
            file.write(packed + google_crc32c.value(packed).to_bytes(INDEX_CHECKSUM, "little"))
            return {"offset": None if array.compression else 0, "file_bytes": file.tell()}

    def close(self) -> None:
        """Nothing is open between two arrays."""

    @staticmethod
    def _group(path: Path) -> None:
        _write_json(path / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})


def data_file(shard: Path, name: str) -> Path:
    """The file in which the array's chunks lie."""
    return shard / name / _CHUNK_FILE


def chunk_table(shard: Path, name: str, n_chunks: int) -> np.ndarray:
    """(n, 2) offset and length of each chunk in its file, in C order.

    raises  StoreError if the index is missing or damaged; Unreadable
    """
    path = data_file(shard, name)
    try:
        with files.reading(path), files.open_file(path) as file:
            size = n_chunks * INDEX_ENTRY + INDEX_CHECKSUM
            if os.fstat(file.fileno()).st_size < size:
                raise StoreError(f"{path}: its chunk index is missing (truncated)")
            file.seek(-size, os.SEEK_END)
            packed = file.read(n_chunks * INDEX_ENTRY)
            checksum = int.from_bytes(file.read(), "little")
    except FileNotFoundError:
        raise StoreError(f"{path}: missing, although its shard is recorded as whole") from None
    if google_crc32c.value(packed) != checksum:
        raise StoreError(f"{path}: its chunk index is damaged (crc32c)")
    return np.frombuffer(packed, "<u8").astype(np.int64).reshape(-1, 2)


def describe(shard: Path, names: Iterable[str]) -> dict[str, Described | StoreError]:
    """Array name -> what the container itself says, or why it says nothing; damaged groups under their own names."""
    names = list(names)
    faults: dict[str, Described | StoreError] = {}
    for group in sorted({"", *(name.rpartition("/")[0] for name in names)}):
        fault = _group_fault(shard / group)
        if fault:
            faults[f"{group}/zarr.json"] = fault
    return faults | {name: _described(shard, name) for name in names}


def _group_fault(folder: Path) -> StoreError | None:
    try:
        content = _read_json(folder / "zarr.json")
    except StoreError as error:
        return error
    plain = {"zarr_format": 3, "node_type": "group"}
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in plain.items()):
        return StoreError(f"{folder / 'zarr.json'}: damaged: it does not describe a group")
    return None


def _described(shard: Path, name: str) -> Described | StoreError:
    path = shard / name / "zarr.json"
    try:
        content = _read_json(path)
        options = content["codecs"][0]["configuration"]
        shape, chunk = tuple(content["shape"]), tuple(options["chunk_shape"])
        dtype, attributes = np.dtype(content["data_type"]), content["attributes"]
        kinds = [codec["name"] for codec in options["codecs"][1:]]
        compression = get_compression(kinds[0], path.name) if kinds else None
        _check_as_written(content, shape, dtype, chunk, compression, path)
        table = chunk_table(shard, name, prod(grid(shape, chunk)))
    except StoreError as error:
        return error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        return StoreError(f"{path}: damaged: {error or type(error).__name__}")
    step = prod(chunk) * dtype.itemsize
    in_order = (table == np.stack([np.arange(len(table)) * step, np.full(len(table), step)], 1)).all()
    offset = 0 if in_order and compression is None else None
    return Described(shape, dtype.name, attributes, offset, chunk, compression.name if compression else None)


def _check_as_written(
    content: Mapping, shape: tuple, dtype: np.dtype, chunk: tuple, compression: Compression | None, path: Path
) -> None:
    """Refuse metadata with which Zarr would read other numbers; other keys than ours decide nothing.

    raises  StoreError naming the keys
    """
    if len(shape) != 3 or len(chunk) != 3 or not all(type(n) is int and 0 < n < 2**31 for n in (*shape, *chunk)):
        raise StoreError(f"{path}: damaged: shape {shape} in chunks of {chunk}")
    expected = _array_metadata(shape, dtype, chunk, compression, content["attributes"])
    if "dimension_names" not in content:
        del expected["dimension_names"]
    different = [key for key in expected if _plain(content.get(key)) != _plain(expected[key])]
    if different:
        raise StoreError(f"{path}: damaged: {', '.join(different)} differ from what was written")


def _plain(part: Any) -> Any:
    """Without the options of a compressor, which decide nothing when its chunks are read."""
    if isinstance(part, Mapping):
        kept = {"name": part["name"]} if part.get("name") in ("zstd", "blosc") else part
        return {key: _plain(value) for key, value in kept.items()}
    return [_plain(value) for value in part] if isinstance(part, list) else part


def _read_json(path: Path) -> Any:
    try:
        with files.reading(path):
            return parse_json(read_small(path))
    except FileNotFoundError:
        raise StoreError(f"{path}: missing, although its shard is recorded as whole") from None
    except ValueError as error:
        raise StoreError(f"{path}: damaged: {error}") from None


def _array_metadata(
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunk: tuple[int, ...],
    compression: Compression | None,
    attributes: Mapping,
) -> dict:
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    shard_shape = [count * size for count, size in zip(grid(shape, chunk), chunk, strict=True)]
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [plain, *([compression.zarr_codec(dtype.itemsize)] if compression else [])],
        "index_codecs": [plain, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
        "dimension_names": ["row", "column", "channel"],
    }


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
