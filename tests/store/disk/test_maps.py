import ctypes
import os
import time
import weakref

import numpy as np
import pytest

from championship_sr.store.disk import maps
from championship_sr.store.disk.maps import PAGE, FileMap

PAGES, PITCH = 200, 10 * PAGE


def resident(mapped):
    """Which pages the kernel holds, asked apart from the code under test."""
    address = mapped.__array_interface__["data"][0]
    pages = np.zeros(PAGES, np.uint8)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(PAGES * PAGE), pages.ctypes) == 0
    return pages == 1


@pytest.fixture
def cold(tmp_path):
    """A mapped file that isn't in memory."""
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(0).bytes(PAGES * PAGE))
    mapped = FileMap(path, PAGES * PAGE)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        for _ in range(100):  # a page that some processor still has in hand cannot go yet
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not resident(mapped).any():
                return mapped
            time.sleep(0.01)
    pytest.skip("this file system keeps files in memory")


def wait_for(mapped, wanted):
    end = time.monotonic() + 10
    while not resident(mapped)[sorted(wanted)].all() and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.parametrize("tells", [True, False])
def test_prefetch_brings_exactly_the_pages_of_the_runs(cold, tells):
    cold._tells_residency = tells
    wanted = {first + step for first in range(30, 30 + 10 * 5, 10) for step in (0, 1, 2)}
    assert cold.prefetch(30 * PAGE + 100, 2 * PAGE, PITCH, 5)  # each run begins and ends inside a page
    wait_for(cold, wanted)
    assert cold.prefetch(30 * PAGE + 100, 2 * PAGE, PITCH, 5) != tells
    assert set(np.flatnonzero(resident(cold)).tolist()) == wanted


def test_prefetch_completes_what_is_there_in_part(cold):
    cold.prefetch(40 * PAGE, PAGE)
    wait_for(cold, {40})
    cold.prefetch(30 * PAGE, PAGE, PITCH, 3)
    wait_for(cold, {30, 40, 50})
    assert set(np.flatnonzero(resident(cold)).tolist()) == {30, 40, 50}


def test_a_map_that_is_going_is_never_handed_out_again(tmp_path, monkeypatch):
    """Another thread may ask for it while munmap runs; memory that it then read would be gone."""
    (tmp_path / "file").write_bytes(bytes(5000))
    opened, library, seen = weakref.WeakValueDictionary(), maps._libc, []

    class Library:
        mmap, madvise = library.mmap, library.madvise

        def munmap(self, *region: int) -> int:
            seen.append(opened.get("file"))
            return library.munmap(*region)

    monkeypatch.setattr(maps, "_libc", Library())
    opened["file"] = held = FileMap(tmp_path / "file", 5000)
    del held
    assert seen == [None]


def test_large_pages_are_asked_for_inside_the_memory_alone(monkeypatch):
    asked = []

    class Library:
        def madvise(self, *region: int) -> int:
            asked.append(region)
            return 0

    monkeypatch.setattr(maps, "_libc", Library())
    monkeypatch.setattr(maps, "_MADV_HUGEPAGE", 14)
    maps.prefer_large_pages(3 * PAGE + 64, 5 * PAGE)
    assert asked == [(4 * PAGE, 4 * PAGE, 14)]


def test_a_system_without_large_pages_is_not_asked(monkeypatch):
    monkeypatch.setattr(maps, "_libc", None)
    monkeypatch.setattr(maps, "_MADV_HUGEPAGE", None)
    maps.prefer_large_pages(3 * PAGE, 5 * PAGE)
