"""Encodes the outputs of forwards on the GPU, and copies them back while the next forward runs.

Nothing here makes the calling thread wait for the device. On the CPU none of it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from championship_sr.extract.device import float32_products
from championship_sr.store.codecs import Params, get_codec
from championship_sr.store.format.entries import ArraySpec
from championship_sr.store.shards.encoding import Encoded, encode, extremes

Copied = tuple[list[Tensor], Callable[[], None]]  # on the host, and a function that waits for them


class PinnedCopies:
    """Copies from a CUDA device on a separate stream; torch keeps and reuses the pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def __call__(self, tensors: list[Tensor]) -> Copied:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        done = torch.cuda.Event(blocking=True)  # a waiting writer leaves its core to others
        with torch.cuda.stream(self._stream):
            there = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
            done.record(self._stream)
        for tensor in tensors:
            tensor.record_stream(self._stream)  # its memory is not reused until it is copied
        return there, done.synchronize


def plain_copies(tensors: list[Tensor]) -> Copied:
    """Copies that complete at once, for devices without such streams."""
    return [tensor.cpu() for tensor in tensors], lambda: None


@dataclass(frozen=True)
class Arriving:
    """One image's encoded arrays, in transit to the host."""

    arrays: Mapping[str, Encoded]
    checks: Mapping[str, Tensor]  # finite if all values are
    arrived: Callable[[], None]
    refuse: Callable[[str], None]  # raises the error for an array that is not finite

    def wait(self) -> Mapping[str, Encoded]:
        """The arrays, once they are there.

        raises  what `refuse` raises
        """
        self.arrived()
        for name, check in self.checks.items():
            if not torch.isfinite(check):
                self.refuse(name)
        return self.arrays


class DeviceEncoder:
    """The codecs of one expert's arrays, on its device."""

    def __init__(self, device: torch.device, specs: tuple[ArraySpec, ...], basis: Mapping[str, Params]) -> None:
        self._codecs = {spec.name: get_codec(spec.codec) for spec in specs}
        self._basis = {
            name: {key: torch.as_tensor(value, device=device) for key, value in params.items()}
            for name, params in basis.items()
        }
        self._copies = PinnedCopies(device) if device.type == "cuda" else plain_copies

    def __call__(self, outputs: Mapping[str, Tensor], refuse: Callable[[str], None]) -> Arriving:
        """The outputs of one image, (1, C, rows, cols) each, neither checked nor clipped."""
        checks, arrays = {}, {}
        for name, tensor in outputs.items():
            values = tensor[0].permute(1, 2, 0)
            smallest, largest = extremes(values)
            checks[name] = smallest + largest
            found = None if name == "sr" else (smallest, largest)
            with float32_products():
                values = values.clamp(0, 1) if name == "sr" else values
                arrays[name] = encode(values, self._codecs[name], self._basis.get(name, {}), found)
        return self._sent(arrays, checks, refuse)

    def _sent(self, arrays: dict[str, Encoded], checks: dict[str, Tensor], refuse: Callable[[str], None]) -> Arriving:
        tensors: list[Tensor] = [*checks.values()]
        for array in arrays.values():
            tensors += [array.raw, array.smallest, array.largest, *array.params.values()]
        copied, arrived = self._copies(tensors)
        there = iter(copied)
        on_host = {name: next(there) for name in checks}
        return Arriving(
            {name: Encoded(next(there), *_rest(array, there)) for name, array in arrays.items()},
            on_host,
            arrived,
            refuse,
        )


def _rest(array: Encoded, there: Any) -> tuple[Params, Tensor, Tensor]:
    smallest, largest = next(there), next(there)
    return {name: next(there) for name in array.params}, smallest, largest


def made_on(device: torch.device, batch_size: int, precision: str) -> dict[str, Any]:
    """What decides the last bits of a device's results, besides the expert's identity."""
    if device.type != "cuda":
        return {"device": device.type}
    return {
        "device": torch.cuda.get_device_name(device),
        "batch_size": batch_size,
        "tf32": precision == "tf32",
        "cudnn": torch.backends.cudnn.version(),
    }
