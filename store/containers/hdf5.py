"""A shard as one HDF5 file: one dataset per image and name, contiguous or chunked, large ones at page boundaries."""

import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from championship_sr.store.containers.chunks import ArrayToWrite, Described, grid
from championship_sr.store.containers.compression import HDF5_BLOSC, HDF5_ZSTD, Compression
from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError, Unreadable

PAGE = 4096
_DAMAGE = (KeyError, OSError, RuntimeError, TypeError, ValueError)  # what h5py raises for a damaged file
_lock = threading.Lock()  # HDF5 has one global lock; waiting on ours lets Python's other threads run


class _SilentFile:
    """The file that HDF5 writes to; it keeps the first failure for `check`, as HDF5 may crash when told of one."""

    def __init__(self, path: Path):
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._error: OSError | None = None
        self.read, self.readinto, self.seek = self._file.read, self._file.readinto, self._file.seek
        self.tell, self.flush = self._file.tell, self._file.flush

    def write(self, content: memoryview) -> int:
        """Write all of the bytes, or none once the system has failed."""
        left = memoryview(content).cast("B")
        size = len(left)
        with self._kept():
            while left and not self._error:
                left = left[self._file.write(left) :]
        return size

    def truncate(self, size: int) -> None:
        """Set the file's size."""
        with self._kept():
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file, after HDF5."""
        self._file.close()

    def check(self) -> None:
        """Raise the system's first failure."""
        if self._error:
            raise self._error

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


class Hdf5ShardWriter:
    """An unfinished shard; it is a valid file only after `close`."""

    def __init__(self, path: Path):
        self.path = path
        self._bytes = _SilentFile(path)
        self._file = h5py.File(self._bytes, "w", alignment_threshold=PAGE, alignment_interval=PAGE, locking=False)

    def put(self, array: ArrayToWrite) -> dict[str, Any]:
        """Writes one array and returns what a reader must know to find it.

        raises  OSError if the disk is full
        """
        with self._checked():
            return {"offset": self._put(array)}

    def _put(self, array: ArrayToWrite) -> int | None:
        if array.chunk is None:
            dataset = self._file.create_dataset(array.name, data=array.raw)
            offset = dataset.id.get_offset()
        else:
            dataset = self._create_chunked(array.name, array.raw, array.chunk, array.compression)
            places = np.ndindex(grid(array.raw.shape, array.chunk))
            for place, stored in zip(places, array.stored_chunks(), strict=True):
                corner = tuple(i * step for i, step in zip(place, array.chunk, strict=True))
                dataset.id.write_direct_chunk(corner, stored)
            offset = None
        dataset.attrs.update(array.attributes)
        return offset

    def close(self) -> None:
        """Finish the file.

        raises  OSError if the disk is full; the file is closed anyway
        """
        with self._checked():
            self._file.close()
            self._bytes.close()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._bytes.check()  # raises the system's error: HDF5's own does not say why

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

    raises  StoreError if the file or the dataset is damaged; Unreadable
    """
    with _opened(shard) as file:
        try:
            dataset = file[name]
            steps, counts = dataset.chunks, grid(dataset.shape, dataset.chunks)
            table = np.full((n_chunks, 2), -1, np.int64)
            for i in range(dataset.id.get_num_chunks()):
                info = dataset.id.get_chunk_info(i)
                place = tuple(at // step for at, step in zip(info.chunk_offset, steps, strict=True))
                table[np.ravel_multi_index(place, counts)] = info.byte_offset, info.size
        except (*_DAMAGE, AttributeError, IndexError) as error:
            raise _fault(f"{shard}: cannot find {name} in it", error) from None
    if (table < 0).any():
        raise StoreError(f"{shard}: {name} lacks chunks")
    return table


def describe(shard: Path, names: Iterable[str]) -> dict[str, Described | StoreError]:
    """Array name -> what the container itself says, or why it says nothing.

    raises  StoreError if the file as a whole is damaged; Unreadable
    """
    with _opened(shard) as file:
        return {name: _described(shard, file, name) for name in names}


def _described(shard: Path, file: h5py.File, name: str) -> Described | StoreError:
    try:
        if file.get(name, getclass=True, getlink=True) is not h5py.HardLink:
            return StoreError(f"{shard}: {name} is missing")
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            return StoreError(f"{shard}: {name} is not an array")
        attributes = {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in item.attrs.items()
        }
        dtype = item.dtype.name if item.dtype.isnative else item.dtype.str
        return Described(item.shape, dtype, attributes, item.id.get_offset(), item.chunks, _compression(item))
    except _DAMAGE as error:
        return _fault(f"{shard}: {name} cannot be read in it", error)


def _compression(dataset: h5py.Dataset) -> str | None:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    return {HDF5_ZSTD: "zstd", HDF5_BLOSC: "blosc"}.get(filters[0], str(filters)) if filters else None


@contextmanager
def _opened(shard: Path) -> Iterator[h5py.File]:
    """The file, without HDF5's own lock: leases guard the store, and some file systems know no locks."""
    try:
        files.open_file(shard).close()
    except FileNotFoundError:
        raise StoreError(f"{shard}: missing, although it is recorded") from None
    with _lock:
        try:
            file = _unlocked(shard)
        except _DAMAGE as error:
            raise _fault(f"{shard}: not a readable HDF5 file", error) from None
        with file:
            yield file


def _unlocked(shard: Path) -> h5py.File:
    try:
        return h5py.File(shard, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(shard, "r")  # this process has it open with a lock: HDF5 requires the same each time


def _fault(what: str, error: Exception) -> StoreError:
    """Damage, unless HDF5 gives a system's error number, or says that another process has the file open."""
    told = re.search(r"errno = ([1-9]\d*)", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    if number:
        return Unreadable(f"{what}: cannot be read: {os.strerror(number)}")
    return (Unreadable if re.search(r"\block|already open", str(error)) else StoreError)(f"{what}: {error}")
