"""A survey names what is lost, exchanged or cannot be read, and no more."""

import re
import shutil

import pytest

from championship_sr.store.errors import StoreError, Unreadable
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.faults import Fault
from championship_sr.store.operations.repair import planned, repair
from championship_sr.store.operations.survey import survey
from championship_sr.store.operations.verify import verify
from tests.store.operations.damage import BOTH, SHARD, content


@pytest.fixture
def make_store(copied_store):
    return copied_store


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
