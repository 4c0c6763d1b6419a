"""Which of the demo's stages runs, and how long it and those after it take."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

# what each stage does, and its seconds on two quiet cores of an AMD EPYC
STAGES = {
    "photographs": ("writing the photographs", 2),
    "extract": ("running the experts over the photographs", 36),
    "train": ("training the fusion", 45),
    "evaluate": ("scoring the held-out photographs and writing the report", 7),
}
SHORTEST_S = 5  # a stage that typically takes less says nothing about the machine
REUSED = 0.3  # a stage that takes less than this share of its typical time had nothing to do


@dataclass
class DemoStages:
    """The demo's stages as they pass.

    training  share of the full number of training steps that are run
    """

    training: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Reports on standard error that the stage begins, and records how long it took."""
        number = list(STAGES).index(stage) + 1
        click.echo(f"{number} of {len(STAGES)}: {STAGES[stage][0]}; {spoken(self.left())} left", err=True)
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - began, 1)

    def left(self) -> float:
        """The seconds that the remaining stages take at the pace of the finished ones."""
        return self.pace() * sum(seconds for stage, seconds in self.typical().items() if stage not in self.seconds)

    def pace(self) -> float:
        """How much longer than typical the stages with work to do took; 1 before the first."""
        typical = {stage: seconds for stage, seconds in self.typical().items() if seconds >= SHORTEST_S}
        worked = [stage for stage in self.seconds if self.seconds[stage] > REUSED * typical.get(stage, float("inf"))]
        return sum(self.seconds[s] for s in worked) / sum(typical[s] for s in worked) if worked else 1.0

    def typical(self) -> Mapping[str, float]:
        """Stage -> seconds."""
        return {stage: s * (self.training if stage == "train" else 1) for stage, (_, s) in STAGES.items()}


def spoken(seconds: float) -> str:
    """The approximate duration, in words."""
    if seconds < 90:
        return f"about {max(1, round(seconds / 10)) * 10} s"
    return f"about {round(seconds / 60)} minutes"
