"""A shard as a Zarr v3 group: one array per image and name, each in one sharded chunk file.

Written by hand, to the letter of the Zarr v3 specification, for three things that zarr-python does not promise:
chunks in C order, so that a window is few runs of bytes; no gap before the first; and no time lost per chunk.
"""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from championship_sr.store.containers.chunks import Described, chunks_of, grid
from championship_sr.store.containers.compression import Compression
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

    def put(
        self, name: str, raw: np.ndarray, chunk: tuple[int, ...], compression: Compression | None, attributes: Mapping
    ) -> dict[str, Any]:
        """Write one array; what a reader must know to find it."""
        folder = self.path / name
        if not folder.parent.exists():
            folder.parent.mkdir()
            self._group(folder.parent)
        folder.mkdir()
        _write_json(folder / "zarr.json", _array_metadata(raw, chunk, compression, attributes))
        index = []
        with open(folder / _CHUNK_FILE, "wb") as file:
            for piece in chunks_of(raw, chunk):
                stored = compression.encode(piece) if compression else piece.data
                index.append((file.tell(), len(stored) if compression else piece.nbytes))
                file.write(stored)
            packed = np.array(index, "<u8").tobytes()
            file.write(packed + google_crc32c.value(packed).to_bytes(INDEX_CHECKSUM, "little"))
            return {"offset": None if compression else 0, "file_bytes": file.tell()}

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

    raises  StoreError if the index is missing or damaged
    """
    path = data_file(shard, name)
    try:
        with open(path, "rb") as file:
            file.seek(-(n_chunks * INDEX_ENTRY + INDEX_CHECKSUM), os.SEEK_END)
            packed = file.read(n_chunks * INDEX_ENTRY)
            checksum = int.from_bytes(file.read(), "little")
    except OSError as error:
        raise StoreError(f"{path}: the index of its chunks cannot be read: {error.strerror}") from None
    if google_crc32c.value(packed) != checksum:
        raise StoreError(f"{path}: the index of its chunks is damaged (crc32c)")
    return np.frombuffer(packed, "<u8").astype(np.int64).reshape(-1, 2)


def describe(shard: Path) -> dict[str, Described]:
    """Array name -> what the container itself says.

    raises  StoreError naming the first array whose description or index is damaged
    """
    return {path.parent.relative_to(shard).as_posix(): _described(shard, path) for path in shard.glob("*/*/zarr.json")}


def _described(shard: Path, path: Path) -> Described:
    try:
        content = parse_json(read_small(path))
        options = content["codecs"][0]["configuration"]
        shape, chunk = tuple(content["shape"]), tuple(options["chunk_shape"])
        dtype, attributes = np.dtype(content["data_type"]), content["attributes"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    table = chunk_table(shard, path.parent.relative_to(shard).as_posix(), prod(grid(shape, chunk)))
    step = prod(chunk) * dtype.itemsize
    in_order = (table == np.stack([np.arange(len(table)) * step, np.full(len(table), step)], 1)).all()
    compressed = len(options["codecs"]) > 1
    return Described(shape, dtype.name, attributes, 0 if in_order and not compressed else None)


def _array_metadata(
    raw: np.ndarray, chunk: tuple[int, ...], compression: Compression | None, attributes: Mapping
) -> dict:
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    shard_shape = [count * size for count, size in zip(grid(raw.shape, chunk), chunk, strict=True)]
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [plain, *([compression.zarr_codec(raw.itemsize)] if compression else [])],
        "index_codecs": [plain, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(raw.shape),
        "data_type": raw.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if raw.dtype.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
        "dimension_names": ["row", "column", "channel"],
    }


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
