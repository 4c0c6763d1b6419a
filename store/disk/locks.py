"""Kernel locks on shards, held by one process and released when it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from championship_sr.store.errors import StoreError


class ShardBusy(StoreError):
    """Somebody else writes the shard, or has just written it: come back later."""


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file exclusively while the block runs.

    flock, not a file that merely exists: the kernel releases it however the process ends. It also keeps
    two threads of one process apart, which fcntl's record locks do not.

    raises  ShardBusy if another process holds it and `wait` is false
    """
    handle = _open_locked(path, wait)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()  # before the lock is released, so that a waiting process notices that the file is another
        os.close(handle)


def _open_locked(path: Path, wait: bool) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise ShardBusy(f"{path.with_suffix('')}: being written by another process") from None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
