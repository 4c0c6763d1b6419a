"""Copies the raw bytes of a step to the device: one step ahead and during its work, where the device allows it.

Nothing here waits for the device. A CUDA device copies pinned memory by a stream of its own; an event says when the
copy is there, and the stream that computes waits for that event alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A few numbers of the host on the device; the host does not wait for the copy."""
    numbers = torch.from_numpy(np.ascontiguousarray(values))
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


class Constants:
    """Arrays that many batches share, such as a codec's basis; they stay on the device from the first batch on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # by identity; the array is kept too, so that its address is not reused
        self._known: dict[int, tuple[np.ndarray, Tensor]] = {}

    def __call__(self, value: np.ndarray) -> Tensor:
        if id(value) not in self._known:
            self._known[id(value)] = value, to_device(value, self.device)
        return self._known[id(value)][1]
