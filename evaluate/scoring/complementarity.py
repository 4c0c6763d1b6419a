"""What experts have in common, and what each adds to the others, known before any training.

Everything follows from one matrix an image, the mean products of the experts' luma errors (`products_of`): a
combination by weights w of sum 1 has the mean squared error w' P w. PSNR is on luma, before rounding to 8 bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from championship_sr.train.combination import equal_experts, fit_weights, psnr_of, squared_error
from championship_sr.train.gains import Gain, Resampling, difference

ALL_SUBSETS = 8  # up to this many experts, every subset is scored; beyond, forward selection
WORTH_DB = 0.01  # an expert that adds less is not worth its time: PSNR is quoted to 0.01 dB
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class ExpertCost:
    """An expert's cost for one LR pixel or, as returned by `of`, for an image; None if not known."""

    parameters: int | None = None
    seconds: float | None = None
    stored_bytes: float | None = None  # of its SR image and features

    def of(self, lr_px: float) -> "ExpertCost":
        """The cost of an image of this many LR pixels."""
        return ExpertCost(self.parameters, _times(self.seconds, lr_px), _times(self.stored_bytes, lr_px))


def _times(value: float | None, count: float) -> float | None:
    return None if value is None else value * count


@dataclass(frozen=True)
class Subset:
    """Some experts, combined by weights of sum 1; what that gains over the best expert alone."""

    experts: tuple[str, ...]
    weights: dict[str, float]
    psnr_y: float
    gain: Gain


@dataclass(frozen=True)
class Complementarity:
    """What a set of experts is worth together.

    correlation    expert -> expert -> correlation of their luma errors, about zero; empty for one expert
    own_error      expert -> share of its squared error that no combination of the others' errors explains
    subsets        single experts first, then larger ones
    adds           expert -> what all experts gain over all but this one
    self_ensemble  expert -> what the mean over eight flips and turns gains over one pass; empty where not known
    oracles        the gain over the best expert of a choice that knows HR: an upper bound
    costs          of each expert, for an image of the mean size
    """

    experts: tuple[str, ...]
    images: int
    best: str
    correlation: dict[str, dict[str, float]]
    own_error: dict[str, float]
    subsets: tuple[Subset, ...]
    adds: dict[str, Gain]
    self_ensemble: dict[str, Gain]
    oracles: dict[str, Gain]
    costs: dict[str, ExpertCost]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What to do, in plain words."""
        if len(self.experts) == 1:
            return f"{self.best} is the only expert: there is nothing to combine it with, and no correlation."
        name = min(self.adds, key=lambda expert: self.adds[expert].mean)
        gain, others = self.adds[name], [other for other in self.experts if other != name]
        brings = f"brings {gain.mean:.3f} dB ({gain.low:.3f} .. {gain.high:.3f}){self._at_the_price_of(name)}"
        if self.images == 1:
            return f"Adding {name}, which adds least, {brings} on one image, which is too few to decide."
        to = others[0] if len(others) == 1 else f"the other {_in_words(len(others))}"
        if gain.mean < WORTH_DB or gain.low <= 0:
            return f"Adding {name} to {to} {brings}; leave it out."
        if len(others) == 1:
            return f"Adding {name} to {to} {brings}; keep both."
        return f"Adding {name}, which adds least, to {to} {brings}; keep all {_in_words(len(self.experts))}."

    def _at_the_price_of(self, name: str) -> str:
        for what, unit in (("seconds", "time"), ("parameters", "parameters")):
            values = {expert: getattr(cost, what) for expert, cost in self.costs.items()}
            if len(values) == len(self.experts) and all(values.values()):
                share = values[name] / sum(value for expert, value in values.items() if expert != name)
                return f" for {100 * share:.0f} % more {unit}"
        return ""

    def to_plain(self) -> dict[str, Any]:
        """Everything as mappings, lists and scalars; a gain is [mean, low, high]."""
        return {
            "sentence": self.sentence,
            "correlation": self.correlation,
            "own_error": self.own_error,
            "subsets": [
                {
                    "experts": list(subset.experts),
                    "weights": subset.weights,
                    "psnr_y": subset.psnr_y,
                    "gain": subset.gain.interval,
                }
                for subset in self.subsets
            ],
            "adds": {name: gain.interval for name, gain in self.adds.items()},
            "self_ensemble": {name: gain.interval for name, gain in self.self_ensemble.items()},
            "oracles": {name: gain.interval for name, gain in self.oracles.items()},
            "costs": {name: vars(cost) for name, cost in self.costs.items()},
            "best_expert": self.best,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Evidence:
    """The data gathered in one pass over the images.

    products  (n, E, E): of each scored image, as of `products_of`
    fitted    (m, E, E): of images that are not scored, to which weights are fitted; None: to the other scored ones
    x8        expert -> (n,): its squared luma error as the mean over eight flips and turns, where it is known
    oracles   name -> PSNR-Y of each image
    """

    products: np.ndarray
    fitted: np.ndarray | None = None
    x8: Mapping[str, np.ndarray] = field(default_factory=dict)
    oracles: Mapping[str, np.ndarray] = field(default_factory=dict)


def complementarity(
    experts: Sequence[str],
    evidence: Evidence,
    *,
    costs: Mapping[str, ExpertCost] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Complementarity:
    """What the experts are worth together.

    resamples  of the images, behind each interval
    """
    scored = _Scored(tuple(experts), evidence, Resampling(len(evidence.products), resamples, seed))
    everyone = tuple(range(len(experts)))
    names = dict(enumerate(experts))
    pooled = evidence.products.mean(axis=0)
    several = len(experts) > 1
    return Complementarity(
        experts=tuple(experts),
        images=len(evidence.products),
        best=names[scored.best],
        correlation=_correlation(experts, pooled) if several else {},
        own_error={names[i]: own_share(pooled, i) for i in everyone},
        subsets=tuple(map(scored.subset, scored.chosen())),
        adds={names[i]: scored.added(i, everyone) for i in everyone} if several else {},
        self_ensemble={name: scored.over_one_pass(name, squared) for name, squared in evidence.x8.items()},
        oracles={name: scored.over_best(values) for name, values in evidence.oracles.items()},
        costs=dict(costs or {}),
        notes=tuple(_notes(experts, evidence, pooled)),
    )


class _Scored:
    """Subsets of the experts, scored on each image by weights that were fitted to others."""

    def __init__(self, experts: tuple[str, ...], evidence: Evidence, resampling: Resampling) -> None:
        self.experts, self.evidence, self.resampling = experts, evidence, resampling
        self._psnr: dict[tuple[int, ...], np.ndarray] = {}
        self.best = max(range(len(experts)), key=lambda i: self.psnr((i,)).mean())

    def psnr(self, subset: tuple[int, ...]) -> np.ndarray:
        """(n,): PSNR-Y of each image."""
        if subset not in self._psnr:
            products = _of(self.evidence.products, subset)
            self._psnr[subset] = psnr_of(squared_error(self.weights(subset), products))
        return self._psnr[subset]

    def weights(self, subset: tuple[int, ...]) -> np.ndarray:
        """(n, k): of each image, fitted to images that are not scored, or else to all others."""
        products, count = _of(self.evidence.products, subset), len(self.evidence.products)
        if self.evidence.fitted is not None:
            return np.tile(fit_weights(_of(self.evidence.fitted, subset).mean(axis=0)), (count, 1))
        if count == 1:
            return np.full((1, len(subset)), 1 / len(subset))
        return fit_weights((products.sum(axis=0) - products) / (count - 1))

    def stated(self, subset: tuple[int, ...]) -> np.ndarray:
        """(k,): the weights to report: if they were fitted to the other images of each, those fitted to all images."""
        if self.evidence.fitted is None and len(self.evidence.products) > 1:
            return fit_weights(_of(self.evidence.products, subset).mean(axis=0))
        return self.weights(subset)[0]

    def over_best(self, psnr: np.ndarray) -> Gain:
        return self.resampling.gain(difference(psnr, self.psnr((self.best,))))

    def over_one_pass(self, expert: str, squared: np.ndarray) -> Gain:
        """The gain of an expert's self-ensemble over its single pass, from their squared errors."""
        return self.resampling.gain(difference(psnr_of(squared), self.psnr((self.experts.index(expert),))))

    def subset(self, subset: tuple[int, ...]) -> Subset:
        names = tuple(self.experts[i] for i in subset)
        psnr = self.psnr(subset)
        weights = dict(zip(names, self.stated(subset).tolist(), strict=True))
        return Subset(names, weights, float(psnr.mean()), self.over_best(psnr))

    def added(self, expert: int, everyone: tuple[int, ...]) -> Gain:
        others = tuple(i for i in everyone if i != expert)
        return self.resampling.gain(difference(self.psnr(everyone), self.psnr(others)))

    def chosen(self) -> Iterator[tuple[int, ...]]:
        """Every subset; of many experts, each alone, then the best expert with one more added at a time."""
        everyone = range(len(self.experts))
        if len(everyone) <= ALL_SUBSETS:
            for size in everyone:
                yield from combinations(everyone, size + 1)
            return
        yield from ((i,) for i in everyone)
        chosen: tuple[int, ...] = (self.best,)
        while len(chosen) < len(everyone):
            larger = [tuple(sorted((*chosen, i))) for i in everyone if i not in chosen]
            chosen = max(larger, key=lambda subset: self.psnr(subset).mean())
            yield chosen


def _of(products: np.ndarray, subset: tuple[int, ...]) -> np.ndarray:
    index = np.array(subset)
    return products[:, index[:, None], index]


def _correlation(experts: Sequence[str], products: np.ndarray) -> dict[str, dict[str, float]]:
    sizes = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.nan_to_num(products / np.outer(sizes, sizes))  # an expert without error shares none with others
    return {a: dict(zip(experts, row.tolist(), strict=True)) for a, row in zip(experts, values, strict=True)}


def own_share(products: np.ndarray, expert: int) -> float:
    """The share of an expert's squared error that no combination of the others' errors explains, 0..1.

    products  (E, E), as of `products_of`
    """
    own = products[expert, expert]
    others = [i for i in range(len(products)) if i != expert]
    if own == 0 or not others:
        return float(own > 0)
    between, toward = products[np.ix_(others, others)], products[others, expert]
    explained = toward @ np.linalg.lstsq(between, toward, rcond=1e-12)[0]
    return float(np.clip(1 - explained / own, 0, 1))


def _notes(experts: Sequence[str], evidence: Evidence, pooled: np.ndarray) -> Iterator[str]:
    count = len(evidence.products if evidence.fitted is None else evidence.fitted)
    if len(experts) == 1:
        return
    if evidence.fitted is not None:
        yield f"weights fitted to {count} image{'s' * (count != 1)} that are not scored"
    elif count == 1:
        yield "one image and no other to fit weights to: the experts are combined by equal weights"
    else:
        yield "cross-validated: each image is combined by weights that were fitted to the others"
    if 1 < count < len(experts):
        yield f"{count} images are few for {len(experts)} weights: take figures and intervals as a rough guide"
    for a, b in equal_experts(pooled):
        yield f"{experts[a]} and {experts[b]} have equal images"


def _in_words(number: int) -> str:
    return NUMBERS[number] if number < len(NUMBERS) else str(number)
