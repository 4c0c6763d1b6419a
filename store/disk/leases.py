"""Exclusive write access: the kernel's lock where there is one, and a lease that also works between machines.

The lease beside NAME.lock is a folder NAME.lease with one empty file, COUNT.TOKEN.PID.START.MACHINE.HOST: who holds it,
and a count that the holder's heartbeat raises. Every step is one rename, which succeeds for only one of several
processes. Taking the lease renames a folder made elsewhere, which fails while the existing one holds a file. A beat
renames COUNT to COUNT + 1. Taking over renames exactly the name that has not changed for too long, which fails if the
holder has beaten since. Each watcher measures that time by its own clock: the clocks of two machines are never
compared. docs/format.md is normative.
"""

import errno
import hashlib
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from championship_sr.store.disk import files, locks
from championship_sr.store.disk.locks import ShardBusy

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
STANDING_SECONDS = 180.0  # twice the 90 s for which a restarted NFSv4 server refuses all writes
WAIT_SECONDS = 0.2
SUFFIX = ".lease"
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # NFS without a lock daemon, Lustre without -o flock
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)  # ENOENT: a faster process has removed our folder
_seen: dict[Path, tuple[str, float]] = {}  # lease -> its file's name, and since when this process has seen it stand


class Holder(NamedTuple):
    """The holder that a lease's file name describes: all of the name except the count."""

    token: str
    pid: int
    started: int  # in ticks since the machine's boot: process numbers are reused
    machine: str
    host: str

    @classmethod
    def of(cls, name: str) -> "Holder | None":
        """The holder that the file's name describes; None for a name that another program made."""
        parts = name.split(".", 5)
        if len(parts) < 6 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return cls(parts[1], int(parts[2]), int(parts[3]), *parts[4:])

    def name(self, count: int) -> str:
        return ".".join(map(str, (count, *self)))

    def is_dead(self) -> bool:
        """True if it was a process of this machine and no longer exists."""
        return self.machine == _MACHINE and self.started > 0 and _started(self.pid) != self.started


def _machine() -> str:
    """A name for this boot of this machine and this PID namespace; containers have their own namespaces."""
    try:
        boot, view = Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, view = secrets.token_hex(), ""  # then no process is known to be dead, and every lease is watched
    return hashlib.sha256(f"{platform.node()} {boot} {view}".encode()).hexdigest()[:16]


def _started(pid: int) -> int:
    """When the process was started, in ticks since boot; 0 if it does not exist or the system does not say."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(fields[18])  # a zombie holds nothing any more


_MACHINE = _machine()


class Lease:
    """A lease that is held; a thread beats while it is."""

    def __init__(self, lock: Path) -> None:
        """Takes the lease.


        raises  ShardBusy if somebody else has it
        """
        self._folder = lock.with_suffix(SUFFIX)
        self.token = secrets.token_hex(8)
        self._holder = Holder(self.token, os.getpid(), _started(os.getpid()), _MACHINE, platform.node())
        self._count, self._step, self._over = 0, threading.Lock(), threading.Event()
        there = _file_in(self._folder)
        if there is None:
            self._take()
        else:
            self._take_over(there)
        _seen.pop(self._folder, None)
        threading.Thread(target=self._keep_beating, daemon=True, name=f"lease {self._folder.name}").start()

    def beat(self) -> None:
        """Raises the count, so that watchers start their wait again.

        raises  ShardBusy if another process has taken the lease over
        """
        with self._step:
            here, there = (self._folder / self._holder.name(self._count + i) for i in range(2))
            try:
                os.rename(here, there)
            except FileNotFoundError:
                if not there.exists():  # otherwise NFS sent the request twice, and only the first answer was lost
                    raise ShardBusy(
                        f"{self._folder.with_suffix('')}: taken over by {_told(_file_in(self._folder))} "
                        "while this process was suspended; this process's work on it is discarded"
                    ) from None
            self._count += 1

    def let_go(self) -> None:
        self._over.set()
        with self._step, suppress(OSError):
            (self._folder / self._holder.name(self._count)).unlink(missing_ok=True)
            self._folder.rmdir()  # fails if another process has taken it meanwhile

    def _take(self) -> None:
        fresh = self._folder.with_suffix(f".{self.token}{SUFFIX}")
        fresh.mkdir()
        try:
            (fresh / self._holder.name(0)).touch()
            with suppress(OSError):
                self._folder.rmdir()  # left empty by a process that was killed while it released the lease
            os.rename(fresh, self._folder)
        except OSError as error:
            files.remove(fresh)
            if error.errno not in _TAKEN:
                raise
            raise _busy(self._folder) from None

    def _take_over(self, there: str) -> None:
        holder = Holder.of(there)
        if not (holder and holder.is_dead()) and not _has_stood(self._folder, there):
            raise _busy(self._folder)
        try:
            os.rename(self._folder / there, self._folder / self._holder.name(0))
        except FileNotFoundError:
            raise _busy(self._folder) from None

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self.beat()
            except ShardBusy:
                return
            except OSError:
                continue  # the file server does not answer; the next beat may come through


@contextmanager
def held(lock: Path, wait: bool = False, watch: bool = False) -> Iterator[Lease]:
    """Hold the lock exclusively, among all machines, while the block runs.

    Unfinished files of earlier holders are removed, so that a holder that was only suspended cannot publish them.

    watch   for callers that try once: wait for a sign of life first, and take over from a holder that gives none
    raises  ShardBusy if another process holds it and `wait` is false, or if this one has lost it
    """
    with _flocked(lock, wait):
        lease = _taken(lock, wait, watch)
        try:
            _clear(lock)
            yield lease
        except OSError:
            lease.beat()  # its files are missing because another process has removed them: say so
            raise
        finally:
            lease.let_go()


def is_held(lock: Path) -> bool:
    """True while somebody holds the lock."""
    if not lock.exists() and _file_in(lock.with_suffix(SUFFIX)) is None:
        return False
    try:
        with _flocked(lock, wait=False):
            Lease(lock).let_go()
    except ShardBusy:
        return True
    return False


def revoke(lock: Path, host: str, pid: int) -> None:
    """Free the lease of a process that is known to have died elsewhere, with its node for instance, at once."""
    lease = lock.with_suffix(SUFFIX)
    there = _file_in(lease)
    holder = Holder.of(there) if there else None
    if there and holder and (holder.host, holder.pid) == (host, pid):
        (lease / there).unlink(missing_ok=True)


@contextmanager
def _flocked(lock: Path, wait: bool) -> Iterator[None]:
    """The kernel's lock, where the file system supports it: it is free as soon as its process ends, however it ends."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(lock, wait))
        except ShardBusy:
            raise _busy(lock.with_suffix(SUFFIX)) from None  # the lease tells who it is
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            lock.unlink(missing_ok=True)
        yield


def _taken(lock: Path, wait: bool, watch: bool) -> Lease:
    seen = None
    while True:
        try:
            return Lease(lock)
        except ShardBusy as busy:
            there = _file_in(lock.with_suffix(SUFFIX)) or ""
            if not wait and not (watch and seen in (None, there) and _may_be_dead(there)):
                raise
            if watch and seen is None:
                log.warning("%s; waiting up to %.0f s for a sign of life", busy, STANDING_SECONDS)
            seen = there
        time.sleep(WAIT_SECONDS)


def _may_be_dead(there: str) -> bool:
    """False for a process of this machine: it is alive, or the lease would have been taken over."""
    holder = Holder.of(there)
    return not (holder and holder.machine == _MACHINE and holder.started)


def _clear(lock: Path) -> None:
    """Removes records first: a shard that its writer has just renamed does not count without its record."""
    names = sorted(name for name in os.listdir(lock.parent) if name.startswith(f"{lock.stem}."))
    unfinished = [name for name in names if name.endswith(files.TMP)]
    for name in sorted(unfinished, key=lambda name: not name.endswith(".json" + files.TMP)):
        files.remove(lock.parent / name)
    for name in names:
        if name.endswith(SUFFIX) and name != lock.stem + SUFFIX:
            with suppress(OSError):  # another process is filling it; it will find the lease taken and remove the folder
                files.remove(lock.parent / name)


def _file_in(lease: Path) -> str | None:
    try:
        return min(os.listdir(lease), default=None)
    except FileNotFoundError:
        return None


def _has_stood(lease: Path, there: str) -> bool:
    now = time.monotonic()
    name, since = _seen.get(lease, ("", now))
    since = since if name == there else now
    _seen[lease] = there, since
    return now - since > STANDING_SECONDS


def _told(there: str | None) -> str:
    holder = Holder.of(there) if there else None
    return f"process {holder.pid} on {holder.host}" if holder else "another process"


def _busy(lease: Path) -> ShardBusy:
    return ShardBusy(f"{lease.with_suffix('')}: being written by {_told(_file_in(lease))}")
