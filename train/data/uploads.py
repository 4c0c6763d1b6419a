"""Copies the raw bytes of a step to the device: one step ahead and during its work, where the device allows it.

Nothing here waits for the device. A CUDA device copies pinned memory by a stream of its own; an event says when the
copy is there, and the stream that computes waits for that event alone.
"""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Uploads(Protocol):
    """Copies to a device: `send` begins a copy, `receive` passes it to the computing stream.

    ahead  whether the next batch is sent before one is received
    """

    ahead: bool

    def send(self, memory: Tensor) -> "Sent": ...

    def receive(self, sent: "Sent") -> Tensor: ...


@dataclass(frozen=True)
class Sent:
    """A copy that has begun; `arrived` is an event, or None where the copy was made at once."""

    memory: Tensor
    arrived: Any = None


class Direct:
    """For devices without a stream for copies; the CPU's copy is the memory itself."""

    ahead = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, memory: Tensor) -> Sent:
        return Sent(memory.to(self.device))

    def receive(self, sent: Sent) -> Tensor:
        return sent.memory


class SideStream:
    """For CUDA: copies from pinned memory overlap the computation."""

    ahead = True

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, memory: Tensor) -> Sent:
        with torch.cuda.stream(self.stream):
            copied = memory.to(self.device, non_blocking=True)
            return Sent(copied, self.stream.record_event())

    def receive(self, sent: Sent) -> Tensor:
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(sent.arrived)
        sent.memory.record_stream(computing)  # must not be reused before this stream has read it
        return sent.memory


def uploads(device: torch.device) -> Uploads:
    """The uploads for this device."""
    return SideStream(device) if device.type == "cuda" else Direct(device)


def one_ahead(sent: Iterable[T], ahead: bool) -> Iterator[T]:
    """The same in the same order; with `ahead`, each is yielded once the next one has been sent."""
    waiting: deque[T] = deque()
    for item in sent:
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on the device; the host does not wait for the copy."""
    numbers = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.contiguous().pin_memory().to(device, non_blocking=True)


class Constants:
    """Arrays that many windows share, such as a codec's basis: uploaded once, and on the device for as long as here."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[int, tuple[weakref.ref, Tensor]] = {}  # by the array's identity

    def __call__(self, value: np.ndarray) -> Tensor:
        if self.device.type == "cpu":  # the tensor is the array's own memory
            return to_device(value, self.device)
        key = id(value)
        if key not in self._known:
            # forgotten with the array, before another one can have its identity
            gone = weakref.ref(value, lambda _: self._known.pop(key, None))
            self._known[key] = gone, to_device(value, self.device)
        return self._known[key][1]


@cache
def constants_on(device: torch.device) -> Constants:
    """What all readers of stores share on this device."""
    return Constants(device)
