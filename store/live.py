"""Compares what a store holds with what its experts return now."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.shards.reader import Store, StoredArray

Recompute = Callable[[str, Image, str], dict[str, np.ndarray]]  # expert, image, variant -> float32 arrays


@dataclass(frozen=True)
class LiveDifference:
    """One stored array beside what the expert says now."""

    expert: str
    image: str
    array: str
    codec_error: float  # the most that the codec changes the fresh values
    error: float  # the most that the decoded array differs from the fresh values, coded and decoded alike
    allowed: float  # at the place where `error` comes nearest to it, or exceeds it

    @property
    def within(self) -> bool:
        return self.error <= self.allowed


def compare_live(store: Store, recompute: Recompute, n: int, tolerance: float = 1e-4) -> tuple[LiveDifference, ...]:
    """Each expert's arrays of n images, spread over the store, beside what `recompute` returns for them.

    Both are compared as the codec stores them: they may differ by one step of the codec, and by `tolerance` of the
    array's largest magnitude, which is what another machine or tile may change in float32.
    """
    chosen = np.unique(np.linspace(0, len(store.images) - 1, min(n, len(store.images))).round().astype(int))
    return tuple(
        _difference(store.array(int(i), name, spec, variant), fresh[spec], name, tolerance)
        for i in chosen
        for name, expert in store.experts.items()
        for variant in expert.variants
        for fresh in [recompute(name, store.images[i], variant)]
        for spec in fresh
    )


def _difference(array: StoredArray, fresh: np.ndarray, expert: str, tolerance: float) -> LiveDifference:
    image, _, key = array.key.partition("/")
    if fresh.shape != array.shape:
        raise StoreError(f"{expert}: {array.key} has shape {array.shape}, but the expert now makes {fresh.shape}")
    coded = array.codec.decode(array.codec.encode(fresh, array.params), array.params)
    error = np.abs(array.load() - coded)
    allowed = array.codec.quantum(coded, array.params) + tolerance * float(np.abs(fresh).max())
    worst = np.unravel_index(np.argmax(error / allowed), error.shape)
    codec_error = float(np.abs(coded - fresh).max())
    return LiveDifference(expert, image, key, codec_error, float(error[worst]), float(allowed[worst]))
