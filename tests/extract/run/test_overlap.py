import threading
import time
import weakref
from pathlib import Path

import pytest

from championship_sr.extract.edsr import EDSR
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.job import Job
from championship_sr.extract.run.prepare import PairsWriter
from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from tests.extract.stores import checksums

PATIENCE_SECONDS = 20


def appears(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return path.exists()


def test_an_expert_runs_on_the_first_images_while_the_last_are_still_decoded(make_config, tmp_path, monkeypatch):
    extract(make_config(store=str(tmp_path / "undisturbed")))
    config, seen = make_config(), []
    write = PairsWriter._write_shard

    def slow(self, shard, bar):
        if shard == 2 and self._manifest.root == Path(config.store):
            seen.append(appears(Path(config.store, "experts/tiny/shard-00001.json")))
        write(self, shard, bar)

    monkeypatch.setattr(PairsWriter, "_write_shard", slow)
    extract(config)
    assert seen == [True]
    assert checksums(config.store) == checksums(tmp_path / "undisturbed")


def test_a_shard_is_written_while_the_next_image_is_in_the_network(make_config, monkeypatch):
    config, seen = make_config(), []
    forward = EDSR.forward

    def watching(self, x):
        if x.shape[-2:] == (10, 10):  # the third image; the second one is written behind it
            seen.append(appears(Path(config.store, "experts/tiny/shard-00001.json")))
        return forward(self, x)

    monkeypatch.setattr(EDSR, "forward", watching)
    extract(config)
    assert seen == [True]


def test_a_file_that_changed_meanwhile_ends_the_run_and_the_experts_shards_before_it_stay(make_config, monkeypatch):
    config, reads = make_config(), []
    read = Pair.read

    def changing(self):
        lr, hr = read(self)
        reads.append(self.id)
        if self.id == "photo2" and reads.count("photo2") == 2:  # checked first, then written
            assert appears(Path(config.store, "experts/tiny/shard-00001.json"))
            hr = hr[::-1]
        return lr, hr

    monkeypatch.setattr(Pair, "read", changing)
    with pytest.raises(StoreError, match=r"photo2.png: changed while the store was being made"):
        extract(config)
    assert Manifest.load(Path(config.store)).missing_shards("tiny") == [2]
    assert not list(Path(config.store).rglob("*.tmp"))
    monkeypatch.undo()
    assert extract(config).experts["tiny"].shards_written == 1


def test_a_failing_expert_stops_the_decoding(make_config, monkeypatch):
    config, written = make_config(), []
    failed = threading.Event()
    write = PairsWriter._write_shard

    def counted(self, shard, bar):
        written.append(shard)
        write(self, shard, bar)
        if shard == 0:
            failed.wait(PATIENCE_SECONDS)
            time.sleep(0.2)  # until the block has been left

    def failing(*_args):
        failed.set()
        raise StoreError("this expert fails")

    monkeypatch.setattr(PairsWriter, "_write_shard", counted)
    monkeypatch.setattr("championship_sr.extract.run.forwards.run_tiled", failing)
    with pytest.raises(StoreError, match="this expert fails"):
        extract(config)
    assert written == [0]


def test_one_experts_network_is_gone_before_the_next_is_loaded(make_config, save_edsr, monkeypatch):
    networks, alive = [], []
    load = Job.load

    def watched(self, entry):
        alive.append(sum(network() is not None for network in networks))
        expert = load(self, entry)
        networks.append(weakref.ref(expert._network.model))
        return expert

    monkeypatch.setattr(Job, "load", watched)
    extract(make_config(experts=[save_edsr(name, seed) for seed, name in enumerate(("one", "two", "three"))]))
    assert alive == [0, 0, 0]
