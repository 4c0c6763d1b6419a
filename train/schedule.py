"""Learning rate and loss stages, pure functions of the step, and the lengths that both are written in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from championship_sr.store.errors import ConfigError

END_TOLERANCE = 0.01  # share of the range of learning rates that rounding to whole steps may leave


@dataclass(frozen=True)
class RunLength:
    """The length of a run, from which lengths in epochs and per cent are computed."""

    steps: int
    steps_per_epoch: float

    def in_steps(self, length: int | str) -> int:
        """A length in whole steps, rounded: `500`, `"500 steps"`, `"20 epochs"` or `"40 %"` of the run."""
        return round(self.exact(length))

    def due(self, step: int, every: int | str) -> bool:
        """Whether a multiple of the length, rounded to whole steps, ends after `step` steps: `50 %` is due twice."""
        exact = max(1.0, self.exact(every))
        return round(round(step / exact) * exact) == step

    def exact(self, length: int | str) -> float:
        number, unit = parse_length(length)
        return number * {"steps": 1.0, "epochs": self.steps_per_epoch, "%": self.steps / 100}[unit]


def parse_length(length: int | str) -> tuple[float, str]:
    """The number and the unit, "steps", "epochs" or "%", of a length.

    raises  ValueError if it is not a length
    """
    number, unit = str(length).strip(), "steps"
    for word in ("steps", "epochs", "epoch", "step", "%"):
        if number.endswith(word):
            number, unit = number.removesuffix(word).strip(), word if word == "%" else word.rstrip("s") + "s"
            break
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"{length!r} is not a length: write 500, '500 steps', '20 epochs' or '40 %'") from None
    if not 0 <= value < math.inf:
        raise ValueError(f"{length!r} is not a length: it must not be negative")
    return value, unit


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, then one or more cosines from the peak to the lowest value, or the peak throughout.

    Each cosine begins at the peak and its last step is at the lowest value.
    source  Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts"
    """

    peak: float
    lowest: float
    warmup_from: float
    warmup_steps: int
    cycle_ends: tuple[int, ...]  # the step after each cosine's last; empty: no cosine

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_from + (self.peak - self.warmup_from) * step / self.warmup_steps
        begin = self.warmup_steps
        for end in self.cycle_ends:
            if step < end:
                return self._cosine((step - begin) / max(1, end - begin - 1))
            begin = end
        return self.lowest if self.cycle_ends else self.peak

    def _cosine(self, progress: float) -> float:
        return self.lowest + (self.peak - self.lowest) * (1 + math.cos(math.pi * progress)) / 2


def cosine(span: RunLength, *, warmup: int | str, **rates: float) -> LearningRate:
    """One cosine over the whole run."""
    return LearningRate(warmup_steps=_warmup_steps(span, warmup), cycle_ends=(span.steps,), **rates)


def constant(span: RunLength, *, warmup: int | str, **rates: float) -> LearningRate:
    """The peak after warm-up."""
    return LearningRate(warmup_steps=_warmup_steps(span, warmup), cycle_ends=(), **rates)


def restarts(
    span: RunLength, *, warmup: int | str, first_cycle: int | str, cycle_factor: float, **rates: float
) -> LearningRate:
    """Cosines after warm-up, each `cycle_factor` times as long as the one before.

    raises  ConfigError with the arithmetic if the run ends in the middle of a cosine
    """
    warmup_steps, length = _warmup_steps(span, warmup), span.exact(first_cycle)
    if length < 1:
        raise ConfigError(f"schedule.first_cycle={first_cycle}: must be at least one step")
    ends: list[float] = [warmup_steps + length]
    while span.steps - ends[-1] > END_TOLERANCE * length:
        length *= cycle_factor
        ends.append(ends[-1] + max(1, length))
    rate = LearningRate(warmup_steps=warmup_steps, cycle_ends=tuple(round(end) for end in ends), **rates)
    height = (rate(span.steps - 1) - rate.lowest) / (rate.peak - rate.lowest)
    if height > END_TOLERANCE:
        raise ConfigError(_unfinished(span, warmup_steps, ends, height, cycle_factor))
    return rate


def _unfinished(span: RunLength, warmup: int, ends: Sequence[float], height: float, factor: float) -> str:
    """What the cycles add up to, and the first cycle that would end with the run."""
    shapes = [factor**index for index in range(len(ends))]
    fitting = (span.steps - warmup) / sum(shapes)
    lengths = " + ".join(f"{b - a:g}" for a, b in zip([warmup, *ends], ends, strict=False))
    return (
        f"schedule: warm-up and cycles of {warmup} + {lengths} steps end at "
        f"{', '.join(f'{end:g}' for end in ends)}, not at {span.steps} where the run does: it would end at "
        f"{height:.0%} of the peak learning rate. With {len(ends)} cycles, first_cycle must be {_shown(span, fitting)}"
    )


def _shown(span: RunLength, steps: float) -> str:
    return f"{steps:.10g} steps ({steps / span.steps_per_epoch:.6g} epochs)"


def _warmup_steps(span: RunLength, warmup: int | str) -> int:
    steps = span.in_steps(warmup)
    if steps >= span.steps:
        raise ConfigError(
            f"schedule.warmup={warmup}: {steps} steps of warm-up leave none of the run's {span.steps} steps"
        )
    return steps


@dataclass(frozen=True)
class Curriculum:
    """Which stage of the curriculum a step belongs to."""

    ends: tuple[int, ...]

    def __call__(self, step: int) -> int:
        """The stage's index; steps after the end belong to the last."""
        return next((index for index, end in enumerate(self.ends) if step < end), len(self.ends) - 1)

    def done(self, step: int) -> float:
        """How far into its stage a step is: 0 at the stage's first step, 1 at its last."""
        stage = self(step)
        begin = self.ends[stage - 1] if stage else 0
        return (step - begin) / max(1, self.ends[stage] - begin - 1)


def stages(span: RunLength, lengths: Sequence[int | str]) -> Curriculum:
    """The stages of the given lengths, one after another.

    raises  ConfigError with the arithmetic if they do not fill the run
    """
    exact = [span.exact(length) for length in lengths]
    total = sum(exact)
    if abs(total - span.steps) >= 1:
        parts = " + ".join(f"{part:g}" for part in exact)
        raise ConfigError(
            f"losses.stages: {parts} = {total:g} steps, but the run has {span.steps} "
            f"({span.steps / span.steps_per_epoch:.6g} epochs): together, the stages must have the run's length"
        )
    ends = [round(sum(exact[: index + 1])) for index in range(len(exact))]
    return Curriculum((*ends[:-1], span.steps))
