import errno
import gc
import json
import os
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from championship_sr.store.disk import locks
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.description import assign_shards
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard

SIZE = (6, 5)


def new_manifest(root, n_images=2, codecs=("float16", "float16"), container="zarr"):
    images = [Image(f"i{i}", f"i{i}", SIZE, f"l{i}", f"h{i}", 0, "file") for i in range(n_images)]
    manifest = Manifest.create(root, scale=2, container=container, images=assign_shards(images, 2))
    manifest.add_expert(expert(codecs))
    return manifest


def expert(codecs=("float16", "float16"), **identity):
    arrays = ArraySpec("sr", 3, 2, codecs[0]), ArraySpec("features", 4, 1, codecs[1])
    return Expert("hat", arrays, {"weights_sha256": "w", **identity})


def arrays(value=0.5):
    return {"sr": np.full((12, 10, 3), value, np.float32), "features": np.full((6, 5, 4), value, np.float32)}


def tree(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_an_exception_leaves_no_trace_of_a_shard(tmp_path, container):
    manifest = new_manifest(tmp_path / "s", container=container)
    before = tree(manifest.root)
    with pytest.raises(RuntimeError, match="expert died"), write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays())
        raise RuntimeError("expert died")
    assert tree(manifest.root) == before
    assert manifest.missing_shards("hat") == [0]


def test_a_shard_is_invisible_until_it_is_whole(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    with write_shard(manifest, "hat", 0) as out:
        for image in ("i0", "i1"):
            out.add(image, arrays())
            assert manifest.missing_shards("hat") == [0]
            assert not manifest.shard_path("hat", 0).exists()
    assert manifest.missing_shards("hat") == []


def test_a_shard_without_one_of_its_images_is_refused(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    with (
        pytest.raises(StoreError, match="2 arrays were never added, such as i1/features"),
        write_shard(manifest, "hat", 0) as out,
    ):
        out.add("i0", arrays())
    assert manifest.missing_shards("hat") == [0]


@pytest.mark.parametrize(
    "value, codec, message",
    [
        (np.nan, "float16", "hat: image i0, features: holds non-finite values; run the expert in float32"),
        (-np.inf, "int8", "hat: image i0, features: holds non-finite values"),
        (
            70000.0,
            "float16",
            r"features: a value of 70000 exceeds the limit of float16 \(65504\); choose bfloat16 or int8",
        ),
    ],
)
def test_values_that_cannot_be_stored_are_named(tmp_path, value, codec, message):
    manifest = new_manifest(tmp_path / "s", codecs=("uint8", codec))
    bad = arrays()
    bad["features"][2, 3, 1] = value
    with pytest.raises(StoreError, match=message), write_shard(manifest, "hat", 0) as out:
        out.add("i0", bad)


def test_arrays_that_do_not_fit_are_named(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    with write_shard(manifest, "hat", 0) as out:
        with pytest.raises(StoreError, match="image i9 belongs to another shard"):
            out.add("i9", arrays())
        with pytest.raises(StoreError, match="came with sr of variant identity; expected features, sr of identity"):
            out.add("i0", {"sr": arrays()["sr"]})
        with pytest.raises(StoreError, match="of variant mirror; expected"):
            out.add("i0", arrays(), variant="mirror")
        with pytest.raises(StoreError, match=r"image i0, sr: shape \(6, 5, 3\), expected \(12, 10, 3\)"):
            out.add("i0", {**arrays(), "sr": np.zeros((6, 5, 3), np.float32)})
        out.add("i0", arrays())
        out.add("i1", arrays())


def test_pairs_must_be_integers(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    pair = {"lr": np.zeros((6, 5, 3), np.uint8), "hr": np.zeros((12, 10, 3), np.float32)}
    with (
        pytest.raises(StoreError, match="pairs: image i0, hr: has type float32, expected uint8 or uint16"),
        write_shard(manifest, PAIRS, 0) as out,
    ):
        out.add("i0", pair)


def test_sixteen_bit_images_keep_their_bits(tmp_path):
    manifest = new_manifest(tmp_path / "s", n_images=1)
    hr = np.arange(360, dtype=np.uint16).reshape(12, 10, 3) * 180
    with write_shard(manifest, PAIRS, 0) as out:
        out.add("i0", {"lr": np.zeros((6, 5, 3), np.uint8), "hr": hr})
    found = Store(manifest.root, []).array(0, PAIRS, "hr").load()
    assert found.dtype == np.uint16
    assert (found == hr).all()


def test_the_same_input_gives_the_same_checksums_in_any_order(tmp_path, make_store):
    images = [f"img{i:03d}" for i in range(3)]
    records = []
    for name, order in (("one", images), ("other", images[::-1])):
        root = make_store(tmp_path / name, images_per_shard=3, codecs={"features": "pca3-int8"})
        manifest = Manifest.load(root)
        shutil.rmtree(manifest.shard_path("a", 0))
        manifest.record_path("a", 0).unlink()
        rng = {image: np.random.default_rng(i) for i, image in enumerate(images)}
        with write_shard(manifest, "a", 0) as out:
            for image in order:
                rows, cols = next(each.lr_size for each in manifest.images if each.id == image)
                sr = rng[image].random((4 * rows, 4 * cols, 3), np.float32)
                out.add(image, {"sr": sr, "features": rng[image].standard_normal((rows, cols, 5), np.float32)})
        records.append(manifest.record_path("a", 0).read_bytes())
    assert records[0] == records[1]


def test_the_lock_keeps_a_second_writer_out(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    with write_shard(manifest, "hat", 0) as out:
        with (
            pytest.raises(StoreError, match=r"experts/hat/shard-00000: being written by process \d+ on "),
            write_shard(manifest, "hat", 0),
        ):
            pass
        out.add("i0", arrays())
        out.add("i1", arrays())
    with (
        pytest.raises(locks.ShardBusy, match="another process has written it in the meantime"),
        write_shard(manifest, "hat", 0),
    ):
        pass
    assert not list(manifest.root.rglob("*.lock"))


def hold(root, started, go_on):
    with write_shard(Manifest.load(root), "hat", 0):
        started.set()
        go_on.wait()


def test_the_lock_dies_with_its_process(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    spawn = get_context("spawn")
    started, go_on = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(manifest.root, started, go_on))
    other.start()
    started.wait(30)
    with pytest.raises(locks.ShardBusy), write_shard(manifest, "hat", 0):
        pass
    other.kill()
    other.join()
    with write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays())
        out.add("i1", arrays())
    assert tree(manifest.root / "experts/hat/shard-00000.zarr")
    assert not list(manifest.root.rglob("*.tmp"))


def write_all(root, seed):
    manifest = Manifest.load(root)
    name = f"e{seed}"
    manifest.add_expert(Expert(name, expert().arrays, {"seed": seed}))
    written = 0
    for source in (name, "hat"):
        for shard in manifest.missing_shards(source):
            try:
                with write_shard(manifest, source, shard) as out:
                    for image in manifest.images_of(shard):
                        out.add(image.id, arrays())
                    written += 1
            except locks.ShardBusy:
                continue
    return written


def test_several_processes_fill_one_store_at_once(tmp_path):
    manifest = new_manifest(tmp_path / "s", n_images=8)
    with write_shard(manifest, PAIRS, 0) as out:
        for image in ("i0", "i1"):
            out.add(image, {"lr": np.zeros((6, 5, 3), np.uint8), "hr": np.zeros((12, 10, 3), np.uint8)})
    with get_context("spawn").Pool(3) as pool:
        written = pool.starmap(write_all, [(manifest.root, seed) for seed in range(3)])
    assert sum(written) == 4 * 4  # each shard once: three experts of their own, and one that all of them write
    report = verify(manifest.root)
    assert not report.faults
    assert sorted(Manifest.load(manifest.root).experts) == ["e0", "e1", "e2", "hat"]


def test_a_waiting_lock_is_taken_when_it_is_free(tmp_path):
    held = []

    def take(_):
        with locks.locked(tmp_path / "x.lock", wait=True):
            held.append(1)
            assert len(held) == 1
            held.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(200)))
    assert not (tmp_path / "x.lock").exists()


def test_a_disk_too_full_for_the_shard_is_named_before_it_begins(tmp_path, monkeypatch):
    manifest = new_manifest(tmp_path / "s")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    before = tree(manifest.root)
    with (
        pytest.raises(
            StoreError, match=r"shard-00000\.zarr: needs 0\.0 MiB plus 16\.0 MiB in reserve, but only 5\.0 MiB are free"
        ),
        write_shard(manifest, "hat", 0),
    ):
        pass
    assert tree(manifest.root) == before


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_a_disk_that_fills_up_leaves_no_half_shard(tmp_path, monkeypatch, container):
    manifest = new_manifest(tmp_path / "s", container=container)
    before = tree(manifest.root)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"), write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays())
        out.add("i1", arrays())
        monkeypatch.setattr(os, "fsync", full)
    monkeypatch.undo()
    assert tree(manifest.root) == before
    with write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays())
        out.add("i1", arrays())


def test_everything_is_synced_before_it_is_renamed_and_recorded_last(tmp_path, monkeypatch):
    manifest = new_manifest(tmp_path / "s")
    steps = []
    sync, rename, replace = os.fsync, Path.rename, Path.replace

    def name(handle):
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name

    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(f"sync {name(handle)}"), sync(handle)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (steps.append(f"rename {to.name}"), rename(self, to)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append(f"rename {to.name}"), replace(self, to)))
    with write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays())
        out.add("i1", arrays())
    steps = [re.sub(r"\.[0-9a-f]{16}\.", ".TOKEN.", step) for step in steps]
    moved = steps.index("rename shard-00000.zarr")
    assert steps[:moved].count("sync c.0.0.0") == 4
    assert steps[:moved].count("sync zarr.json") == 1 + 2 + 4
    assert steps[moved - 2 : moved] == ["sync shard-00000.TOKEN.zarr.tmp", "sync shard-00000.TOKEN.json.tmp"]
    assert steps[moved + 1 :] == ["sync hat", "rename shard-00000.json", "sync hat"]


def test_leftovers_of_a_crash_are_cleared_away(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    folder = manifest.root / "experts/hat"
    (folder / "shard-00000.zarr/old/sr").mkdir(parents=True)  # renamed, never recorded
    (folder / "shard-00000.zarr.tmp/i0").mkdir(parents=True)
    (folder / "shard-00000.json.tmp").write_text("{")
    with write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays())
        out.add("i1", arrays())
    assert sorted(os.listdir(folder)) == ["expert.yaml", "shard-00000.json", "shard-00000.zarr"]
    assert sorted(os.listdir(folder / "shard-00000.zarr")) == ["i0", "i1", "zarr.json"]


def test_records_say_what_the_arrays_hold(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    with write_shard(manifest, "hat", 0) as out:
        out.add("i0", arrays(0.25))
        out.add("i1", arrays(-3))
    record = json.loads(manifest.record_path("hat", 0).read_text())
    entry = record["arrays"]["i1/features"]
    assert (entry["shape"], entry["dtype"], entry["min"], entry["max"]) == ([6, 5, 4], "float16", -3, -3)
    assert record["images"] == {"i0": "l0", "i1": "l1"}


def test_bad_names_and_codecs_are_refused_before_anything_is_written(tmp_path):
    manifest = new_manifest(tmp_path / "s")
    spec = ArraySpec("sr", 3, 2, "float16")
    for bad in (
        Expert("a/b", (spec,), {}),
        Expert("a.tmp", (spec,), {}),
        Expert("a", (ArraySpec("sr@x", 3, 2, "float16"),), {}),
        Expert("a", (ArraySpec("sr", 3, 2, "float8"),), {}),
        Expert("a", (spec,), {"variants": ["upside-down"]}),
    ):
        with pytest.raises(ConfigError):
            manifest.add_expert(bad)
    assert os.listdir(manifest.root / "experts") == ["hat"]


@pytest.mark.parametrize("codecs", [("float32", "float32"), ("float32+zstd", "float32+zstd")])
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_a_disk_that_fills_up_within_a_shard_is_an_error_and_leaves_no_trace(tmp_path, container, codecs):
    manifest = new_manifest(tmp_path / "s", container=container, codecs=codecs)
    before = tree(manifest.root)
    values = {name: np.random.default_rng(0).random(each.shape, np.float32) for name, each in arrays().items()}
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))  # as a disk without room
        try:
            with write_shard(manifest, "hat", 0) as out:
                for image in ("i0", "i1"):
                    out.add(image, values)
        except OSError as error:
            gc.collect()
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG
    assert tree(manifest.root) == before
