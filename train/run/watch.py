"""What watches over a run: stop signals, losses that are no numbers, and means for the log."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from championship_sr.store.errors import WeightsError
from championship_sr.train.run.processes import World

SHOWN_PLACES = 8


class Diverged(WeightsError):
    """The loss or the gradient is no longer a finite number."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(number: int, _frame: object) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Step(NamedTuple):
    number: int
    places: Sequence[tuple]
    checked: Tensor
    stop: Tensor


class Watch:
    """Looks at each step's numbers one step later, so that no step waits for the device."""

    def __init__(self, world: World, last_good: str) -> None:
        self.world, self.last_good = world, last_good
        self.stop_wanted = False  # by any process
        self._pending: _Step | None = None

    def __call__(self, number: int, places: Sequence[tuple], checked: Tensor, stop: Tensor) -> None:
        """Remembers a step and checks the one before.

        checked  what must be finite, the same in every process
        stop     above 0 if any process was asked to stop
        raises   Diverged naming the step and the windows of the batch
        """
        self.flush()
        self._pending = _Step(number, places, checked, stop)

    def flush(self) -> None:
        """Checks the last step now, before its weights are kept."""
        step, self._pending = self._pending, None
        if step is None:
            return
        if not math.isfinite(step.checked.item()):
            raise Diverged(self._message(step))
        self.stop_wanted = self.stop_wanted or step.stop.item() > 0

    def _message(self, step: _Step) -> str:
        places = [place for part in self.world.gather(step.places) for place in part]
        shown = ", ".join(f"{image} at ({y}, {x}) {variant}" for image, y, x, variant in places[:SHOWN_PLACES])
        more = f" and {len(places) - SHOWN_PLACES} more" if len(places) > SHOWN_PLACES else ""
        return (
            f"step {step.number}: the loss or its gradient is {step.checked.item()}; its windows: {shown}{more}. "
            f"{self.last_good}. Look at these images (store view), or lower train.optimiser.learning_rate"
        )


class Meter:
    """Means of the steps' numbers, added up on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = dict[str, int]()
        self._clear()

    def add(self, values: Mapping[str, Tensor], waited: float) -> None:
        """Takes in one step; `waited` seconds went on its batch."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._steps[name] = self._steps.get(name, 0) + 1
        self._n_steps += 1
        self._waited += waited

    def read(self) -> dict[str, Any]:
        """The means since the last call, and the speed."""
        means = {name: (total / self._steps[name]).item() for name, total in self._sums.items()}
        seconds = time.perf_counter() - self._began
        speed = {"steps_per_second": self._n_steps / seconds, "waiting": self._waited / seconds}
        self._clear()
        return {**means, **speed}

    def restart(self) -> None:
        """Begins the time anew, after something that is no step."""
        self._began, self._waited, self._n_steps = time.perf_counter(), 0.0, 0

    def _clear(self) -> None:
        self._sums.clear()
        self._steps.clear()
        self.restart()
