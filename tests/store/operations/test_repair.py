"""What a repair may take away: only what is proven wrong, and never to where it cannot be had again."""

import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations import repair as repairs
from championship_sr.store.operations.repair import planned, remove_damaged, repair
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from tests.store.operations.damage import BOTH, SHARD, content, flip_values


@pytest.fixture
def make_store(copied_store):
    return copied_store


NO_LOCKS = "#include <errno.h>\nint flock(int fd, int operation) { errno = ENOLCK; return -1; }\n"


@BOTH
def test_a_repair_moves_exactly_the_bad_shards_away(tmp_path, make_store, samples, container):
    root = make_store(tmp_path / "s", container=container)
    before = content(root)
    flip_values(root, container)
    faults = verify(root).faults
    assert planned(root, faults) == [f"move shard 1 of a to {root / 'damaged'}"]
    repair(root, faults)
    assert sorted(os.listdir(root / "damaged/experts/a")) == sorted(["shard-00001.json", SHARD[container]])
    manifest = Manifest.load(root)
    assert [manifest.missing_shards(source) for source in ("pairs", "a", "b")] == [[], [1], []]
    samples.add_expert(manifest, "a", 5, 0, {}, ("identity",))
    assert not verify(root).faults and content(root) == before
    remove_damaged(root)
    assert not (root / "damaged").exists()


@BOTH
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EAGAIN, errno.EIO, errno.ENOLCK, errno.EACCES])
def test_what_cannot_be_read_now_is_reported_and_left_alone(tmp_path, make_store, monkeypatch, container, number):
    root = make_store(tmp_path / "s", container=container)
    before, opened = content(root), os.open

    def refuse(path, flags, *args, **options):
        if "experts/a/shard-0000" in str(path) and flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        faults = verify(root).faults
        assert len(faults) >= 2 and all(f"cannot be read: {os.strerror(number)}" in each.message for each in faults)
        assert planned(root, faults) == [] == repair(root, faults)
    assert content(root) == before and not verify(root).faults


@BOTH
def test_a_shard_that_becomes_unreadable_before_the_second_look_stays(tmp_path, make_store, monkeypatch, container):
    root = make_store(tmp_path / "s", container=container)
    flip_values(root, container)
    faults, before, opened = verify(root).faults, content(root), os.open

    def refuse(path, flags, *args, **options):
        if SHARD[container] in str(path) and flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return opened(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert repair(root, faults) == ["left shard 1 of a: it is whole now, or cannot be read"]
    assert content(root) == before


@BOTH
def test_a_rebuild_that_is_swapped_in_meanwhile_is_left_alone(tmp_path, make_store, samples, container):
    root = make_store(tmp_path / "s", container=container)
    flip_values(root, container)
    faults, manifest = verify(root).faults, Manifest.load(root)
    samples.add_expert(manifest, "a", 5, 9, {}, ("identity",), rebuild=True)
    manifest.swap_rebuilt("a")
    before = content(root)
    assert repair(root, faults) == ["left shard 1 of a: it is whole now, or cannot be read"]
    assert content(root) == before and not verify(root).faults


def test_hdf5_shards_are_whole_while_another_program_has_them_open(tmp_path, make_store):
    root = make_store(tmp_path / "s", container="hdf5")
    script = f"import h5py; h5py.File({str(root / 'experts/a/shard-00001.h5')!r}, 'r+'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        faults = verify(root).faults
        other.communicate(b"\n")
    assert not any(fault.is_mended for fault in faults)


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")
def test_a_file_system_without_locks_loses_nothing(tmp_path, make_store):
    root = make_store(tmp_path / "s", {"a": 5}, container="hdf5")
    (tmp_path / "nolock.c").write_text(NO_LOCKS)
    library = tmp_path / "nolock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nolock.c"], check=True)
    before = content(root)
    script = (
        "from championship_sr.store.operations.verify import verify\n"
        "from championship_sr.store.operations.repair import repair\n"
        f"faults = verify({str(root)!r}).faults\n"
        f"print(len(faults), repair({str(root)!r}, faults))"
    )
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n" and content(root) == before


SMALL_FILES = [
    ("store.yaml", "scale: 4", "scale: 2", "scale is 2, its records say 4"),
    ("store.yaml", "container: zarr", "container: hdf5", "container is hdf5, its records say zarr"),
    ("store.yaml", "format_version: 2", "format_version: 1", "format_version is 1, its records say 2"),
    ("store.yaml", "images: 3", "images: 2", "images is 2, its records say 3"),
    ("store.yaml", "images_sha256: ", "images_sha256: [", "store.yaml: damaged"),
    ("store.yaml", "scale: 4", "scale: four", "store.yaml: damaged: scale"),
    ("experts/a/expert.yaml", "codec: float16", "codec: bfloat16", r"arrays .* its records say"),
    ("experts/a/expert.yaml", "weights_sha256: a0", "weights_sha256: a1", "weights_sha256 is a1, its records say a0"),
    ("experts/a/expert.yaml", "identity:", "identity: {", "expert.yaml: damaged"),
    ("images.jsonl", "photo 1", "photo 7", "images.jsonl: missing, damaged or from another store"),
]


@pytest.mark.parametrize("name, old, new, told", SMALL_FILES, ids=[f"{each[0]} {each[2]}" for each in SMALL_FILES])
def test_a_changed_small_file_is_put_back_and_no_shard_moves(tmp_path, make_store, name, old, new, told):
    root = make_store(tmp_path / "s")
    before = content(root)
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    faults = verify(root).faults
    assert len(faults) == 1 and re.search(told, faults[0].message), faults
    assert planned(root, faults) == [f"restore {path} as its records say"]
    repair(root, faults)
    assert content(root) == before and not (root / "damaged").exists()


@pytest.mark.parametrize("name", ["store.yaml", "images.jsonl", "experts/a/expert.yaml"])
@pytest.mark.parametrize("damage", ["lost", "empty", "a folder"])
def test_a_lost_small_file_is_put_back(tmp_path, make_store, name, damage):
    root = make_store(tmp_path / "s")
    before, path = content(root), root / name
    path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "a folder":
        path.mkdir()
    faults = verify(root).faults
    assert (len(faults) == 1 and path.name in faults[0].message) or "not a feature store" in faults[0].message
    repair(root, faults)
    assert content(root) == before


def test_one_damage_hides_no_other(tmp_path, make_store):
    root = make_store(tmp_path / "s", codecs={"features": "pca2-int8"})
    flip_values(root, "zarr")
    (root / "experts/a/basis.safetensors").write_bytes(b"")
    (root / "store.yaml").write_text("{")
    (root / "experts/b/expert.yaml").unlink()
    (root / "experts/b/shard-00000.json").unlink()
    (root / "experts/b/shard-00000.json").mkdir()
    told = "\n".join(fault.message for fault in verify(root).faults)
    for each in (
        "basis.safetensors",
        "store.yaml",
        "b/expert.yaml",
        "b/shard-00000.json",
        "img002/features is damaged",
    ):
        assert each in told
    repair(root, verify(root).faults)
    left = verify(root).faults
    assert len(left) == 1 and "basis.safetensors" in left[0].message


def test_what_nothing_removes_is_moved_away(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    for name in ("shard-00001.h5", "shard-00077.json", "shard-00001.zarr.tmp"):
        (root / "experts/a" / name).write_text("")
    faults = verify(root).faults
    assert len(faults) == 3 and all("store verify --repair moves it away" in fault.message for fault in faults)
    repair(root, faults)
    assert not verify(root).faults


def test_a_repair_that_was_killed_half_way_goes_on(tmp_path, make_store, monkeypatch):
    root = make_store(tmp_path / "s")
    flip_values(root, "zarr")
    moved, really = [], repairs._move

    def once(*args):
        if moved:
            raise KeyboardInterrupt
        moved.append(really(*args))

    with monkeypatch.context() as patch:
        patch.setattr(repairs, "_move", once)
        with pytest.raises(KeyboardInterrupt):
            repair(root, verify(root).faults)
    faults = verify(root).faults
    assert len(faults) == 1 and "without a record; the next extract removes it" in faults[0].message
    repair(root, faults)
    assert not verify(root).faults and Manifest.load(root).missing_shards("a") == [1]


def test_a_removal_that_was_killed_goes_on_with_the_same_command(tmp_path, make_store, monkeypatch):
    root, really = make_store(tmp_path / "s"), files.remove

    def killed(path):
        if path.name == "a.tmp" and path.exists():
            raise KeyboardInterrupt
        really(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            Manifest.load(root).remove_expert("a")
    assert list(Manifest.load(root).experts) == ["b"]
    Manifest.load(root).remove_expert("a")
    assert os.listdir(root / "experts") == ["b"]
    with pytest.raises(StoreError, match="no expert a"):
        Manifest.load(root).remove_expert("a")


@BOTH
def test_a_reader_notices_that_an_expert_was_rebuilt_under_it(tmp_path, make_store, samples, container):
    root = make_store(tmp_path / "s", container=container)
    store = Store(root)
    old = store.array(0, "a", "features")
    before = old.load()
    if container == "hdf5":
        store.forget("a", 0)
    samples.add_expert(Manifest.load(root), "a", 5, 9, {}, ("identity",), rebuild=True)
    Manifest.load(root).swap_rebuilt("a")
    if container == "zarr":
        assert (old.load() == before).all()  # what was open is still the old one, whole
    with pytest.raises(StoreError, match="has been replaced since it was read"):
        store.array(1, "a", "features").load()


@pytest.mark.parametrize("container", SHARD)
def test_a_repair_that_is_killed_at_any_rename_goes_on(tmp_path, make_store, container):
    whole = make_store(tmp_path / "whole", container=container)
    expected = content(whole)
    shutil.copytree(whole, tmp_path / "damaged")
    for kill_at in range(1, 30):
        root = tmp_path / f"s{kill_at}"
        shutil.copytree(tmp_path / "damaged", root)
        flip_values(root, container)
        (root / "experts/b/expert.yaml").write_text("{")
        (root / "store.yaml").unlink()
        (root / "experts/b/shard-00000.json").write_text("[]")
        ended = killed_at(kill_at, lambda root=root: repair(root, verify(root).faults))
        repair(root, verify(root).faults)
        assert not verify(root).faults
        left, moved = content(root), {path.name for path in (root / "damaged").rglob("shard-*")}
        assert {name: expected[name] for name in left} == left  # whatever is there is what it was
        lost = {name.split("/")[1] + "/" + name.split("/")[2].split(".")[0] for name in expected.keys() - left.keys()}
        assert lost == {"a/shard-00001", "b/shard-00000"} and len(moved) == 4
        shutil.rmtree(root)
        if ended:
            return
    raise AssertionError("the repair had no end")


def killed_at(count: int, act) -> bool:
    """Whether the act ends, in a process that is killed in place of its `count`-th rename."""
    child = os.fork()
    if not child:
        renames, really = [], {name: getattr(os, name) for name in ("rename", "replace")}

        def once(name, *args, **options):
            renames.append(name)
            if len(renames) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return really[name](*args, **options)

        for name in really:
            setattr(os, name, functools.partial(once, name))
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
