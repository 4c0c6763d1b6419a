"""Paired differences between methods over the same images, with intervals for their mean."""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """The paired difference between two methods over the same images, better being positive."""

    mean: float
    low: float  # of the bootstrap interval
    high: float
    wins: int
    losses: int
    ties: int

    @property
    def interval(self) -> list[float]:
        """[mean, low, high]."""
        return [self.mean, self.low, self.high]


class Resampling:
    """Percentile bootstrap over images: the same draws for every difference, so that intervals can be compared."""

    def __init__(self, images: int, resamples: int, seed: int) -> None:
        self._picked = np.random.default_rng(seed).integers(images, size=(resamples, images))

    def gain(self, differences: np.ndarray) -> Gain:
        """The mean of one difference an image, with its interval; infinities stay."""
        # inverted_cdf does not interpolate: between inf and inf there would be nan
        tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        low, high = np.quantile(differences[self._picked].mean(axis=1), tails, method="inverted_cdf")
        return Gain(
            mean=float(differences.mean()),
            low=float(low),
            high=float(high),
            wins=int((differences > 0).sum()),
            losses=int((differences < 0).sum()),
            ties=int((differences == 0).sum()),
        )


def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How much more one is than the other on each image; 0 where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(ours == theirs, 0.0, ours - theirs)
