from itertools import chain

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists

from championship_sr.extract.run.shares import Part, Rank, unless_busy, until_done
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.manifest import Manifest


def manifest(pixels: list[int]) -> Manifest:
    """One image of n x 1 pixels a shard."""
    images = tuple(Image(f"i{i}", "", (n, 1), "", "", i, "file") for i, n in enumerate(pixels))
    about = {"format_version": 2, "scale": 4, "container": "zarr"}
    return Manifest(None, about, images, {})


@given(lists(integers(1, 1000), min_size=1, max_size=60), integers(1, 9))
def test_parts_are_disjoint_cover_everything_and_are_balanced(pixels, count):
    parts = [Part(i + 1, count).shards(manifest(pixels)) for i in range(count)]
    assert sorted(chain(*parts)) == list(range(len(pixels)))
    loads = [sum(pixels[shard] for shard in part) for part in parts]
    assert max(loads) - min(loads) <= max(pixels)


@given(lists(integers(1, 1000), min_size=1, max_size=40), integers(1, 4), integers(1, 4))
def test_ranks_share_a_part_out_without_overlap(pixels, count, ranks):
    of = manifest(pixels)
    for index in range(1, count + 1):
        own = Part(index, count).shards(of)
        shares = [Rank(rank, rank, ranks).part.shards(of, own) for rank in range(ranks)]
        assert sorted(chain(*shares)) == own


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected I/N with 1 <= I <= N"):
        Part.parse(text)
    assert Part.parse("2/8") == Part(2, 8)


def test_the_rank_is_torchruns(monkeypatch):
    assert Rank.from_environment() == Rank(0, 0, 1)
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert Rank.from_environment() == Rank(3, 1, 4)


def test_a_rank_whose_fellow_has_died_says_so(monkeypatch):
    def lost():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234\nat some.cc")

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.barrier", lost)
    with pytest.raises(StoreError, match=r"rank 1: another rank has died \(Connection closed by peer .*1234\); no"):
        Rank(1, 1, 2).wait_for_all()
    Rank().wait_for_all()


def test_what_another_process_holds_is_tried_again_until_it_is_done(monkeypatch):
    monkeypatch.setattr("championship_sr.extract.run.shares.POLL_SECONDS", 0)
    missing, tried = {0, 1, 2}, []
    for shard in until_done(lambda: sorted(missing), [2, 0, 1]):
        tried.append(shard)
        if shard != 0 or len(tried) > 4:  # somebody else has shard 0 for a while
            missing.discard(shard)
    assert tried == [2, 0, 1, 0, 0]


def test_the_user_is_told_once_that_another_process_is_at_it(caplog):
    told = []
    for expected, shard in ((True, 0), (False, 1), (False, 2)):
        with unless_busy(told, expected):
            raise ShardBusy(f"a.store/experts/x/shard-{shard}: being written by process 7 on there")
    assert caplog.messages == [
        "a.store/experts/x/shard-1: being written by process 7 on there; "
        "skipping it, since each shard is made only once"
    ]
