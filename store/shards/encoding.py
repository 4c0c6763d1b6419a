"""Prepares an array for a shard: measured, encoded and made channels-last, on the device its values are on."""

import threading
from math import prod
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.codecs import Codec, Params
from championship_sr.store.containers.chunks import WIDE_CHANNELS
from championship_sr.store.errors import StoreError

MOST_KEPT = 16  # pieces of memory
BAND_VALUES = 2**19  # encoded at a time on a CPU, so that intermediate results stay in the cache


class Encoded(NamedTuple):
    """Raw numbers and what the record says of them, as arrays, or as tensors that a device may still be computing."""

    raw: Any  # (rows, cols, raw channels)
    params: Params  # particular to this array
    smallest: Any
    largest: Any
    piece: np.ndarray | None = None  # of a `Memory`, to be given back once `raw` is written


class Memory:
    """Memory of arrays that were written, for later ones; used from several threads.

    The first touch of new memory costs as much as all of the encoding: large pieces go back to the system when they
    are freed, and come from it page by page.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> np.ndarray:
        """The smallest piece that is large enough and at most twice as large, or a new one."""
        with self._lock:
            fitting = [piece for piece in self._free if n_bytes <= len(piece) <= 2 * n_bytes]
            if not fitting:
                return np.empty(n_bytes, np.uint8)
            taken = min(fitting, key=len)
            self._free = [piece for piece in self._free if piece is not taken]
        return taken

    def give_back(self, piece: np.ndarray) -> None:
        """Lets others have a piece that nobody reads any more; of many, the oldest is freed."""
        with self._lock:
            self._free = [*self._free, piece][-MOST_KEPT:]


def encode(
    values: Any, codec: Codec, basis: Params, found: tuple[Any, Any] | None = None, memory: Memory | None = None
) -> Encoded:
    """The encoded array, not checked; nothing here waits for a device.

    values  float32 (rows, cols, C), array or tensor; any order in memory
    found   its `extremes`, if they are known
    memory  for the raw numbers of a CPU's tensor; None: new memory
    """
    smallest, largest = found or extremes(values)
    if not isinstance(values, np.ndarray) and values.device.type == "cpu" and codec.components:
        values = values.contiguous().numpy()  # always with numpy: another library's products differ in their last bits
    params = codec.params(values, basis)
    own = {name: value for name, value in params.items() if name not in basis}
    if not _by_pixel(values, codec):
        return Encoded(channels_last(codec.encode(values, params)), own, smallest, largest)
    n_bytes = prod(values.shape[:2]) * codec.pixel_bytes(values.shape[2])
    piece = (memory or Memory()).take(n_bytes)
    raw = piece[:n_bytes].view(codec.raw_dtype).reshape(values.shape)
    encoded = _encoded_in_bands(values, codec, params, raw)
    return Encoded(encoded, own, smallest, largest, piece if memory else None)


def _by_pixel(values: Any, codec: Codec) -> bool:
    """Whether to encode in bands: not for matrix products, whose last bits would differ, nor on a GPU."""
    return not isinstance(values, np.ndarray) and values.device.type == "cpu" and not codec.components


def _encoded_in_bands(values: Any, codec: Codec, params: Params, raw: np.ndarray) -> Any:
    """A tensor in `raw`, encoded some rows at a time, so that what lies between stays in the cache."""
    import torch  # imported here because the store's readers work without torch

    rows, cols, channels = values.shape
    step = max(1, BAND_VALUES // (cols * channels))
    for top in range(0, rows, step):
        raw[top : top + step] = channels_last(codec.encode(values[top : top + step], params)).numpy()
    return torch.from_numpy(raw)


def extremes(values: Any) -> tuple[Any, Any]:
    """The smallest and the largest value; both NaN if any value is."""
    if isinstance(values, np.ndarray):
        smallest, largest = values.min(), values.max()
    else:
        by_channel = values.permute(2, 0, 1) if values.ndim == 3 else values
        smallest, largest = (by_channel if by_channel.is_contiguous() else values).aminmax()  # else torch copies first
    return smallest + 0.0, largest + 0.0  # -0 becomes 0: which of the two is found depends on their order


def channels_last(raw: Any) -> Any:
    """The same numbers, contiguous; many channels by torch's transpose of two axes, which is slow for few."""
    if isinstance(raw, np.ndarray):
        return np.ascontiguousarray(raw)
    by_channel = raw.permute(2, 0, 1)
    if raw.shape[-1] < WIDE_CHANNELS or not by_channel.is_contiguous():
        return raw.contiguous()
    return by_channel.flatten(1).t().contiguous().view(raw.shape)


def check_range(smallest: float, largest: float, codec: Codec, what: str) -> None:
    """Refuse what the codec cannot hold.

    raises  StoreError naming `what`
    """
    magnitude = max(-smallest, largest)
    if not np.isfinite(smallest + largest):
        raise StoreError(f"{what}: holds non-finite values; run the expert in float32 or bfloat16")
    if magnitude > codec.limit:
        raise StoreError(
            f"{what}: a value of {magnitude:g} exceeds the limit of {codec.name} ({codec.limit:g}); "
            "choose bfloat16 or int8"
        )
