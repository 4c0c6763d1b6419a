"""A shard as a Zarr v3 group: one array per image and name, each in one sharded chunk file.

Written by hand, to the letter of the Zarr v3 specification, for three things that zarr-python does not promise:
chunks in C order, so that a window is few runs of bytes; no gap before the first; and no time lost per chunk.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from store.compression import Compression
from store.errors import StoreError
from store.layout import chunks_of, grid

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

    raises  StoreError if the index is damaged
    """
    path = data_file(shard, name)
    with open(path, "rb") as file:
        file.seek(-(n_chunks * INDEX_ENTRY + INDEX_CHECKSUM), 2)
        packed = file.read(n_chunks * INDEX_ENTRY)
        checksum = int.from_bytes(file.read(), "little")
    if google_crc32c.value(packed) != checksum:
        raise StoreError(f"{path}: the index of its chunks is damaged (crc32c)")
    return np.frombuffer(packed, "<u8").astype(np.int64).reshape(-1, 2)


def describe(shard: Path) -> dict[str, tuple[tuple[int, ...], str, dict[str, Any]]]:
    """Array name -> shape, data type and attributes, as the container itself says."""
    result = {}
    for path in sorted(shard.glob("*/*/zarr.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        name = path.parent.relative_to(shard).as_posix()
        result[name] = (tuple(content["shape"]), content["data_type"], content["attributes"])
    return result


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
