"""The way to the device, with a device of the tests' own that copies as late as it may."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch

from championship_sr.store.shards.reader import Store
from championship_sr.train.bench.dispatch import META
from championship_sr.train.data.uploads import Constants, Sent, one_ahead
from tests.train.loaders import loader_of

OPTIONS = {"batch_size": 4, "crop_px": 12, "seed": 9, "repeat_factor": 5}


class LateCopies:
    """A device whose copies are only made when somebody waits for them; it writes down what happened in which order."""

    ahead = True

    def __init__(self) -> None:
        self.log, self.sent = [], 0

    def send(self, memory: torch.Tensor) -> Sent:
        copied = torch.empty_like(memory)
        self.log.append(("send", self.sent))
        self.sent += 1
        return Sent(copied, LateCopy(memory, copied, self.sent - 1))

    def receive(self, sent: Sent) -> torch.Tensor:
        sent.arrived.synchronize()
        self.log.append(("receive", sent.arrived.number))
        return sent.memory


class LateCopy:
    """The event of a copy, for which several threads may wait."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor, number: int) -> None:
        self.source, self.target, self.number = source, target, number
        self.done, self.lock = False, threading.Lock()

    def synchronize(self) -> None:
        with self.lock:
            if not self.done:
                self.target.copy_(self.source)
            self.done = True


@pytest.fixture
def late(monkeypatch):
    device = LateCopies()
    monkeypatch.setattr("championship_sr.train.data.loader.uploads", lambda _: device)
    return device


@pytest.mark.parametrize("threads", [0, 2])
def test_a_slot_is_not_filled_again_before_the_device_has_its_copy(written, monkeypatch, threads):
    store = Store(written(features="pca2-int8"))
    truth = [loader_of(store, **OPTIONS, threads=0).batch(step) for step in range(20)]
    device = LateCopies()
    monkeypatch.setattr("championship_sr.train.data.loader.uploads", lambda _: device)
    for batch, expected in zip(loader_of(store, **OPTIONS, threads=threads).batches(0, 20), truth, strict=True):
        assert batch.places == expected.places
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.lr, expected.lr)
        assert all(torch.equal(batch.features[name], expected.features[name]) for name in expected.features)


def test_the_next_batch_is_on_its_way_before_one_is_used(written, late):
    list(islice(loader_of(Store(written()), **OPTIONS).batches(0, 4), 3))
    assert late.log[:6] == [
        ("send", 0), ("send", 1), ("receive", 0), ("send", 2), ("receive", 1), ("send", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("buffer_mib", [1, 1000])
def test_at_least_three_batches_have_room_however_large_they_are(written, buffer_mib):
    loader = loader_of(Store(written()), **OPTIONS, buffer_mib=buffer_mib)
    loader.batch_bytes = 2**30
    assert len(list(loader._slots())) == 3


@pytest.mark.parametrize("ahead", [True, False])
def test_one_ahead_leaves_nothing_out(ahead):
    for n in range(4):
        assert list(one_ahead(range(n), ahead)) == list(range(n))


def test_one_copy_brings_a_whole_batch_to_the_device(written, late):
    list(loader_of(Store(written(features="int8")), **OPTIONS).batches(0, 5))
    assert late.sent == 5


def test_what_batches_share_is_uploaded_once_and_as_their_own_numbers_are(monkeypatch):
    sent = []

    def counted(values, device):
        sent.append((values, device))
        return torch.empty(values.shape, device=META)

    monkeypatch.setattr("championship_sr.train.data.uploads.to_device", counted)  # from pinned memory, on a GPU
    constants, basis = Constants(META), np.ones((2, 3), np.float32)
    assert constants(basis) is constants(basis)
    assert [(id(values), device.type) for values, device in sent] == [(id(basis), "meta")]


def test_an_array_that_is_gone_leaves_nothing_on_the_device():
    constants, left = Constants(META), 20
    for number in range(left):  # later arrays often lie where earlier ones did
        assert constants(np.zeros(number, np.float32)).shape == (number,)
    assert not constants._known
