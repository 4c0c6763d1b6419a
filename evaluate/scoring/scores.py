"""The values of every image and method, and what follows from them: tables, CSV, JSON."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from championship_sr.evaluate.methods import BUNDLED, EXPERT, FITTED, FUSION, ROWS, SINGLE, row
from championship_sr.evaluate.metrics import METRICS, PERCEPTUAL_PARTS, ntire_perceptual
from championship_sr.evaluate.scoring.complementarity import Complementarity
from championship_sr.train.gains import Gain, Resampling, difference

TOO_SMALL = "every image is too small for its window"
SEEN = "*"  # marks figures of images that the run saw
OWN = ("fusion", "ablation")  # the rows that are the run's
KINDS = ("floor", "expert", "baseline", "fusion", "single", "upper bound", "ablation")


@dataclass(frozen=True)
class Scores:
    """One value per metric, method and image; every score counts in the mean, even inf.

    An image too small for a metric has nan there, for every method.
    """

    protocol: str
    images: tuple[str, ...]
    values: dict[str, dict[str, tuple[float, ...]]]  # metric -> method -> one value an image
    seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)  # part -> one value an image
    peak_mib: tuple[float, ...] = ()
    weights: dict[str, float] | None = None  # of the row of fitted weights
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # images that could not be read
    complementarity: Complementarity | None = None  # of the experts
    used: tuple[str | None, ...] | None = None  # "training", "validation" or None of each image; None: not known
    bootstrap: int = 10_000
    seed: int = 0
    _gained: dict[tuple[str, str, str], Gain] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order of the table: by kind, otherwise as they were scored."""
        scored = next(iter(self.values.values()))
        order = list(ROWS)

        def place(method: str) -> tuple[int, int]:
            return KINDS.index(row(method).kind), order.index(method) if method in order else 0

        return tuple(sorted(scored, key=place))

    def mean(self, metric: str, method: str) -> float:
        """The mean over images."""
        return mean_of(self.values[metric][method])

    def differences(self, metric: str, method: str, against: str) -> np.ndarray:
        """How much better `method` is on each image; 0 where both are infinitely good, nan without a score."""
        ours, theirs = (np.asarray(self.values[metric][name]) for name in (method, against))
        more = difference(ours, theirs)
        return more if METRICS[metric].higher_is_better else -more

    def gain(self, metric: str, method: str, against: str) -> Gain:
        """The mean difference with its percentile bootstrap interval over images, which is computed once."""
        key = (metric, method, against)
        if key not in self._gained:
            self._gained[key] = self._bootstrapped(*key)
        return self._gained[key]

    def _bootstrapped(self, metric: str, method: str, against: str) -> Gain:
        differences = self.differences(metric, method, against)
        differences = differences[~np.isnan(differences)]
        if not differences.size:
            return Gain(math.nan, math.nan, math.nan, 0, 0, 0)
        return Resampling(len(differences), self.bootstrap, self.seed).gain(differences)

    @property
    def together(self) -> Complementarity:
        """What the experts are worth together, which every scoring of images measures."""
        assert self.complementarity is not None
        return self.complementarity

    @property
    def best_expert(self) -> str | None:
        """The expert (as a method) of the best mean by the first metric, on the scored images themselves."""
        metric = self.metrics[0]
        sign = 1 if METRICS[metric].higher_is_better else -1
        experts = [method for method in self.methods if method.startswith(EXPERT)]
        return max(experts, key=lambda method: sign * self.mean(metric, method), default=None)

    def over_best(self, method: str = FUSION) -> Gain | None:
        """The method's gain over the best expert, by the first metric; None without experts."""
        return self._over(self.best_expert, method)

    def over_fitted(self, method: str = FUSION) -> Gain | None:
        """The method's gain over fitted weights, by the first metric; None if no weights were fitted."""
        return self._over(FITTED, method)

    def _over(self, other: str | None, method: str) -> Gain | None:
        return self.gain(self.metrics[0], method, other) if other in self.methods else None

    def headline_gains(self, method: str = FUSION) -> dict[str, list[float] | None]:
        """{over_best, over_fitted}, each [mean, low, high] of its interval, for JSON; empty without the method."""
        if method not in self.methods:
            return {}
        gains = {"over_best": self.over_best(method), "over_fitted": self.over_fitted(method)}
        return finite({name: gain and gain.interval for name, gain in gains.items()})

    def headline(self) -> list[str]:
        """What each fusion gains over fitted weights, its honest rival, and over the best expert; a line each."""
        best = f"{labelled(self.best_expert)}, the best expert" if self.best_expert else ""
        lines = [self.seen] if self.seen and FUSION in self.methods else []
        for method in filter(self.methods.__contains__, (FUSION, BUNDLED)):
            gains = {"fitted weights": self.over_fitted(method), best: self.over_best(method)}
            over = f"{labelled(method)} over"
            lines += [f"{over} {name}: {self._in_words(gain)}" for name, gain in gains.items() if gain]
        return lines + self._between_singles()

    @property
    def seen(self) -> str:
        """How many of the images the run saw, and what that means; empty if it saw none or that is unknown."""
        training, validation = ((self.used or ()).count(use) for use in ("training", "validation"))
        if not training + validation:
            return ""
        trained = f"{training} of the {len(self.images)} scored images were trained on" if training else ""
        chosen = f"{validation} of the {len(self.images)} chose the checkpoint" if validation else ""
        return f"{SEEN} {', '.join(filter(None, [trained, chosen]))}: no measure of other images"

    def named(self, method: str) -> str:
        """The method's label, marked if its figures include images that the run saw."""
        return f"{labelled(method)} {SEEN}" if self.seen and _of_the_run(method) else labelled(method)

    def _between_singles(self) -> list[str]:
        """What the first network that is scored beside the fusion gains over each of the others, its twins."""
        first, *others = [method for method in self.methods if method.startswith(SINGLE)] or [""]
        gains = {other: self.gain(self.metrics[0], first, other) for other in others}
        return [f"{labelled(first)} over {labelled(other)}: {self._in_words(g)}" for other, g in gains.items()]

    def _in_words(self, gain: Gain) -> str:
        metric = METRICS[self.metrics[0]]
        if math.isnan(gain.mean):
            return f"no {metric.title}, {TOO_SMALL}"
        mean, low, high = (f"{value:+.{metric.digits}f}" for value in (gain.mean, gain.low, gain.high))
        unit = " dB" if metric.title.startswith("PSNR") else ""
        return f"{mean}{unit} {metric.title} (95 % interval {low} .. {high}), {gain.wins} won, {gain.losses} lost"

    def perceptual_score(self, method: str) -> float | None:
        """The NTIRE perceptual score, if all its parts were computed."""
        if not set(PERCEPTUAL_PARTS) <= set(self.metrics):
            return None
        return ntire_perceptual({part: self.mean(part, method) for part in PERCEPTUAL_PARTS})

    def table(self) -> str:
        """The table for a terminal, with the fusion's gains above it, and the protocol and notes below."""
        lines = aligned([self.header(), *self.rows()])
        return "\n".join([*_apart(self.headline()), *lines, *self._footer()])

    def markdown(self) -> str:
        """The table in Markdown, to be pasted into a paper or a README."""
        return "\n".join([*markdown_rows([self.header(), *self.rows()]), "", *self.headline(), *self._footer()])

    def header(self) -> list[str]:
        """The titles of the columns."""
        first = METRICS[self.metrics[0]].title
        score = ["NTIRE score"] if self.perceptual_score(self.methods[0]) is not None else []
        gains = [f"fusion's gain, {first}", "95 % interval", "won-lost"] if FUSION in self.methods else []
        return ["method", *(METRICS[name].title for name in self.metrics), *score, *gains]

    def rows(self) -> list[list[str]]:
        """One row a method, as text."""
        return [self._row(method) for method in self.methods]

    def _row(self, method: str) -> list[str]:
        cells = [self.named(method), *(f"{self.mean(name, method):.{METRICS[name].digits}f}" for name in self.metrics)]
        score = self.perceptual_score(method)
        if score is not None:
            cells.append(f"{score:.4f}")
        if FUSION in self.methods:
            cells += [""] * 3 if method == FUSION else self._gain_cells(method)
        return cells

    def _gain_cells(self, method: str) -> list[str]:
        metric = self.metrics[0]
        gain, digits = self.gain(metric, FUSION, method), METRICS[metric].digits
        ties = f" ({gain.ties} equal)" if gain.ties else ""
        interval = f"{gain.low:+.{digits}f} .. {gain.high:+.{digits}f}"
        return [f"{gain.mean:+.{digits}f}", interval, f"{gain.wins}-{gain.losses}{ties}"]

    def _footer(self) -> list[str]:
        number = f"{len(self.images)} image{'s' if len(self.images) != 1 else ''}"
        return [f"{number}; {self.protocol}", *self.costs(), *self.notes]

    def costs(self) -> list[str]:
        """Time and memory per image, in words; empty if they were not measured."""
        if not self.seconds:
            return []
        reading = f"{np.mean(self.seconds['inputs']):.2f} s an image to read the store or run the experts"
        fusing = f", {np.mean(self.seconds[FUSION]):.2f} s to fuse" if FUSION in self.seconds else ""
        singles = [method for method in self.seconds if method.startswith(SINGLE)]
        fusing += "".join(f", {np.mean(self.seconds[method]):.2f} s by {labelled(method)}" for method in singles)
        return [f"{reading}{fusing}; at most {max(self.peak_mib):.0f} MiB"]

    def csv(self) -> str:
        """One line an image and method; `used_for` says of a run what it did with the image, where that is known."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "method", *self.metrics, *(["used_for"] if self.used else [])])
        for index, image in enumerate(self.images):
            for method in self.methods:
                used = [self.used[index] or ""] if self.used else []
                writer.writerow([image, method, *(self.values[name][method][index] for name in self.metrics), *used])
        return text.getvalue()

    def to_plain(self) -> dict[str, Any]:
        """Everything as mappings, lists and scalars for JSON, in which infinity is the string "inf"."""
        plain: dict[str, Any] = {
            "protocol": self.protocol,
            "images": list(self.images),
            "means": {m: {k: self.mean(m, k) for k in self.methods} for m in self.metrics},
            "values": {m: {k: list(v) for k, v in methods.items()} for m, methods in self.values.items()},
            "gains": self._gains(),
            "seconds": {name: list(values) for name, values in self.seconds.items()},
            "peak_mib": list(self.peak_mib),
            "fitted_weights": self.weights,
            "notes": list(self.notes),
            "left_out": list(self.left_out),
            "used_for": self.used and dict(zip(self.images, self.used, strict=True)),
        }
        if self.complementarity:
            plain["complementarity"] = self.complementarity.to_plain()
        if self.perceptual_score(self.methods[0]) is not None:
            plain["ntire_score"] = {method: self.perceptual_score(method) for method in self.methods}
        return finite(plain)

    def _gains(self) -> dict[str, dict[str, Any]]:
        if FUSION not in self.methods:
            return {}
        others = [method for method in self.methods if method != FUSION]
        return {m: {k: vars(self.gain(m, FUSION, k)) for k in others} for m in self.metrics}

    def summary(self) -> dict[str, dict[str, Any]]:
        """The means in short: metric -> {bicubic, experts: {name: mean}, mean, best_expert_per_image, fusion}."""
        result: dict[str, dict[str, Any]] = {}
        for metric in self.metrics:
            means = {method: self.mean(metric, method) for method in self.methods}
            experts = {row(k).title: v for k, v in means.items() if row(k).kind == "expert"}
            result[metric] = {k: v for k, v in means.items() if row(k).kind != "expert"} | {"experts": experts}
        return finite(result)

    def described(self) -> dict[str, Any]:
        """The summary, what the fusion gains, what the experts are worth together, and every value under `scores`."""
        every = self.to_plain()
        together = {"complementarity": every.pop("complementarity")} if self.complementarity else {}
        return {**self.summary(), "gain": {FUSION: self.headline_gains()}, **together, "scores": every}


def _of_the_run(method: str) -> bool:
    """Whether the run that was scored made the method's images; the bundled fusion is another one."""
    return row(method).kind in OWN and method != BUNDLED


def mean_of(values: Sequence[float]) -> float:
    """The mean of the existing values; nan if there are none."""
    scored = [value for value in values if not math.isnan(value)]
    return float(np.mean(scored)) if scored else math.nan


def labelled(method: str) -> str:
    """The method's title, with what must be known about it."""
    known = row(method)
    if known.kind == "upper bound":
        return f"{known.title} (upper bound)"
    return f"{known.title} (switched off, not retrained)" if known.kind == "ablation" else known.title


def best_per_image(values: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> dict[str, float]:
    """The scores of the expert that is best on this image by the first metric.

    values  expert -> metric -> value
    """
    sign = 1 if METRICS[metrics[0]].higher_is_better else -1
    return dict(max(values.values(), key=lambda scores: sign * scores[metrics[0]]))


def benchmarks_table(sets: Mapping[str, Scores], style: str = "plain") -> str:
    """One table over several benchmarks: a column per set and metric, under what the fusion gains on each."""
    first = next(iter(sets.values()))
    methods = [m for m in first.methods if all(m in scores.methods for scores in sets.values())]
    marks = {name: SEEN * bool(scores.seen) for name, scores in sets.items()}
    header = [
        "method",
        *(f"{name}{marks[name]} {METRICS[m].title}" for name, scores in sets.items() for m in scores.metrics),
    ]
    rows = [
        [labelled(k), *(f"{s.mean(m, k):.{METRICS[m].digits}f}" for s in sets.values() for m in s.metrics)]
        for k in methods
    ]
    gains = [f"{name}: {line}" for name, scores in sets.items() for line in scores.headline()]
    footer = [f"{name}: {len(scores.images)} images; {scores.protocol}" for name, scores in sets.items()]
    if style == "plain":
        return "\n".join([*_apart(gains), *aligned([header, *rows]), *footer])
    return "\n".join([*markdown_rows([header, *rows]), "", *gains, *footer])


def _apart(lines: Sequence[str]) -> list[str]:
    return [*lines, ""] if lines else []


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows in aligned columns, with a rule under the first; text on the left, numbers on the right."""
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    sides = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    lines = ["  ".join(map(_padded, sides, cells, widths)) for cells in rows]
    return [line.rstrip() for line in [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]]


def _padded(side: Callable[[str, int], str], cell: str, width: int) -> str:
    return side(cell, width)


def markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as a Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]


def finite(value: Any) -> Any:
    """The value with infinities as strings: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
