"""Windows of a store as float batches on the device; on the way each raw byte is copied once on the host.

Threads copy raw windows from the mapped shards into a ring of buffers (pinned where the device is a GPU), some steps
ahead of the training. A batch goes to the device in one copy; there codecs are undone and windows turned. Threads
suffice: numpy and the kernel do the host's work without Python's lock, and processes would have to pass on their
batches.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, Literal

import numpy as np
import torch

from championship_sr.store.errors import ConfigError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.variants import inverse, variant_size, window_before
from championship_sr.store.remote.cache import ShardCache
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.train.data.batch import Batch, decoded, fields_of
from championship_sr.train.data.sampler import (
    Sampler,
    Weighting,
    WindowPlace,
    node_share,
    samples_per_epoch,
    window_weights,
)
from championship_sr.train.data.slots import Field, Layout, Raw, Slot, Windows
from championship_sr.train.data.uploads import Sent, Uploads, constants_on, one_ahead, uploads
from championship_sr.train.data.variants import Augment, variants_for

MIB = 2**20
LEAST_SLOTS = 3  # steps: one at the device, one on its way and one being read
MOST_SLOTS, MOST_AHEAD = 8, 16  # steps; with small batches, the limit in MiB would allow too much work in Python
DRAWN_STEPS = 16  # at a time
SETTLED, LOOK_EVERY = 256, 8  # once this many windows in a row are in memory, only every eighth is checked
NODE_SEEDS = 2**32  # distance between the seeds of nodes

Submit = Callable[..., Future]


@dataclass(frozen=True)
class Sampling:
    """Which windows the steps see; `Sampler` and `variants_for` explain the other values.

    batch_size  over all processes; each gets its share, in the order of their ranks
    sharding    "node": the processes of each machine only read a share of the shards
    """

    batch_size: int
    crop_px: int
    seed: int
    augment: Augment = "none"
    repeat_factor: int = 20
    weighting: Weighting = "crops"
    crops_per_visit: int = 1
    pool_visits: int = 64
    shards_at_once: int = 0
    sharding: Literal["all", "node"] = "all"


@dataclass(frozen=True)
class Buffers:
    """The threads and memory for reading ahead.

    threads     that copy; 0 copies in the caller's thread
    buffer_mib  host memory for raw batches; at least three batches
    ahead_mib   how far ahead of copying the kernel is asked to read; 0: never
    """

    threads: int = 2
    buffer_mib: int = 128
    ahead_mib: int = 128


@dataclass(frozen=True)
class Ranks:
    """This process among `world`; `nodes` are the processes of each machine, () if one has them all."""

    rank: int = 0
    world: int = 1
    nodes: tuple[int, ...] = ()
    node: int = 0
    local_rank: int = 0

    @property
    def of_node(self) -> "Ranks":
        """The same among the processes of this machine alone."""
        return Ranks(self.local_rank, self.nodes[self.node]) if self.nodes else self

    def share(self, batch_size: int) -> slice:
        """This process's part of a batch."""
        return slice(self.rank * batch_size // self.world, (self.rank + 1) * batch_size // self.world)

    def machine(self, batch_size: int) -> slice:
        """The part of all processes of this machine."""
        first, beside = (self.rank - self.local_rank, self.nodes[self.node]) if self.nodes else (0, self.world)
        return slice(first * batch_size // self.world, (first + beside) * batch_size // self.world)


BUFFERS, ALONE = Buffers(), Ranks()


class Loader:
    """Batches of random windows, the same for any number of threads and, taken together, of processes.

    experts   in the order of `Batch.images`; () gives lr and hr alone; None: all of the store
    images    which of the store's images, by index; None: all
    features  False leaves the features out, for a fusion without them
    cache     fetches the shards of a remote store before they are read
    teacher   the store's name for the images to learn from
    """

    def __init__(
        self,
        store: Store,
        sampling: Sampling,
        experts: Sequence[str] | None = None,
        *,
        images: Sequence[int] | None = None,
        features: bool = True,
        device: torch.device | str = "cpu",
        buffers: Buffers = BUFFERS,
        ranks: Ranks = ALONE,
        cache: ShardCache | None = None,
        teacher: str | None = None,
    ) -> None:
        if sampling.batch_size % ranks.world:
            raise ConfigError(f"batch_size={sampling.batch_size}: {ranks.world} ranks cannot share it evenly")
        self.store, self.crop_px, self.device = store, sampling.crop_px, torch.device(device)
        self.on_gpu = self.device.type == "cuda"  # buffers are then pinned, and copies to the device do not wait
        self.experts = tuple(store.experts if experts is None else experts)
        self.images = sorted(range(len(store.images)) if images is None else images, key=self._shard_of)
        # of all nodes
        self.samples_per_epoch = samples_per_epoch(len(self.images), sampling.repeat_factor, sampling.crops_per_visit)
        if sampling.sharding == "node" and len(ranks.nodes) > 1:
            sampling, ranks = self._of_node(sampling, ranks)
        self.share, self.machine = ranks.share(sampling.batch_size), ranks.machine(sampling.batch_size)
        self.cache, self.teacher = cache, teacher
        self.threads, self.buffer_mib, self.ahead_mib = buffers.threads, buffers.buffer_mib, buffers.ahead_mib
        self.in_memory = 0  # windows found there since the last that was not
        self.sampler = self._sampler(sampling)
        self.fields = fields_of(store, (*self.experts, *([teacher] if teacher else [])), features)
        # a teacher's image is turned like HR, as there is one for each image
        upright = (PAIRS, teacher)
        self.turned = frozenset(
            field for field in self.fields if sampling.augment == "stored" and field.source not in upright
        )
        self.windows = {field: self._windows(field) for field in self.fields}
        self.constants = constants_on(self.device)
        self.batch_bytes = (self.share.stop - self.share.start) * sum(
            window.n_bytes for window in self.windows.values()
        )

    def _of_node(self, sampling: Sampling, ranks: Ranks) -> tuple[Sampling, Ranks]:
        """This machine's images, its part of the batch and its processes, as if there were no other."""
        free = np.array([self.store.images[image].lr_size for image in self.images]) - self.crop_px + 1
        own = node_share(window_weights(free, sampling.weighting), np.array(self._shards()), ranks.nodes, ranks.node)
        self.images = [self.images[place] for place in own]
        batch_size = sampling.batch_size * ranks.nodes[ranks.node] // ranks.world
        return replace(sampling, batch_size=batch_size, seed=sampling.seed + ranks.node * NODE_SEEDS), ranks.of_node

    def _sampler(self, sampling: Sampling) -> Sampler:
        return Sampler(
            [self.store.images[image].lr_size for image in self.images],
            batch_size=sampling.batch_size,
            crop_px=sampling.crop_px,
            seed=sampling.seed,
            variants=variants_for(sampling.augment, self.store, self.experts),
            repeat_factor=sampling.repeat_factor,
            weighting=sampling.weighting,
            crops_per_visit=sampling.crops_per_visit,
            pool_visits=sampling.pool_visits,
            shards=self._shards(),
            shards_at_once=sampling.shards_at_once,
        )

    def places(self, step: int) -> list[WindowPlace]:
        """This rank's share of the step's windows, images by their index in the store."""
        return self._own(self.sampler.places(step))

    def _own(self, batch: list[WindowPlace]) -> list[WindowPlace]:
        return [WindowPlace(self.images[image], y, x, variant) for image, y, x, variant in batch[self.share]]

    def _drawn(self, start: int, stop: int | None) -> Iterator[tuple[int, list[WindowPlace]]]:
        """Each step and its places."""
        size = self.sampler.batch_size
        for first in count(start, DRAWN_STEPS) if stop is None else range(start, stop, DRAWN_STEPS):
            steps = DRAWN_STEPS if stop is None else min(DRAWN_STEPS, stop - first)
            places = self.sampler.places(first, steps)
            for step in range(steps):
                yield first + step, self._own(places[step * size : (step + 1) * size])

    def _shard_of(self, image: int) -> int:
        return self.store.images[image].shard

    def _shards(self) -> list[int]:
        return [self._shard_of(image) for image in self.images]

    def shards_of(self, step: int) -> set[int]:
        """The shards that a step reads from, in all ranks of this machine."""
        return {self._shard_of(self.images[place.image]) for place in self.sampler.places(step)[self.machine]}

    def batch(self, step: int) -> Batch:
        """The batch of one step, independent of earlier ones."""
        slot = self.slot()
        with self._fetching(step):
            self._fill(_run_now, slot, step, self.places(step))
        way = uploads(self.device)
        return self._decoded(way, *self._sent(way, slot))

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """The batches of every step from `start` on, to `stop` or without end; closing the iterator ends its threads.

        raises  StoreError naming the image whose window cannot be read
        """
        way = uploads(self.device)
        with closing(self.filled(start, stop)) as slots:
            for sent in one_ahead((self._sent(way, slot) for slot in slots), way.ahead):
                yield self._decoded(way, *sent)

    def filled(self, start: int = 0, stop: int | None = None) -> Generator[Slot, None, None]:
        """The raw windows of the same steps; each slot is good until the next one is asked for."""
        with (
            _workers(self.threads) as submit,
            _workers(min(self.ahead_mib, 1)) as advise,
            self._fetching(start),  # ends first, so that no thread still waits for it
        ):
            steps = self._steps(start, stop, advise)
            ring = deque(self._fill(submit, slot, *step) for slot, step in zip(self._slots(), steps, strict=False))
            for step in count(start) if stop is None else range(start, stop):
                slot, shares = ring.popleft()
                for share in shares:
                    share.result()
                yield slot
                if self.cache:
                    self.cache.done(step)
                ring.extend(self._fill(submit, slot, *following) for following in islice(steps, 1))

    def _fetching(self, start: int) -> AbstractContextManager:
        if self.cache is None:
            return nullcontext()
        return self.cache.fetching(self.shards_of, set(self._shards()), start)

    def _steps(self, start: int, stop: int | None, advise: Submit) -> Iterator[tuple[int, list[WindowPlace]]]:
        """Each step and its places; the kernel has then been asked for those of the steps that follow."""
        distance = min(-(-self.ahead_mib * MIB // self.batch_bytes), MOST_AHEAD)
        ahead: deque[tuple[int, list[WindowPlace]]] = deque()
        for drawn in self._drawn(start, stop):
            ahead.append(drawn)
            if distance:
                advise(self._prefetch, *drawn)
            if len(ahead) > distance:
                yield ahead.popleft()
        yield from ahead

    def _prefetch(self, step: int, places: list[WindowPlace]) -> None:
        if self.cache and not self.cache.has(step):
            return
        # a fault found here is left to `_fill_rows`, which meets it again where it can be reported
        for place, cols in [(place, self.crop_px) for place in places] if self.turned else joined(places, self.crop_px):
            self.in_memory += 1
            if self.in_memory <= SETTLED or self.in_memory % LOOK_EVERY == 0:
                asked = [self._ask_for(field, place, cols) for field in self.fields]
                self.in_memory *= not any(asked)

    def _ask_for(self, field: Field, place: WindowPlace, cols: int) -> bool:
        array, y, x = self._window(field, place)
        return array.prefetch(y, x, self.crop_px * field.resolution, cols * field.resolution)

    def _slots(self) -> Iterator[Slot]:
        fitting = min(max(self.buffer_mib * MIB // self.batch_bytes, LEAST_SLOTS), MOST_SLOTS)
        for _ in range(fitting if self.threads else 1):
            yield self.slot()

    def slot(self) -> Slot:
        """An empty slot for this rank's share of a batch."""
        own = {field: self._own_params(field) for field in self.fields}
        return Slot(Layout(self.windows, self.share.stop - self.share.start, own), pinned=self.on_gpu)

    def _own_params(self, field: Field) -> dict[str, int]:
        array = self._array(field, self.images[0])
        return {} if field.source == PAIRS else {name: len(array.params[name]) for name in array.codec.own}

    def _fill(self, submit: Submit, slot: Slot, step: int, places: list[WindowPlace]) -> tuple[Slot, list[Future]]:
        slot.places = places
        shares = max(self.threads, 1)  # one task per thread: one per sample costs more than its better balance gains
        rows = [range(first, len(places), shares) for first in range(shares)]
        return slot, [submit(self._fill_rows, slot, step, share) for share in rows]

    def _fill_rows(self, slot: Slot, step: int, rows: range) -> None:
        if self.cache:
            self.cache.need(step)
        if slot.left is not None:
            slot.left.synchronize()
        # field by field: a sample's ten windows in turn took a tenth longer, each in other memory than the last
        for field in slot.raw:
            for row in rows:
                slot.read(field, row, *self._window(field, slot.places[row]))

    def _window(self, field: Field, place: WindowPlace) -> tuple[StoredArray, int, int]:
        """The array that holds this field of the place, and where the place begins in it."""
        y, x, variant = place.y, place.x, place.variant
        if variant == "identity" or field not in self.turned:
            return self._array(field, place.image), y * field.resolution, x * field.resolution
        turned = variant_size(self.store.images[place.image].lr_size, variant)
        y, x, _, _ = window_before((y, x, self.crop_px, self.crop_px), inverse(variant), turned)
        return self._array(field, place.image, variant), y * field.resolution, x * field.resolution

    def _array(self, field: Field, image: int, variant: str = "identity") -> StoredArray:
        return self.store.array(image, field.source, field.name, variant)

    def _windows(self, field: Field) -> Windows:
        first, side = self._array(field, self.images[0]), self.crop_px * field.resolution
        # photographs of 8 and of 16 bits may lie in one store
        images = self.images if field.source == PAIRS else self.images[:1]
        widest = max((self._array(field, image).raw_dtype for image in images), key=lambda dtype: dtype.itemsize)
        return Windows((side, side, first.raw_channels), widest, first.strip_cols)

    def _sent(self, way: Uploads, slot: Slot) -> tuple[Raw, Sent]:
        sent = way.send(slot.memory)
        slot.left = sent.arrived
        return slot.on(sent.memory), sent

    def _decoded(self, way: Uploads, raw: Raw, sent: Sent) -> Batch:
        way.receive(sent)
        ids = [self.store.images[place.image].id for place in raw.places]
        return decoded(raw, ids, self.turned, self.constants, self.teacher)


def joined(places: Sequence[WindowPlace], crop_px: int) -> list[tuple[WindowPlace, int]]:
    """Merges adjacent windows of the same rows: the first window, and their total columns."""
    runs: list[tuple[WindowPlace, int]] = []
    for place in sorted(places, key=lambda place: (place.image, place.y, place.x)):
        first, cols = runs[-1] if runs else (place, 0)
        if runs and (first.image, first.y) == (place.image, place.y) and place.x <= first.x + cols:
            runs[-1] = first, max(cols, place.x + crop_px - first.x)
        else:
            runs.append((place, crop_px))
    return runs


@contextmanager
def _workers(threads: int) -> Iterator[Submit]:
    """The function that starts a call, in one of this many threads or immediately."""
    if threads == 0:
        yield _run_now
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _run_now(function: Callable[..., Any], *args: object) -> Future:
    done: Future = Future()
    done.set_result(function(*args))
    return done
