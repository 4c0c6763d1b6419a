"""What a repair may take away: only what is proven wrong, and never to where it cannot be had again."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import h5py
import pytest
import yaml

from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError, Unreadable
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations import repair as repairs
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.faults import Fault
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.repair import planned, remove_damaged, repair
from championship_sr.store.operations.survey import survey
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from tests.conftest import edit_record

SHARD = {"zarr": "shard-00001.zarr", "hdf5": "shard-00001.h5"}
BOTH = pytest.mark.parametrize("container", SHARD)
NO_LOCKS = "#include <errno.h>\nint flock(int fd, int operation) { errno = ENOLCK; return -1; }\n"


@pytest.fixture(scope="module")
def originals():
    return {}


@pytest.fixture
def make_store(originals, tmp_path_factory, samples):
    """A store as conftest's `make_store` makes it: written once for each set of options, and copied."""

    def copied(root, experts=None, **options):
        key = repr((experts, sorted(options.items())))
        if key not in originals:
            originals[key] = samples.build(tmp_path_factory.mktemp("original") / "s", experts, **options)
        shutil.copytree(originals[key], root)
        return root

    return copied


def content(root):
    """Path -> bytes of a store, without what a repair has moved away and without locks."""
    below = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in below}
    return {name: there for name, there in found.items() if not name.startswith("damaged/")}


def flip(path, at=11):
    there = bytearray(path.read_bytes())
    there[at] ^= 4
    path.write_bytes(there)


def values_file(root, container):
    shard = root / "experts/a" / SHARD[container]
    return shard / "img002/features/c.0.0.0" if container == "zarr" else shard


def flip_values(root, container):
    flip(values_file(root, container), Store(root).array(2, "a", "features").entry.offset + 11)


def old_form(root):
    """The store as version 1 of the format wrote it."""
    for path in root.rglob("shard-*.json"):
        record = json.loads(path.read_text())
        for key in ("store", "expert", "listing", "checksum"):
            del record[key]
        path.write_text(json.dumps({**record, "format_version": 1}))
    about = yaml.safe_load((root / "store.yaml").read_text())
    (root / "store.yaml").write_text(yaml.safe_dump({**about, "format_version": 1}))
    return root


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


def change_scale(record):
    record["arrays"]["img002/features"]["params"]["scale"][1] *= 2


CHANGES = {
    "scale": change_scale,
    "nan": lambda record: record["arrays"]["img002/features"]["params"]["scale"].__setitem__(0, float("nan")),
    "none": lambda record: record["arrays"]["img002/features"].update(params={}),
    "basis": lambda record: record["arrays"]["img002/features"]["params"].update(basis=[1.0]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["old", "raw", "sealed"])
@BOTH
def test_changed_parameters_of_a_codec_are_never_handed_on(tmp_path, make_store, container, form, change):
    root = make_store(tmp_path / "s", {"a": 5}, container=container, codecs={"features": "int8"})
    if form == "old":
        old_form(root)
    path = root / "experts/a/shard-00001.json"
    if form == "raw":
        record = json.loads(path.read_text())
        CHANGES[change](record)
        path.write_text(json.dumps(record))
    else:
        edit_record(path, CHANGES[change])
    assert [fault.shard for fault in verify(root).faults] == [1]
    for act in (
        lambda: Store(root, check=True).array(2, "a", "features"),
        lambda: convert(root, tmp_path / "converted"),
        lambda: merge([root], tmp_path / "merged"),
    ):
        with pytest.raises(StoreError, match=r"params|checksum|attributes scale|img002/features"):
            act()


@BOTH
def test_a_store_of_version_1_is_read_verified_gone_on_with_and_merged(tmp_path, make_store, samples, container):
    root = old_form(make_store(tmp_path / "s", container=container))
    expected = Store(root).array(2, "a", "features").load()
    assert not verify(root).faults
    shutil.rmtree(root / "experts/a" / SHARD[container]) if container == "zarr" else values_file(
        root, container
    ).unlink()
    repair(root, verify(root).faults)
    samples.add_expert(Manifest.load(root), "a", 5, 0, {}, ("identity",))
    record = json.loads((root / "experts/a/shard-00001.json").read_text())
    assert record["format_version"] == 1 and "checksum" not in record
    assert not verify(root).faults
    merge([root], tmp_path / "merged")
    assert "format_version: 2" in (tmp_path / "merged/store.yaml").read_text()
    assert not verify(tmp_path / "merged").faults
    assert (Store(tmp_path / "merged").array(2, "a", "features").load() == expected).all()


def test_version_1_knows_which_file_is_wrong_and_moves_nothing(tmp_path, make_store):
    root = old_form(make_store(tmp_path / "s"))
    before, path = content(root), root / "experts/a/expert.yaml"
    path.write_text(path.read_text().replace("weights_sha256: a0", "weights_sha256: a1"))
    (root / "store.yaml").write_text((root / "store.yaml").read_text().replace("scale: 4", "scale: 3"))
    faults = verify(root).faults
    assert len(faults) == 2 and not any(fault.shard is not None for fault in faults)
    repair(root, faults)
    path.write_text(path.read_text().replace("weights_sha256: a1", "weights_sha256: a0"))
    assert not verify(root).faults
    assert content(root).keys() == before.keys()


def rewritten(name, change):
    def damage(root):
        path = root / "experts/a/shard-00001.zarr" / name
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))

    return damage


METADATA = {
    "endian": (
        "img002/sr/zarr.json",
        lambda d: d["codecs"][0]["configuration"]["codecs"][0]["configuration"].update(endian="big"),
    ),
    "fill": ("img002/sr/zarr.json", lambda d: d.update(fill_value=1.0)),
    "grid": ("img002/sr/zarr.json", lambda d: d["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 65)),
    "type": ("img002/sr/zarr.json", lambda d: d.update(data_type="int16")),
    "codec": ("img002/sr/zarr.json", lambda d: d["attributes"].update(codec="bfloat16")),
    "variant": ("img002/sr/zarr.json", lambda d: d["attributes"].update(variant="mirror")),
    "array group": ("img002/zarr.json", lambda d: d.update(node_type="array")),
    "group": ("zarr.json", lambda d: d.update(zarr_format=2)),
}


@pytest.mark.parametrize("which", METADATA)
def test_zarrs_own_metadata_must_say_what_the_record_says(tmp_path, make_store, which):
    root = make_store(tmp_path / "s")
    rewritten(*METADATA[which])(root)
    assert {(fault.source, fault.shard) for fault in verify(root).faults} == {("a", 1)}


@pytest.mark.parametrize("name, value", [("codec", "bfloat16"), ("scale", [1.0] * 5), ("variant", "mirror")])
def test_hdf5s_attributes_must_say_what_the_record_says(tmp_path, make_store, name, value):
    root = make_store(tmp_path / "s", container="hdf5", codecs={"features": "int8"})
    with h5py.File(root / "experts/a/shard-00001.h5", "r+") as file:
        file["img002/features"].attrs[name] = value
    message = f"img002/features: its attributes {name} are not what the record says"
    assert any(message in fault.message for fault in verify(root).faults)


RECORDS = {
    "no shape": lambda record: record["arrays"]["img002/sr"].pop("shape"),
    "no type": lambda record: record["arrays"]["img002/sr"].pop("dtype"),
    "no sum": lambda record: record["arrays"]["img002/sr"].pop("sha256"),
    "chunk 0": lambda record: record["arrays"]["img002/sr"].update(chunk=[0, 1, 3]),
    "a list": lambda record: record.update(arrays=[]),
    "far": lambda record: record["arrays"]["img002/sr"].update(offset=10**30),
    "large": lambda record: record["arrays"]["img002/sr"].update(shape=[2**40, 2**40, 3]),
    "number": lambda record: record.update(shard="1"),
}


@pytest.mark.parametrize("which", RECORDS)
def test_a_record_that_cannot_be_is_one_line(tmp_path, make_store, which):
    root = make_store(tmp_path / "s")
    edit_record(root / "experts/a/shard-00001.json", RECORDS[which])
    flip(root / "experts/b/shard-00001.zarr/img002/sr/c.0.0.0")
    faults = verify(root).faults
    assert [(fault.source, fault.shard) for fault in faults] == [("a", 1), ("b", 1)]
    assert all("\n" not in fault.message for fault in faults)


def test_deep_nesting_and_pipes_are_one_line(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    (root / "experts/a/shard-00000.json").write_text("[" * 100_000)
    (root / "experts/a/shard-00001.json").unlink()
    os.mkfifo(root / "experts/a/shard-00001.json")
    assert [(fault.source, fault.shard) for fault in verify(root).faults] == [("a", 0), ("a", 1)]


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


def test_the_survey_of_a_sound_store_is_its_manifest(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    found, loaded = survey(root), Manifest.load(root)
    assert not found.faults
    assert (found.manifest.about, found.manifest.images, found.manifest.experts) == (
        loaded.about,
        loaded.images,
        loaded.experts,
    )


@BOTH
def test_a_lost_expert_is_named_and_nothing_is_done_about_it(tmp_path, make_store, container):
    root = make_store(tmp_path / "s", container=container)
    (root / "experts/a").rename(tmp_path / "elsewhere")
    before, faults = content(root), verify(root).faults
    assert len(faults) == 1 and not faults[0].is_mended
    assert re.search(r"experts/a: missing, although experts\.txt names it\. Put it back", faults[0].message)
    assert planned(root, faults) == [] == repair(root, faults) and content(root) == before
    (tmp_path / "elsewhere").rename(root / "experts/a")
    assert not verify(root).faults


def test_an_expert_that_was_to_go_is_not_missed(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s")
    Manifest.load(root).remove_expert("a")
    assert not verify(root).faults
    shutil.rmtree(root / "experts/b")
    Manifest.load(root).remove_expert("b")
    assert not verify(root).faults
    with pytest.raises(StoreError, match="no expert b"):
        Manifest.load(root).remove_expert("b")


def test_a_store_without_a_list_of_experts_gets_one_with_all_that_it_has(tmp_path, make_store, samples):
    root = make_store(tmp_path / "s")
    (root / "experts.txt").unlink()
    shutil.rmtree(root / "experts/b")
    assert not verify(root).faults  # as before there was such a file
    samples.add_expert(Manifest.load(root), "c", 3, 2, {}, ("identity",))
    assert (root / "experts.txt").read_text() == "a\nc\n"


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


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "lost": lambda path: path.unlink(),
}


@BOTH
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_of_a_shard_that_is_no_good_moves_its_shard_alone(tmp_path, make_store, container, damage):
    root = make_store(tmp_path / "s", {"a": 0}, container=container)
    before, shard = content(root), root / "experts/a" / SHARD[container]
    DAMAGES[damage](shard / "img002/sr/c.0.0.0" if container == "zarr" else shard)
    assert {(fault.source, fault.shard) for fault in verify(root).faults} == {("a", 1)}
    repair(root, verify(root).faults)
    left = content(root)
    assert not verify(root).faults and left == {name: before[name] for name in before if "a/shard-00001" not in name}


@BOTH
def test_exchanged_shards_experts_and_records_move_no_more_than_themselves(tmp_path, make_store, container):
    root = make_store(tmp_path / "s", {"a": 5, "b": 5, "c": 5}, container=container)
    folders = [root / "experts" / name for name in "abc"]
    exchange(folders[0] / SHARD[container], folders[1] / SHARD[container])
    exchange(folders[0] / "expert.yaml", folders[1] / "expert.yaml")
    (folders[2] / "shard-00000.json").write_bytes((folders[2] / "shard-00001.json").read_bytes())
    repair(root, verify(root).faults)
    manifest = Manifest.load(root)
    assert {name: manifest.missing_shards(name) for name in manifest.sources} == {
        "pairs": [],
        "a": [1],
        "b": [1],
        "c": [0],
    }
    assert not verify(root).faults


def exchange(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


ELSEWHERE = {
    "pairs": "pairs",
    "experts": "experts",
    "an expert": "experts/a",
    "a shard": "experts/a/{shard}",
    "a shard of pairs": "pairs/{shard}",
    "a record": "experts/a/shard-00001.json",
    "an entry": "experts/a/expert.yaml",
    "the images": "images.jsonl",
    "the store's file": "store.yaml",
}


@BOTH
@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_link_to_a_disk_that_is_not_there_cannot_be_read_and_stays(tmp_path, make_store, container, what):
    root = make_store(tmp_path / "s", container=container)
    path, disk = root / ELSEWHERE[what].format(shard=SHARD[container]), tmp_path / "disk"
    path.rename(disk)
    path.symlink_to(disk)
    assert not verify(root).faults
    disk.rename(tmp_path / "unmounted")
    before = content(root)
    try:
        faults = verify(root).faults
    except Unreadable as error:
        faults = [Fault(str(error), unread=True)]
    else:
        assert planned(root, faults) == [] == repair(root, faults)
    assert faults and all(fault.unread for fault in faults)
    assert all(
        f"{path}: cannot be read: it is a link to {disk}, which does not exist" in each.message for each in faults
    )
    assert content(root) == before and path.is_symlink()
    (tmp_path / "unmounted").rename(disk)
    assert not verify(root).faults


def test_pairs_that_are_lost_as_a_whole_are_a_fault(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    shutil.rmtree(root / "pairs")
    faults = verify(root).faults
    assert [fault.message for fault in faults] == [
        f"{root}/pairs: missing, although experts have shards. Put it back, or run: pipeline.py extract"
    ]
    assert planned(root, faults) == [] == repair(root, faults)


def test_records_of_other_images_prove_nothing(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    for path in (root / "experts/a").glob("*.json"):
        edit_record(path, lambda record: record["images"].update({image: "other" for image in record["images"]}))
    (root / "experts/a/expert.yaml").unlink()
    faults = verify(root).faults
    assert not any(fault.content for fault in faults)
    assert any("its shards cannot be checked without it" in fault.message for fault in faults)
