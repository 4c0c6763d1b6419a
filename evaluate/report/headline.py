"""The headline of a report: the fusion's gains over its two main baselines, in figures and in a sentence."""

from dataclasses import dataclass
from math import isnan

from championship_sr.evaluate.methods import BICUBIC, FITTED, FUSION, row
from championship_sr.evaluate.metrics import METRICS, Metric
from championship_sr.evaluate.scoring.scores import SEEN, TOO_SMALL, Scores
from championship_sr.train.gains import Gain

MINUS, NOTHING = "\u2212", "\u2013"


@dataclass(frozen=True)
class Fact:
    """One figure: the number, its unit, what it is, and what must be known about it."""

    figure: str
    unit: str
    title: str
    text: str = ""


@dataclass(frozen=True)
class Rival:
    """The baselines that the fusion is compared with."""

    method: str
    title: str


def rivals(scores: Scores) -> list[Rival]:
    """The best expert, and fitted weights if they were scored."""
    best = scores.best_expert
    result = [Rival(best, f"the best expert ({row(best).title})")] if best else []
    return result + ([Rival(FITTED, "fitted weights")] if FITTED in scores.methods else [])


def facts(scores: Scores) -> list[Fact]:
    """The fusion's score, and its gains with their intervals."""
    metric = METRICS[scores.metrics[0]]
    mean = scores.mean(scores.metrics[0], FUSION)
    score = NOTHING if isnan(mean) else f"{mean:.{metric.digits}f}"
    against = [*rivals(scores), Rival(BICUBIC, "bicubic")]
    return [Fact(score, unit_of(metric.title), f"{metric.title} of the fusion"), *(_fact(scores, x) for x in against)]


def _fact(scores: Scores, rival: Rival) -> Fact:
    metric, number = METRICS[scores.metrics[0]], len(scores.images)
    gain = scores.gain(scores.metrics[0], FUSION, rival.method)
    if isnan(gain.mean):
        return Fact(NOTHING, "", f"over {rival.title}", TOO_SMALL)
    limits = f"95\u00a0% interval {signed(gain.low, metric.digits)} to {signed(gain.high, metric.digits)}"
    better = f"better on {gain.wins} of {counted(number, 'image')}"
    text = f"{limits}; {better}" if number > 1 else "one image gives no interval"
    return Fact(signed(gain.mean, metric.digits), unit_of(metric.title), f"over {rival.title}", text)


def sentence(scores: Scores) -> str:
    """The facts in words."""
    metric = METRICS[scores.metrics[0]]
    if isnan(scores.mean(scores.metrics[0], FUSION)):
        return f"By {metric.title} nothing can be said: {TOO_SMALL}."
    seen = f" {scores.seen.removeprefix(SEEN).strip()}." if scores.seen else ""
    gains = {rival: scores.gain(scores.metrics[0], FUSION, rival.method) for rival in rivals(scores)}
    even = [rival.title for rival, gain in gains.items() if gain.low <= 0 <= gain.high]
    shown = [_said(gain, rival, metric) for rival, gain in gains.items() if rival.title not in even]
    parts = [f"is {' and '.join(shown)}"] if shown else []
    if even:
        reason = "both intervals contain" if len(even) > 1 else "the interval contains"
        parts.append(f"cannot be told apart from {' or from '.join(even)}: {reason} 0")
    return f"By {metric.title} on {counted(len(scores.images), 'image')}, the fusion {', but '.join(parts)}.{seen}"


def _said(gain: Gain, rival: Rival, metric: Metric) -> str:
    amount = f"{abs(gain.mean):.{metric.digits}f} {unit_of(metric.title)}".strip()
    return f"{amount} {'better' if gain.mean > 0 else 'worse'} than {rival.title}"


def signed(value: float, digits: int) -> str:
    """The number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def unit_of(title: str) -> str:
    """The unit of a metric, empty if it has none."""
    return "dB" if title.startswith("PSNR") else ""


def counted(number: int, noun: str) -> str:
    """The number with its noun."""
    return f"{number} {noun}{'s' if number != 1 else ''}"
