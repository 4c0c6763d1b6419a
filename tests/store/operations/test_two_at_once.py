"""Two processes at one store: the later one says so or goes on, and no shard is ever of neither expert."""

import re
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations import merge as merging
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard

BOTH = pytest.mark.parametrize("container", ["zarr", "hdf5"])
FORK = get_context("fork")


def begun(root, samples, seed, shards=None) -> Manifest:
    """A rebuild of expert a by a process of its own view of the store, whole or with these shards."""
    manifest = Manifest.load(root)
    samples.add_expert(manifest, "a", 5, seed, {}, ("identity",), shards, rebuild=True)
    return manifest


def rebuild(root, samples, seed) -> Manifest:
    manifest = begun(root, samples, seed)
    manifest.swap_rebuilt("a")
    return manifest


def values(root, samples, seed) -> bool:
    """Whether a's features are those of this seed, all of them."""
    store = Store(root)
    arrays = [store.array(i, "a", "features").load() for i in range(len(store.images))]
    made = [samples.features(seed, i, image.lr_size, 5, 4)["features"] for i, image in enumerate(store.images)]
    return all(np.allclose(*pair, rtol=1e-3, atol=1e-3) for pair in zip(arrays, made, strict=True))


def at_once(*jobs) -> list[str]:
    """What each job says that runs in a process of its own, begun at the same moment: an error's text, or nothing."""
    start, processes, ends = FORK.Barrier(len(jobs)), [], []

    def run(job, end):
        torch.set_num_threads(1)  # the threads of the parent's OpenMP pool do not survive a fork
        start.wait()
        try:
            job()
            end.send("")
        except StoreError as error:
            end.send(str(error))

    for job in jobs:
        here, there = FORK.Pipe()
        processes.append(FORK.Process(target=run, args=(job, there)))
        ends.append(here)
        processes[-1].start()
    told = [end.recv() if end.poll(60) else "nothing for a minute" for end in ends]
    for process in processes:
        process.join(60)
        process.kill()
    return told


def is_refusal(told: str) -> bool:
    return bool(
        re.search(
            r"being written by (process \d+ on .*|another process): it is doing the same work\. Wait for it", told
        )
    )


@BOTH
def test_two_rebuilds_share_the_shards_and_the_later_swap_finds_it_done(tmp_path, make_store, samples, container):
    root = make_store(tmp_path / "s", {"a": 5}, container=container)
    one, other = begun(root, samples, 9, shards=[0]), begun(root, samples, 9, shards=[1])
    assert one.missing_shards("a", rebuild=True) == [] == other.missing_shards("a", rebuild=True)
    one.swap_rebuilt("a")
    assert other.missing_shards("a", rebuild=True) == []
    with pytest.raises(ShardBusy, match=r"a\.rebuild: another process has swapped it in or removed it in the meantime"):
        samples.add_shard(other, "a", 5, 9, 0, rebuild=True)
    other.swap_rebuilt("a")
    assert values(root, samples, 9) and not verify(root).faults


def test_a_later_swap_does_not_take_a_rebuild_that_was_just_begun_for_its_own(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s", {"a": 5})
    one, other = begun(root, samples, 9), begun(root, samples, 9)
    one.swap_rebuilt("a")
    begun(root, samples, 11, shards=[0])
    other.swap_rebuilt("a")
    assert values(root, samples, 9) and not verify(root).faults
    with pytest.raises(StoreError, match="the rebuilt a still lacks 1 of 2 shards"):
        Manifest.load(root).swap_rebuilt("a")


def test_shards_of_one_rebuild_are_never_recorded_as_those_of_another(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s", {"a": 5})
    one = begun(root, samples, 9, shards=[0])
    begun(root, samples, 11, shards=[])
    message = r"a\.rebuild: another process has restarted it with other settings: weights_sha256 is a11 there, a9 now"
    with pytest.raises(StoreError, match=message):
        samples.add_shard(one, "a", 5, 9, 1, rebuild=True)
    rebuild(root, samples, 11)
    assert values(root, samples, 11) and not verify(root).faults


def test_a_rebuild_that_is_being_written_is_not_begun_anew_under_its_writer(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s", {"a": 5})
    one = begun(root, samples, 9, shards=[0])
    with pytest.raises(StoreError, match="nothing was added"), write_shard(one, "a", 1, rebuild=True):
        message = (
            r"a\.rebuild: another process is rebuilding a with other settings: weights_sha256 is a9 there, a11 now"
        )
        with pytest.raises(StoreError, match=message):
            begun(root, samples, 11, shards=[])
        raise StoreError("nothing was added")
    assert one.missing_shards("a", rebuild=True) == [1]


def test_who_writes_an_expert_that_is_removed_meanwhile_is_told(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s", {"a": 5}, shards=[0])
    writing = Manifest.load(root)
    Manifest.load(root).remove_expert("a")
    with pytest.raises(ShardBusy, match="experts/a: another process has swapped it in or removed it in the meantime"):
        samples.add_shard(writing, "a", 5, 0, 1)


@BOTH
def test_rebuilds_under_a_reader_stop_it_or_leave_it_the_old_one_whole(tmp_path, make_store, samples, container):
    root = make_store(tmp_path / "s", {"a": 5}, n_images=6, container=container)
    here, there = FORK.Pipe()

    def read():
        store, seen = Store(root), set()
        there.send("open")
        until = time.monotonic() + 60
        try:
            while time.monotonic() < until:
                for i in range(6):
                    seen.add((i, store.array(i, "a", "features").load().tobytes()))
                    store.forget("a", i // 2)
        except StoreError as error:
            there.send((seen, str(error)))

    reader = FORK.Process(target=read)
    reader.start()
    assert here.recv() == "open"
    rebuild(root, samples, 9)
    assert here.poll(60)
    seen, told = here.recv()
    reader.join()
    assert len(seen) <= 6, "an image was once of the old expert and once of the new one"
    assert re.search("has been replaced since it was read|a shard of another a", told)
    assert values(root, samples, 9)


@BOTH
@pytest.mark.parametrize("copy", [True, False], ids=["copied", "linked"])
def test_a_merge_notices_a_rebuild_of_its_input(tmp_path, make_store, samples, monkeypatch, container, copy):
    root, really = make_store(tmp_path / "s", {"a": 5}, container=container), merging._duplicate

    def swapped_before(there, here, copy):
        monkeypatch.setattr(merging, "_duplicate", really)
        if there.parent.name == "a":
            rebuild(root, samples, 9)
        else:
            monkeypatch.setattr(merging, "_duplicate", swapped_before)
        really(there, here, copy)

    monkeypatch.setattr(merging, "_duplicate", swapped_before)
    with pytest.raises(StoreError, match=r"shard-00000\.json: has been replaced since it was read \(by a rebuild"):
        merge([root], tmp_path / "out", copy=copy)
    assert Manifest.load(tmp_path / "out").missing_shards("a") == [0, 1] and not verify(tmp_path / "out").faults


def test_a_merge_that_moves_leaves_a_rebuilt_input_alone(tmp_path, make_store, samples, monkeypatch):
    root, really = make_store(tmp_path / "s", {"a": 5}), merging._remove_taken

    def swapped_before(merged, origin, source):
        if source == "a":
            rebuild(root, samples, 9)
        really(merged, origin, source)

    monkeypatch.setattr(merging, "_remove_taken", swapped_before)
    with pytest.raises(StoreError, match="a shard of another a"):
        merge([root], tmp_path / "out", move=True)
    assert Manifest.load(root).missing_shards("a") == [] and values(tmp_path / "out", samples, 0)
    assert not verify(root).faults


@pytest.mark.parametrize("move", [True, False], ids=["moved", "linked"])
def test_two_merges_into_one_store_make_it_once(tmp_path, make_store, samples, move):
    parts = [make_store(tmp_path / name, {"a": 5}, n_images=8) for name in "xy"]
    told = at_once(*[lambda: merge(parts, tmp_path / "out", move=move)] * 2)
    assert "" in told and all(not text or is_refusal(text) for text in told), told
    merge(parts, tmp_path / "out", move=move)
    assert values(tmp_path / "out", samples, 0) and not verify(tmp_path / "out").faults


def test_two_conversions_into_one_store_make_it_once(tmp_path, make_store):
    root = make_store(tmp_path / "s", {"a": 5}, n_images=8, codecs={"features": "float32"})
    told = at_once(*[lambda: convert(root, tmp_path / "out", codecs={"features": "pca2-int8+zstd"})] * 2)
    assert "" in told and all(not text or is_refusal(text) for text in told), told
    convert(root, tmp_path / "out", codecs={"features": "pca2-int8+zstd"})
    assert not verify(tmp_path / "out").faults and Store(tmp_path / "out").array(7, "a", "features").load().any()


def test_two_rebuilds_in_processes_of_their_own_end_in_one_whole_expert(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s", {"a": 5}, n_images=8)

    def extraction():
        manifest = begun(root, samples, 9, shards=[])
        for _ in range(200):
            for shard in manifest.missing_shards("a", rebuild=True):
                try:
                    samples.add_shard(manifest, "a", 5, 9, shard, rebuild=True)
                except ShardBusy:
                    time.sleep(0.01)
        manifest.swap_rebuilt("a")

    assert at_once(extraction, extraction) == ["", ""]
    assert values(root, samples, 9) and not verify(root).faults
    assert not Path(root / "experts/a.rebuild").exists()
