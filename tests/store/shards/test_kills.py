"""SIGKILL while a store is written, rebuilt, merged and converted; the same call then goes on to the same bytes."""

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store

KILLS = 4


def options(container: str) -> dict:
    return {"n_images": 8, "sizes": [(40, 40)], "images_per_shard": 1, "container": container}


def write(here, samples, container):
    samples.build(here / "out", {"a": 30, "b": 30}, **options(container))


def rebuild(here, samples, container):
    manifest = Manifest.load(here / "out")
    samples.add_expert(manifest, "a", 30, 9, {}, ("identity",), rebuild=True)
    manifest.swap_rebuilt("a")


def merged(here, samples, container):
    merge([here / "one", here / "other"], here / "out", copy=True)


def converted(here, samples, container):
    convert(here / "one", here / "out", codecs={"features": "int8+zstd"}, images_per_shard=3)


def prepare(job, here, samples, container):
    here.mkdir()
    if job is rebuild:
        write(here, samples, container)
    elif job is not write:
        samples.build(here / "one", {"a": 30}, **options(container))
        samples.build(here / "other", {"x": 1, "b": 30}, **options(container))


def alone(job, here, samples, container):
    torch.set_num_threads(1)  # the threads of the parent's OpenMP pool do not survive a fork
    job(here, samples, container)


def run(job, here, samples, container, seconds: float | None = None) -> int:
    """The exit code of the job in a process of its own, killed after so many seconds."""
    process = get_context("fork").Process(target=alone, args=(job, here, samples, container))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def records(root: Path) -> dict[str, bytes]:
    names = ("shard-*.json", "images.jsonl", "*.yaml")
    return {str(path.relative_to(root)): path.read_bytes() for name in names for path in root.rglob(name)}


def check_what_is_visible(root: Path) -> None:
    """Whatever is recorded is whole, and whatever is not whole says so."""
    if (root / "store.yaml").exists():
        faults = [fault.message for fault in verify(root).faults]
        assert all("the next extract removes it" in fault for fault in faults), faults


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
@pytest.mark.parametrize("job", [write, rebuild, merged, converted], ids=lambda job: job.__name__)
def test_a_killed_job_goes_on_to_the_same_store(tmp_path, samples, job, container):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for here in (undisturbed, disturbed):
        prepare(job, here, samples, container)
    started = time.perf_counter()
    assert run(job, undisturbed, samples, container) == 0
    whole = time.perf_counter() - started
    draw = random.Random(f"{job.__name__} {container}")
    codes = []
    for _ in range(KILLS):
        codes.append(run(job, disturbed, samples, container, draw.uniform(0, 0.4 * whole)))
        check_what_is_visible(disturbed / "out")
    assert -signal.SIGKILL in codes
    assert run(job, disturbed, samples, container) == 0
    assert records(disturbed / "out") == records(undisturbed / "out")
    assert not verify(disturbed / "out").faults
    assert sorted(os.listdir(disturbed / "out/experts")) == sorted(os.listdir(undisturbed / "out/experts"))
    assert not list((disturbed / "out").rglob("*.tmp"))


def test_moving_a_store_loses_no_shard_when_killed_between_copy_and_removal(tmp_path, make_store, monkeypatch):
    one, other = make_store(tmp_path / "one", {"a": 5}), make_store(tmp_path / "other", {"x": 1, "b": 5})
    monkeypatch.setattr(
        "championship_sr.store.operations.merge._remove_taken", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        merge([one, other], tmp_path / "out", move=True)
    assert all(not Manifest.load(root).missing_shards("pairs") for root in (one, tmp_path / "out"))
    monkeypatch.undo()
    merge([one, other], tmp_path / "out", move=True)
    assert list(Store(tmp_path / "out").experts) == ["a", "b", "x"]
    assert Manifest.load(one).missing_shards("a") == [0, 1]
