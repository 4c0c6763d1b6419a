"""Memory-mapped files, and bounded caches of open files.

mmap(2) is called directly: Python's mmap keeps a file descriptor for each map, and a process gets 1,024 of them by
default, while a store has tens of thousands of files.
"""

import ctypes
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np

from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError, Unreadable

PAGE = 4096
READ_BYTES = 1 << 17
_PROT_READ, _MAP_SHARED = 1, 1
_MADV_RANDOM, _MADV_WILLNEED = 1, 3
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)  # only on Linux

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_MAP_FAILED = ctypes.c_void_p(-1).value


class FileMap:
    """A whole file, read only; it is unmapped when the last array that views it is gone."""

    def __init__(self, path: Path, n_bytes: int):
        """Map the file.

        raises  FileNotFoundError; StoreError if it is not of this size; Unreadable
        """
        with files.open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != n_bytes:
                raise StoreError(f"{path}: {size} bytes, expected {n_bytes} (truncated, or from another store)")
            address = _libc.mmap(None, n_bytes, _PROT_READ, _MAP_SHARED, file.fileno(), 0)
            if address == _MAP_FAILED:
                number = ctypes.get_errno()
                raise Unreadable(f"{path}: cannot be mapped: {os.strerror(number)}")
        self._path, self._address, self._region = path, address, _Region(address, n_bytes)
        self._tells_residency = os.access(
            path, os.W_OK
        )  # for other users' files, mincore reports everything as in memory
        # the kernel's read-ahead would read several times what a window needs; `prefetch` asks for exactly that
        _libc.madvise(address, n_bytes, _MADV_RANDOM)
        self.__array_interface__ = {"data": (address, True), "shape": (n_bytes,), "typestr": "|u1", "version": 3}

    def view(self, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> np.ndarray:
        """An array on the map, which keeps it alive."""
        n_bytes = dtype.itemsize
        for size in shape:
            n_bytes *= size
        return np.asarray(self)[offset : offset + n_bytes].view(dtype).reshape(shape)

    def read_through(self, offset: int, n_bytes: int) -> None:
        """Read these bytes by read(2): a page of a map that the disk cannot give ends the process instead.

        raises  StoreError if the file ends before; Unreadable
        """
        buffer, end = bytearray(min(n_bytes, READ_BYTES)), offset + n_bytes
        try:
            with files.reading(self._path), files.open_file(self._path) as file:
                file.seek(offset)
                while offset < end:
                    count = file.readinto(memoryview(buffer)[: end - offset])
                    if not count:
                        raise StoreError(f"{self._path}: {offset} bytes, expected {end} (truncated)")
                    offset += count
        except FileNotFoundError:
            raise StoreError(f"{self._path}: has been removed since it was opened") from None

    def prefetch(self, offset: int, n_bytes: int, pitch: int = 0, runs: int = 1) -> bool:
        """Ask for the pages of these runs of bytes, `pitch` apart, without waiting; False if they are in memory.

        Asking costs as much as copying, so nothing is asked for if the first, the middle and the last run are in
        memory: what lies between was read with them, or else is read when it is touched.
        """
        first, n_bytes = self._address + int(offset), int(n_bytes)  # windows drawn by numpy come as numpy integers
        if self._tells_residency and all(_resident(first + run * pitch, n_bytes) for run in {0, runs // 2, runs - 1}):
            return False
        for start in range(first, first + runs * pitch, pitch) if pitch else [first]:
            page = start & -PAGE
            _libc.madvise(page, start + n_bytes - page, _MADV_WILLNEED)
        return True


def prefer_large_pages(address: int, n_bytes: int) -> None:
    """Ask for pages of 2 MiB, if the system has them, for memory that has not been written to yet."""
    if _MADV_HUGEPAGE is not None:
        first, end = -(-address // PAGE) * PAGE, (address + n_bytes) & -PAGE
        _libc.madvise(first, max(end - first, 0), _MADV_HUGEPAGE)


class _Region:
    """Mapped memory, unmapped when its FileMap is gone.

    FileMap does not do this itself: a weak reference still returns an object while its own __del__ runs, and munmap
    lets other threads run. There are no weak references to this object. It keeps its own reference to munmap: when
    a script ends, this module's names may be cleared before a store that the script still holds.
    """

    def __init__(self, address: int, n_bytes: int):
        self._address, self._n_bytes, self._munmap = address, n_bytes, _libc.munmap

    def __del__(self) -> None:
        self._munmap(self._address, self._n_bytes)


def _resident(start: int, n_bytes: int) -> bool:
    page = start & -PAGE
    held = ctypes.create_string_buffer(-(-(start + n_bytes - page) // PAGE))
    return _libc.mincore(page, start + n_bytes - page, held) == 0 and b"\0" not in held.raw


class Cache:
    """The most recently used values, up to a total cost; safe in threads and after fork.

    `make` may run twice for one key in two threads; both results are right, one is kept.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self.clear()
        _caches.add(self)

    def clear(self) -> None:
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any], cost: Callable[[Any], int] = lambda value: 1) -> Any:
        """The value of the key, made if it is not in the cache."""
        with self._lock:
            kept = self._values.get(key)
            if kept is not None:
                self._values.move_to_end(key)
                return kept[0]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value, cost(value)
                self._cost += cost(value)
                while self._cost > self._limit and len(self._values) > 1:
                    self._cost -= self._values.popitem(last=False)[1][1]
        return value

    def forget(self, condition: Callable[[Any], bool]) -> None:
        """Let go of the values whose keys fulfil the condition."""
        with self._lock:
            for key in [key for key in self._values if condition(key)]:
                self._cost -= self._values.pop(key)[1]


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):  # another thread may have held the lock, and will never release it in this process
        cache.clear()


os.register_at_fork(after_in_child=_after_fork)
