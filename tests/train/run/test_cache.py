"""Training from a bucket through a bounded cache: the same batches as from a folder, whatever fits or breaks."""

import threading
from pathlib import Path

import pytest
import torch

from championship_sr.store.errors import StoreError
from championship_sr.store.progress import silent
from championship_sr.store.remote import bucket as remote
from championship_sr.store.remote.cache import GB, RemoteStoreReader, ShardCache
from championship_sr.store.remote.objects import RemoteStore
from championship_sr.store.remote.transfer import push, tree_bytes
from championship_sr.store.shards.reader import Store
from championship_sr.train.records.checkpoint import checkpoints
from championship_sr.train.run.loop import Run, train
from tests.s3_server import Fault
from tests.train.loaders import loader_of

STEPS = 24
OPTIONS = {
    "batch_size": 3, "crop_px": 8, "seed": 3, "repeat_factor": 4, "pool_visits": 2, "shards_at_once": 2,
    "buffer_mib": 1, "ahead_mib": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def local(samples, tmp_path_factory) -> Path:
    """A store of seven shards of one image each."""
    root = tmp_path_factory.mktemp("cache") / "local"
    sizes = [(12 + i % 3, 16 - i % 2) for i in range(7)]
    return samples.build(root, {"a": 5}, 7, sizes, scale=2, images_per_shard=1, container="hdf5")


@pytest.fixture
def url(local, bucket) -> str:
    push(local, f"{bucket}/a.store")
    return f"{bucket}/a.store"


@pytest.fixture
def opened(url, tmp_path):
    """A cache for so many shards, and its store; closed at the end."""
    closing = []

    def make(shards: float, folder: str = "cache", **options) -> tuple[RemoteStoreReader, ShardCache]:
        reader = RemoteStoreReader(RemoteStore(url), tmp_path / folder)
        largest = max(
            sum(reader.remote.shard_bytes(reader.manifest, source, shard) for source in ("pairs", "a"))
            for shard in range(7)
        )
        closing.append(ShardCache(reader, shards * largest / GB, **options))
        return reader, closing[-1]

    yield make
    for cache in closing:
        cache.close()


def same(one, other) -> bool:
    return one.places == other.places and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("lr", "hr", "images")
    )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("shards", [4.1, 100])
def test_batches_are_those_of_the_local_store_bit_for_bit(local, opened, threads, shards):
    store, cache = opened(shards)
    here = loader_of(Store(local), threads=0, **OPTIONS)
    there = loader_of(store, threads=threads, cache=cache, **OPTIONS)
    for one, other in zip(here.batches(0, STEPS), there.batches(0, STEPS), strict=True):
        assert same(one, other) and torch.equal(one.features["a"], other.features["a"])
    assert same(here.batch(5), there.batch(5))
    assert same(next(iter(here.batches(17))), next(iter(there.batches(17))))


def test_the_disk_never_holds_more_than_the_limit_and_evicted_maps_are_closed(opened, monkeypatch, tmp_path):
    store, cache = opened(4.1)
    loader = loader_of(store, threads=2, cache=cache, **OPTIONS)
    published, most, fetched = RemoteStore.get_shard, [], []

    def look(self, manifest, source, shard, pool, progress=silent):
        published(self, manifest, source, shard, pool, progress)
        fetched.append((source, shard))
        most.append(sum(tree_bytes(path) for path in (tmp_path / "cache").rglob("shard-*.h5")))

    monkeypatch.setattr(RemoteStore, "get_shard", look)
    for _ in loader.batches(0, STEPS):
        pass
    assert max(most) <= cache._limit
    assert len(fetched) > len(set(fetched)) == 14  # there was more than one epoch, and not room for all
    mapped = {key[1].partition("/")[0] for key in store._views._values}
    there = {image.id for image in store.images if store.manifest.is_recorded("pairs", image.shard)}
    assert mapped <= there and len(there) < 7


def test_grouped_shards_are_fetched_once_an_epoch(opened, monkeypatch):
    fetched, get = [], RemoteStore.get_shard

    def counted(self, manifest, source, *others):
        fetched.append(source)
        get(self, manifest, source, *others)

    monkeypatch.setattr(RemoteStore, "get_shard", counted)
    store, cache = opened(5.1)
    loader = loader_of(store, threads=0, cache=cache, **OPTIONS)
    steps = loader.samples_per_epoch // 3  # of one epoch
    for _ in loader.batches(0, steps):
        pass
    ahead = 5  # shards of the next epoch that were fetched meanwhile
    assert fetched.count("a") <= 7 + ahead


def test_what_an_earlier_run_left_is_used(opened, proxy, url):
    store, cache = opened(100)
    list(loader_of(store, threads=0, cache=cache, **OPTIONS).batches(0, STEPS))
    cache.close()
    store, cache = opened(100)
    proxy.requests.clear()
    list(loader_of(store, threads=0, cache=cache, **OPTIONS).batches(STEPS, 2 * STEPS))
    assert not any(".h5" in path for _, path in proxy.requests)


def test_a_limit_below_one_step_is_told_and_how_to_go_on(opened):
    store, cache = opened(1.5)
    with pytest.raises(StoreError, match=r"too small for step \d+, which reads from \d shards.*raise --cache-gb"):
        list(loader_of(store, threads=2, cache=cache, **OPTIONS).batches(0, STEPS))


def test_a_shard_that_cannot_be_fetched_ends_the_training_with_its_name(opened, proxy, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    store, cache = opened(4.1)
    proxy.faults.append(Fault(503, "GET", "experts/a/shard-00003-", times=10_000))
    with pytest.raises(StoreError, match=r"experts/a/shard-00003-"):
        list(loader_of(store, threads=2, cache=cache, **OPTIONS).batches(0, STEPS))


def test_an_iterator_that_is_closed_early_waits_for_nothing(opened):
    store, cache = opened(4.1)
    batches = loader_of(store, threads=2, cache=cache, **OPTIONS).batches(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "cache"]


def test_two_runs_do_not_share_a_cache(opened):
    opened(100)
    with pytest.raises(StoreError, match="another run is using this cache; choose another one with --cache"):
        opened(100)


def test_pinned_shards_stay(opened):
    store, cache = opened(5.1)
    cache.pin([2])
    for _ in loader_of(store, threads=0, cache=cache, **OPTIONS).batches(0, STEPS):
        assert store.manifest.is_recorded("a", 2)


def test_a_second_process_of_the_machine_reads_what_the_first_fetches(local, opened):
    """Both run in this process: the second knows nothing but the folder and its step file."""
    options = {**OPTIONS, "batch_size": 2}
    first_store, first = opened(6.1, fetches=True, alone=False)
    second_store, second = opened(6.1, fetches=False, alone=False)
    loaders = [
        loader_of(store, threads=1, cache=cache, rank=rank, world=2, nodes=(2,), local_rank=rank, **options)
        for rank, (store, cache) in enumerate(((first_store, first), (second_store, second)))
    ]
    whole = loader_of(Store(local), threads=0, **options)
    parts = [loader.batches(0, STEPS) for loader in loaders]
    for batch in whole.batches(0, STEPS):
        one, other = (next(part) for part in parts)
        assert torch.equal(torch.cat([one.lr, other.lr]), batch.lr)
        assert torch.equal(torch.cat([one.features["a"], other.features["a"]]), batch.features["a"])
    for part in reversed(parts):
        part.close()


def test_a_store_that_is_not_whole_is_refused_before_the_first_step(make_store, bucket, tmp_path):
    push(make_store(tmp_path / "part", {"a": 5}, shards=[0]), f"{bucket}/part.store")
    with pytest.raises(StoreError, match=r"^s3://.*part\.store: a lacks 1 of 2 shards, the first is 1"):
        RemoteStoreReader(RemoteStore(f"{bucket}/part.store"), tmp_path / "cache")


def test_an_interrupted_run_from_a_bucket_ends_with_the_weights_of_a_local_one(
    make_learnable, make_config, bucket, monkeypatch, tmp_path
):
    local, url = make_learnable(tmp_path / "local"), f"{bucket}/a.store"
    push(local, url)
    config = make_config(data={"cache": str(tmp_path / "cache"), "threads": 2})
    one = train(config, local, tmp_path / "one")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_one_step", stopped_at(6, Run._one_step))
        train(config, url, tmp_path / "other")
    other = train(config, url, tmp_path / "other", resume=True)
    weights = [checkpoints(run)[-1].path / "weights.safetensors" for run in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def stopped_at(step: int, work):
    def one_step(run, *arguments):
        if run.step == step:
            raise KeyboardInterrupt
        work(run, *arguments)

    return one_step


def test_each_node_fetches_and_reads_its_share_alone(local, opened):
    """Nodes of two ranks and one, as torchrun would make them."""
    options, seen = {**OPTIONS, "batch_size": 6, "sharding": "node", "world": 3, "nodes": (2, 1)}, {}
    ranks = [{"rank": 0, "node": 0, "local_rank": 0}, {"rank": 1, "node": 0, "local_rank": 1}, {"rank": 2, "node": 1}]
    loaders = [loader_of(Store(local), threads=0, **rank, **options) for rank in ranks]
    assert len({loader.samples_per_epoch for loader in loaders}) == 1  # so that all take as many steps
    for rank, loader in enumerate(loaders):
        seen[rank] = {place.image for step in range(40) for place in loader.places(step)}
        assert all(len(loader.places(step)) == 2 for step in range(9))
    assert seen[0] | seen[1] | seen[2] == set(range(7)) and not (seen[0] | seen[1]) & seen[2]
    first, second = (loader.places(5) for loader in loaders[:2])
    assert {*first}.isdisjoint(second)
    store, cache = opened(100)
    list(loader_of(store, threads=0, cache=cache, **ranks[2], **options).batches(0, 40))
    assert set(store.manifest.recorded_shards("a")) == seen[2]  # a shard holds one image here
