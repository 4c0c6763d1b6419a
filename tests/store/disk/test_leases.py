"""Leases without the kernel's help: flock is switched off, as on a file system that hasn't got it."""

import errno
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from championship_sr.store.disk import leases
from championship_sr.store.disk.leases import Holder, held, is_held, revoke
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard

ELSEWHERE = Holder("feed", 4711, 99, "another-machine", "node7.cluster")


@pytest.fixture(autouse=True)
def no_flock(monkeypatch):
    def refuse(_handle, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.fixture
def clock(monkeypatch):
    """This process's own clock, set by hand."""
    now = [1000.0]
    monkeypatch.setattr("championship_sr.store.disk.leases.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "shard-00000.lock"


def lay(lock: Path, name: str) -> Path:
    """The lease's file, as another machine makes it."""
    lease = lock.with_suffix(".lease")
    lease.mkdir()
    (lease / name).touch()
    return lease


def try_to_take(lock: Path) -> bool:
    try:
        with held(lock):
            return True
    except ShardBusy:
        return False


def test_one_holds_it_and_nothing_is_left_of_it(lock):
    with held(lock):
        (name,) = os.listdir(lock.with_suffix(".lease"))
        assert Holder.of(name)[1:] == (os.getpid(), leases._started(os.getpid()), leases._MACHINE, os.uname().nodename)
        assert is_held(lock)
        with pytest.raises(ShardBusy, match=rf"shard-00000: being written by process {os.getpid()} on "), held(lock):
            pass
    assert not is_held(lock)
    assert not os.listdir(lock.parent)


def test_the_heartbeat_raises_the_count(lock, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.002)
    with held(lock):
        until = time.monotonic() + 10
        while int(os.listdir(lock.with_suffix(".lease"))[0].split(".")[0]) < 3:
            assert time.monotonic() < until
            time.sleep(0.002)


def test_a_machine_that_beats_is_respected_and_one_that_stands_is_not(lock, clock):
    lease = lay(lock, ELSEWHERE.name(0))
    for count in range(5):
        with pytest.raises(ShardBusy, match=r"being written by process 4711 on node7\.cluster"), held(lock):
            pass
        clock[0] += leases.STANDING_SECONDS - 1
        os.rename(lease / ELSEWHERE.name(count), lease / ELSEWHERE.name(count + 1))
    assert not try_to_take(lock)
    clock[0] += leases.STANDING_SECONDS - 1
    assert not try_to_take(lock)
    clock[0] += 2
    assert try_to_take(lock)


@pytest.mark.parametrize("hours", [-30, 30])
def test_clocks_that_differ_between_machines_change_nothing(lock, clock, monkeypatch, hours):
    lease = lay(lock, ELSEWHERE.name(3))
    off = time.time() + 3600 * hours
    for path in (lease, lease / ELSEWHERE.name(3)):
        os.utime(path, (off, off))
    monkeypatch.setattr("time.time", lambda: off)
    assert not try_to_take(lock)
    clock[0] += leases.STANDING_SECONDS - 1
    assert not try_to_take(lock)
    clock[0] += 2
    assert try_to_take(lock)


def test_a_holder_that_beats_just_before_he_is_taken_over_keeps_the_lease(lock, clock, monkeypatch):
    lease, rename = lay(lock, ELSEWHERE.name(0)), os.rename
    try_to_take(lock)
    clock[0] += leases.STANDING_SECONDS + 1

    def late_beat(here, there):
        monkeypatch.setattr(os, "rename", rename)
        rename(lease / ELSEWHERE.name(0), lease / ELSEWHERE.name(1))
        rename(here, there)

    monkeypatch.setattr(os, "rename", late_beat)
    assert not try_to_take(lock)
    assert os.listdir(lease) == [ELSEWHERE.name(1)]


def test_a_process_of_this_machine_that_is_no_more_is_taken_over_at_once(lock):
    gone = Holder("feed", os.getpid(), leases._started(os.getpid()) + 1, leases._MACHINE, "here")
    lease = lay(lock, gone.name(0))  # the number lives on in another process: this one
    assert try_to_take(lock)
    lay(lock, gone._replace(started=gone.started - 1).name(0))
    assert not try_to_take(lock)
    assert lease.exists()


def test_who_tries_once_waits_for_a_sign_of_life(lock, monkeypatch):
    monkeypatch.setattr(leases, "WAIT_SECONDS", 0.01)
    lease = lay(lock, ELSEWHERE.name(0))
    beat = threading.Timer(0.1, os.rename, (lease / ELSEWHERE.name(0), lease / ELSEWHERE.name(1)))
    beat.start()
    with pytest.raises(ShardBusy, match="process 4711 on node7"), held(lock, watch=True):
        pass
    beat.join()
    monkeypatch.setattr(leases, "STANDING_SECONDS", 0.2)
    with held(lock, watch=True):
        assert ELSEWHERE.name(1) not in os.listdir(lease)
        with pytest.raises(ShardBusy), held(lock, watch=True):  # this machine's own processes are known to live
            pass


def test_what_another_program_calls_its_lease_is_watched_like_any_other(lock, clock):
    lay(lock, "somebody")
    with pytest.raises(ShardBusy, match="being written by another process"), held(lock):
        pass
    clock[0] += leases.STANDING_SECONDS + 1
    assert try_to_take(lock)


def test_a_lease_that_was_being_let_go_is_free(lock):
    lock.with_suffix(".lease").mkdir()
    assert not is_held(lock)
    assert try_to_take(lock)


def test_a_process_that_is_known_to_be_dead_elsewhere_need_not_be_watched(lock):
    lay(lock, ELSEWHERE.name(5))
    revoke(lock, "node8", ELSEWHERE.pid)
    assert is_held(lock)
    revoke(lock, ELSEWHERE.host, ELSEWHERE.pid)
    assert try_to_take(lock)


@pytest.mark.parametrize("standing", [True, False], ids=["taken over", "free"])
def test_of_many_takers_one_wins(tmp_path, clock, monkeypatch, standing):
    monkeypatch.setattr(leases, "_clear", lambda lock: None)  # it hides the race of the takers' own folders
    with ThreadPoolExecutor(8) as pool:
        for i in range(40):
            lock, start = tmp_path / f"shard-{i:05d}.lock", threading.Barrier(8)
            if standing:
                lay(lock, ELSEWHERE.name(0))
                try_to_take(lock)
                clock[0] += leases.STANDING_SECONDS + 1

            def take(_, lock=lock, start=start):
                start.wait()
                try:
                    return leases.Lease(lock)
                except ShardBusy:
                    return None

            winners = [lease for lease in pool.map(take, range(8)) if lease]
            assert len(winners) == 1
            assert os.listdir(lock.with_suffix(".lease"))[0].split(".")[1] == winners[0].token
            winners[0].let_go()
    assert not os.listdir(tmp_path)


def test_those_who_wait_take_turns(lock, monkeypatch):
    monkeypatch.setattr(leases, "WAIT_SECONDS", 0.001)
    inside = []

    def take(_):
        with held(lock, wait=True):
            inside.append(1)
            assert len(inside) == 1
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(40)))
    assert not os.listdir(lock.parent)


def fill(manifest: Manifest, value: float, shard: int = 0):
    """The shard's writer, with every array in it but not closed."""
    context = write_shard(manifest, "a", shard)
    out = context.__enter__()
    for image in manifest.images_of(shard):
        rows, cols = image.lr_size
        sr = np.full((4 * rows, 4 * cols, 3), value, np.float32)
        out.add(image.id, {"sr": sr, "features": np.full((rows, cols, 5), value, np.float32)})
    return context


@pytest.fixture(params=["zarr", "hdf5"])
def manifest(request, tmp_path, make_store):
    return Manifest.load(make_store(tmp_path / "s", {"a": 5}, shards=[1], container=request.param))


def value_of(manifest: Manifest) -> float:
    assert not verify(manifest.root).faults
    assert not [path for path in manifest.root.rglob("*") if path.suffix in (".tmp", ".lock", ".lease")]
    return float(Store(manifest.root).array(0, "a", "features").load()[0, 0, 0])


def in_a_child(work) -> tuple:
    """`work(tell)` in a process of its own; what it tells comes through the pipe."""
    fork = get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=work, args=(there.send,))
    child.start()
    return child, here


def test_a_killed_holder_is_taken_over(manifest):
    def hold(tell):
        with write_shard(manifest, "a", 0):
            tell("holds")
            time.sleep(60)

    child, pipe = in_a_child(hold)
    assert pipe.poll(20)
    with pytest.raises(ShardBusy, match=f"written by process {child.pid}"), write_shard(manifest, "a", 0):
        pass
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    fill(manifest, 0.5).__exit__(None, None, None)
    child.join()
    assert value_of(manifest) == 0.5


def test_a_holder_that_stood_still_too_long_publishes_nothing(manifest, clock):
    def hold(tell):
        context = fill(manifest, 0.25)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            context.__exit__(None, None, None)
        except ShardBusy as busy:
            tell(str(busy))

    child, pipe = in_a_child(hold)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    with pytest.raises(ShardBusy), write_shard(manifest, "a", 0):
        pass
    clock[0] += leases.STANDING_SECONDS + 1
    with write_shard(manifest, "a", 0) as out:
        os.kill(child.pid, signal.SIGCONT)
        assert pipe.poll(20)
        told = pipe.recv()
        child.join()
        assert f"shard-00000: taken over by process {os.getpid()} on " in told
        assert "while this process was suspended; this process's work on it is discarded" in told
        for image in manifest.images_of(0):
            rows, cols = image.lr_size
            sr = np.full((4 * rows, 4 * cols, 3), 0.5, np.float32)
            out.add(image.id, {"sr": sr, "features": np.full((rows, cols, 5), 0.5, np.float32)})
    assert value_of(manifest) == 0.5


@pytest.mark.parametrize("at", ["shard", "record"])
@pytest.mark.parametrize("finished", [True, False], ids=["published meanwhile", "begun meanwhile"])
def test_even_between_the_last_beat_and_the_record_nothing_is_harmed(manifest, clock, monkeypatch, at, finished):
    rename, other = Path.rename, []
    moment = (manifest.shard_path if at == "shard" else manifest.record_path)("a", 0)

    def stand_still(self, final):
        if final == moment and not other:
            other.append(None)
            with pytest.raises(ShardBusy), write_shard(manifest, "a", 0):
                pass
            clock[0] += leases.STANDING_SECONDS + 1
            other[0] = fill(manifest, 0.5)
            if finished:
                other[0].__exit__(None, None, None)
        return rename(self, final)

    monkeypatch.setattr(Path, "rename", stand_still)
    late = fill(manifest, 0.25)
    with pytest.raises(ShardBusy, match="shard-00000"):
        late.__exit__(None, None, None)
    if not finished:
        assert manifest.missing_shards("a") == [0]
        other[0].__exit__(None, None, None)
    assert value_of(manifest) == 0.5


def test_readers_do_not_care_about_leases(manifest):
    fill(manifest, 0.5).__exit__(None, None, None)
    for folder, stem in ((manifest.root / "experts/a", "shard-00000"), (manifest.root, "store")):
        lay(folder / f"{stem}.lock", ELSEWHERE.name(1))
        lay(folder / f"{stem}.cafe.lock", ELSEWHERE.name(0))
    assert not verify(manifest.root).faults
    assert Store(manifest.root).array(0, PAIRS, "lr").load().size
