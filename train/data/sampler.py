"""Which windows a training step reads: a pure function of (seed, step), so a run resumes from its step number.

Steps draw from an endless row of slots, `samples_per_epoch` of them to an epoch. An epoch is cut into visits of
`crops_per_visit` windows in one image; the visits are shuffled, and the windows of each `pool_visits` visits are
shuffled among themselves. One crop per visit is therefore the plain uniform order. With more, the windows of a visit
lie side by side in one band of rows, so that a store larger than memory is read in long runs, and a batch still holds
windows from many images. With `shards_at_once` the shards are shuffled, and the visits of this many shards are shuffled
among themselves before those of the next: a store that is larger than the disk is then fetched once per epoch.

Nothing is drawn in advance and nothing is remembered: each slot's numbers are a hash of (seed, epoch, slot).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from championship_sr.store.errors import ConfigError

Weighting = Literal["crops", "images"]

# SplitMix64: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17 (mix variant 13)
GOLDEN, FIRST, SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SCRAMBLES = 12
PURPOSES = (
    "offset",
    "visit order",
    "pool order",
    "y",
    "x",
    "variant",
    "shard order",
)  # each kind of draw has its own key


class WindowPlace(NamedTuple):
    """One window: `crop_px` LR pixels square at (y, x) of the upright image, then transformed by `variant`."""

    image: int
    y: int
    x: int
    variant: str


def mix(values: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """64 random bits for each value under a key, as uint64."""
    z = (values.astype(np.uint64) + np.uint64(1)) * GOLDEN + key
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def permute(index: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where each `index` goes in a random permutation of 0..n-1, without making the permutation.

    A bijection of the next power of two, walked until it lands below n (Black and Rogaway 2002, section 4).
    """
    bits = np.ceil(np.log2(np.maximum(n, 2))).astype(np.uint64)
    place, outside = index.astype(np.uint64), np.full(index.shape, True)
    while outside.any():
        place[outside] = _scramble(place[outside], bits[outside], key[outside])
        outside = place >= n.astype(np.uint64)
    return place.astype(np.int64)


def _scramble(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    # multiplying by an odd number and folding high bits on low ones can both be undone: a bijection of `bits` bits
    mask, fold = (np.uint64(1) << bits) - np.uint64(1), (bits + np.uint64(1)) >> np.uint64(1)
    for _ in range(SCRAMBLES):
        key = key * FIRST + SECOND
        value = (value * (key >> np.uint64(31) | np.uint64(1)) + (key >> np.uint64(7))) & mask
        value ^= value >> fold
    return value


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step that are not places, such as Mixup's."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, step]))


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name}={count}: must be at least 1")


def samples_per_epoch(images: int, repeat_factor: int, crops_per_visit: int) -> int:
    """Windows of an epoch: whole visits."""
    return -(-images * repeat_factor // crops_per_visit) * crops_per_visit


def window_weights(free: np.ndarray, weighting: Weighting) -> np.ndarray:
    """How much more often than others each image is visited, given its free positions along y and x."""
    return free.prod(axis=1) if weighting == "crops" else np.ones(len(free))


def node_share(weights: np.ndarray, shards: np.ndarray, nodes: Sequence[int], node: int) -> np.ndarray:
    """The images of one node, by their place: whole shards, the heaviest first, to the node with the least per rank.

    weights  of the images; shards  of the images; nodes  ranks of each node
    raises   ConfigError if there are fewer shards than nodes
    """
    numbers, of_image = np.unique(shards, return_inverse=True)
    if len(numbers) < len(nodes):
        raise ConfigError(
            f"data.sharding=node: {len(nodes)} nodes, but only {len(numbers)} shards with images to train on; "
            "use data.sharding=all, or a store with fewer images in each shard"
        )
    loads, owner = np.zeros(len(nodes)), np.empty(len(numbers), dtype=np.int64)
    of_shard = np.bincount(of_image, weights)
    for shard in np.argsort(-of_shard, kind="stable"):
        owner[shard] = np.argmin((loads + of_shard[shard]) / nodes)
        loads[owner[shard]] += of_shard[shard]
    return np.flatnonzero(owner[of_image] == node)


class Sampler:
    """The windows of every step over images of the given LR sizes.

    weighting       "crops": each window of the set is as likely as any other; "images": each image is
    repeat_factor   windows per image and epoch, on average
    shards          of the images, in ascending order; needed for
    shards_at_once  shards that are visited before the next ones; 0: all of them
    raises          ConfigError if an image is smaller than the crop
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        crop_px: int,
        seed: int,
        variants: Sequence[str] = ("identity",),
        repeat_factor: int = 20,
        weighting: Weighting = "crops",
        crops_per_visit: int = 1,
        pool_visits: int = 64,
        shards: Sequence[int] = (),
        shards_at_once: int = 0,
    ) -> None:
        self.free = np.asarray(sizes, dtype=np.int64).reshape(-1, 2) - crop_px + 1  # (image, 2): positions along y, x
        self.batch_size, self.seed, self.variants = batch_size, seed, tuple(variants)
        self.crops, self.pool = crops_per_visit, pool_visits
        _at_least_one(
            images=len(self.free),
            batch_size=batch_size,
            crop_px=crop_px,
            repeat_factor=repeat_factor,
            crops_per_visit=crops_per_visit,
            pool_visits=pool_visits,
        )
        if (small := np.flatnonzero((self.free < 1).any(axis=1))).size:
            raise ConfigError(
                f"crop_px={crop_px}: {small.size} of {len(sizes)} images are smaller, such as number {small[0]} "
                f"with {sizes[small[0]][0]} x {sizes[small[0]][1]} LR pixels"
            )
        weights = window_weights(self.free, weighting)
        self.shares = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
        self.samples_per_epoch = samples_per_epoch(len(self.free), repeat_factor, self.crops)
        self.visits = self.samples_per_epoch // self.crops
        last_of_shard = np.flatnonzero(np.diff(np.asarray(shards, dtype=np.int64)))
        self.ends = self.shares[last_of_shard]  # the share of all visits that lies before the end of each shard but one
        self.at_once = shards_at_once if 0 < shards_at_once <= len(last_of_shard) else 0

    def epoch(self, step: int) -> float:
        """How many epochs lie before the step."""
        return step * self.batch_size / self.samples_per_epoch

    def places(self, step: int, steps: int = 1) -> list[WindowPlace]:
        """The whole batch of a step, or of several successive steps, the same for any number of ranks.

        Numpy takes as long for the few windows of one batch as for those of ten.
        """
        slots = np.arange(step * self.batch_size, (step + steps) * self.batch_size)
        epoch, slot = np.divmod(slots, self.samples_per_epoch)
        visit, crop = self._visit(epoch, slot)
        image = self._image(epoch, visit)
        y, x = self._window(epoch, visit, crop, self.free[image])
        variant = self._draw("variant", epoch, visit * self.crops + crop) % np.uint64(len(self.variants))
        rows = zip(image.tolist(), y.tolist(), x.tolist(), variant.tolist(), strict=True)
        return [WindowPlace(i, top, left, self.variants[v]) for i, top, left, v in rows]

    def _visit(self, epoch: np.ndarray, slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pool, inside = np.divmod(slot, self.pool * self.crops)
        visits_here = np.minimum(self.pool, self.visits - pool * self.pool)
        key = mix(pool, self._key("pool order", epoch))
        rank, crop = np.divmod(permute(inside, visits_here * self.crops, key), self.crops)
        place = pool * self.pool + rank
        if not self.at_once:
            return permute(place, np.full(slot.shape, self.visits), self._key("visit order", epoch)), crop
        visit = np.empty_like(place)
        for number in np.unique(epoch):
            visit[epoch == number] = self._visit_by_shards(np.full(1, number), place[epoch == number])
        return visit, crop

    def _visit_by_shards(self, epoch: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The visits at these places of one epoch's order: shards shuffled, groups of them shuffled within."""
        first = np.concatenate([[0], self._first_visits(epoch), [self.visits]])  # of each shard
        order = np.argsort(mix(np.arange(len(first) - 1), self._key("shard order", epoch)), kind="stable")
        before = np.concatenate([[0], np.cumsum(np.diff(first)[order])])  # visits before each shard in this order
        bounds = np.append(before[:-1][:: self.at_once], self.visits)  # and before each group
        group = np.searchsorted(bounds, place, "right") - 1
        key = mix(group, self._key("visit order", epoch))
        place = bounds[group] + permute(place - bounds[group], bounds[group + 1] - bounds[group], key)
        shard = np.searchsorted(before, place, "right") - 1
        return first[order[shard]] + place - before[shard]

    def _first_visits(self, epoch: np.ndarray) -> np.ndarray:
        """The first visit of each shard except the first: exactly where `_image` reaches it."""
        offset = self._offset(epoch)
        visit = np.ceil(self.ends * self.visits - offset).astype(np.int64)
        visit -= (visit - 1 + offset) / self.visits >= self.ends  # by one at most, as the product is rounded
        visit += (visit + offset) / self.visits < self.ends
        return np.clip(visit, 0, self.visits)

    def _image(self, epoch: np.ndarray, visit: np.ndarray) -> np.ndarray:
        # systematic sampling: each image gets its share of the visits, rounded down or up
        place = (visit + self._offset(epoch)) / self.visits
        return np.minimum(np.searchsorted(self.shares, place, "right"), len(self.free) - 1)

    def _offset(self, epoch: np.ndarray) -> np.ndarray:
        return self._draw("offset", epoch, np.zeros_like(epoch)) / 2.0**64

    def _window(self, epoch, visit, crop, free) -> tuple[np.ndarray, np.ndarray]:
        rows, cols = free[:, 0], free[:, 1]
        y = (self._draw("y", epoch, visit) % rows.astype(np.uint64)).astype(np.int64)
        x = (self._draw("x", epoch, visit) % cols.astype(np.uint64)).astype(np.int64)
        return y, (x + crop * cols // self.crops) % cols

    def _draw(self, purpose: str, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
        return mix(index, self._key(purpose, epoch))

    def _key(self, purpose: str, epoch: np.ndarray) -> np.ndarray:
        seed = np.array([self.seed % 2**64], dtype=np.uint64)
        return mix(epoch, mix(seed, np.uint64(PURPOSES.index(purpose))))
