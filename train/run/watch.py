"""Watches a run: stop signals, non-finite losses, and means for the log."""

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from championship_sr.store.errors import WeightsError
from championship_sr.train.processes import World

SHOWN_PLACES = 8
LAG, LAG_ON_CPU = 3, 1  # steps; on the CPU a step is done when it returns, and a long step should stop soon


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


class Reading:
    """Numbers of the device on their way to the host, behind an event: waiting for them waits for nothing later."""

    def __init__(self, *values: Tensor) -> None:
        numbers = torch.stack([value.detach() for value in values])
        self._host, self._arrived = to_host(numbers)

    def read(self) -> list[float]:
        """The numbers, once they are there."""
        if self._arrived:
            self._arrived.synchronize()
        return self._host.tolist()


def to_host(numbers: Tensor) -> tuple[Tensor, Any]:
    """The numbers in memory that the device writes to by itself, and the event of its having done so, or None."""
    if numbers.device.type != "cuda":
        return numbers, None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    return host, torch.cuda.current_stream(numbers.device).record_event()


class _Step(NamedTuple):
    number: int
    places: Sequence[tuple]
    reading: Reading  # what must be finite, and the share of processes that were asked to stop
    check: Callable[[], None] | None  # of the step's input


class Watch:
    """Checks each step's numbers some steps later, when they have long arrived: the host runs ahead of the device.

    The lag is in steps, not seconds, so that all processes stop after the same one.
    """

    def __init__(self, world: World, last_good: str) -> None:
        self.world, self.last_good = world, last_good
        self.lag = LAG if world.device.type != "cpu" else LAG_ON_CPU
        self.stop_wanted = False  # by any process
        self._pending: deque[_Step] = deque()

    def __call__(
        self,
        number: int,
        places: Sequence[tuple],
        checked: Tensor,
        stop: Tensor,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Remembers a step, and checks the one that lies `lag` steps back.

        checked  what must be finite, the same in every process
        stop     above 0 if any process was asked to stop
        check    called before the numbers are looked at: it names what is wrong with the step's input
        raises   Diverged naming the step and the windows of the batch
        """
        self._pending.append(_Step(number, places, Reading(checked, stop), check))
        if len(self._pending) > self.lag:
            self._check(self._pending.popleft())

    def flush(self) -> None:
        """Checks all steps now, before their weights are kept."""
        while self._pending:
            self._check(self._pending.popleft())

    def _check(self, step: _Step) -> None:
        if step.check:
            step.check()
        checked, stop = step.reading.read()
        if not math.isfinite(checked):
            raise Diverged(self._message(step, checked))
        self.stop_wanted = self.stop_wanted or stop > 0

    def _message(self, step: _Step, checked: float) -> str:
        places = [place for part in self.world.gather(step.places) for place in part]
        shown = ", ".join(f"{image} at ({y}, {x}) {variant}" for image, y, x, variant in places[:SHOWN_PLACES])
        more = f" and {len(places) - SHOWN_PLACES} more" if len(places) > SHOWN_PLACES else ""
        return (
            f"step {step.number}: the loss or its gradient is {checked}; its windows: {shown}{more}. "
            f"{self.last_good}. Look at these images (store view), or lower train.optimiser.learning_rate"
        )


class Meter:
    """Means of the steps' numbers, added up on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = dict[str, int]()
        self._clear()

    def add(self, values: Mapping[str, Tensor], waited: float) -> None:
        """Adds one step; `waited` seconds were spent on its batch."""
        add(self._sums, values)
        for name in values:
            self._steps[name] = self._steps.get(name, 0) + 1
        self._n_steps += 1
        self._waited += waited

    def read(self) -> dict[str, Any]:
        """The means since the last call, and the speed; here the host waits for the device."""
        totals = torch._foreach_div(list(self._sums.values()), [float(self._steps[name]) for name in self._sums])
        means = dict(zip(self._sums, Reading(*totals).read(), strict=True))
        seconds = time.perf_counter() - self._began
        speed = {"steps_per_second": self._n_steps / seconds, "waiting": self._waited / seconds}
        self._clear()
        return {**means, **speed}

    def restart(self) -> None:
        """Restarts the timer after work that is not a step."""
        self._began, self._waited, self._n_steps = time.perf_counter(), 0.0, 0

    def _clear(self) -> None:
        self._sums.clear()
        self._steps.clear()
        self.restart()


def add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Adds each value to the sum of its name, all in one operation; a new name begins with its value."""
    known = [name for name in values if name in sums]
    if known:
        torch._foreach_add_([sums[name] for name in known], [values[name] for name in known])
    sums |= {name: value.clone() for name, value in values.items() if name not in sums}
