"""A shard as one HDF5 file: one dataset per image and name, contiguous or chunked, large ones at page boundaries."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from championship_sr.store.containers.chunks import Described, chunks_of, grid
from championship_sr.store.containers.compression import Compression
from championship_sr.store.errors import StoreError

PAGE = 4096
_lock = threading.Lock()  # HDF5 itself has one lock for all; ours lets Python's other threads go on


class Hdf5ShardWriter:
    """An unfinished shard; it is a valid file after `close` only."""

    def __init__(self, path: Path):
        self.path = path
        self._file = h5py.File(path, "w", alignment_threshold=PAGE, alignment_interval=PAGE)

    def put(
        self,
        name: str,
        raw: np.ndarray,
        chunk: tuple[int, ...] | None,
        compression: Compression | None,
        attributes: Mapping,
    ) -> dict[str, Any]:
        """Write one array; what a reader must know to find it."""
        if chunk is None:
            dataset = self._file.create_dataset(name, data=raw)
            offset = dataset.id.get_offset()
        else:
            dataset = self._create_chunked(name, raw, chunk, compression)
            places = np.ndindex(grid(raw.shape, chunk))
            for place, piece in zip(places, chunks_of(raw, chunk), strict=True):
                corner = tuple(i * step for i, step in zip(place, chunk, strict=True))
                dataset.id.write_direct_chunk(corner, compression.encode(piece) if compression else piece.tobytes())
            offset = None
        dataset.attrs.update(attributes)
        return {"offset": offset}

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _create_chunked(
        self, name: str, raw: np.ndarray, chunk: tuple[int, ...], compression: Compression | None
    ) -> h5py.Dataset:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(chunk)
        if compression:  # optional: the filter's library is needed to read the file with h5py, not to write it here
            number, options = compression.hdf5_filter(raw.itemsize, raw.itemsize * int(np.prod(chunk)))
            properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, options)
        group = self._file.require_group(name.rpartition("/")[0])
        space = h5py.h5s.create_simple(raw.shape)
        kind = h5py.h5t.py_create(raw.dtype)
        h5py.h5d.create(group.id, name.rpartition("/")[2].encode(), kind, space, properties).close()
        return self._file[name]


def data_file(shard: Path, name: str) -> Path:
    """The file in which the array's chunks lie."""
    return shard


def chunk_table(shard: Path, name: str, n_chunks: int) -> np.ndarray:
    """(n, 2) offset and length of each chunk in its file, in C order.

    raises  StoreError if the file or the dataset is damaged
    """
    try:
        with _lock, h5py.File(shard, "r") as file:
            dataset = file[name]
            steps, counts = dataset.chunks, grid(dataset.shape, dataset.chunks)
            table = np.full((n_chunks, 2), -1, np.int64)
            for i in range(dataset.id.get_num_chunks()):
                info = dataset.id.get_chunk_info(i)
                place = tuple(at // step for at, step in zip(info.chunk_offset, steps, strict=True))
                table[np.ravel_multi_index(place, counts)] = info.byte_offset, info.size
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{shard}: {name} cannot be found in it: {error}") from None
    if (table < 0).any():
        raise StoreError(f"{shard}: {name} lacks chunks")
    return table


def describe(shard: Path) -> dict[str, Described]:
    """Array name -> what the container itself says.

    raises  StoreError if the file is damaged
    """
    result = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            attributes = {
                key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in item.attrs.items()
            }
            result[name] = Described(item.shape, item.dtype.name, attributes, item.id.get_offset())

    try:
        with _lock, h5py.File(shard, "r") as file:
            file.visititems(visit)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{shard}: not a readable HDF5 file: {error}") from None
    return result
