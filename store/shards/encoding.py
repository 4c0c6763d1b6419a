"""Prepares an array for a shard: measured, encoded and made channels-last, on the device its values are on."""

from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.codecs import Codec, Params
from championship_sr.store.containers.chunks import WIDE_CHANNELS
from championship_sr.store.errors import StoreError

BAND_VALUES = 2**19  # encoded at a time on a CPU, so that intermediate results stay in the cache


class Encoded(NamedTuple):
    """Raw numbers and what the record says of them, as arrays, or as tensors that a device may still be computing."""

    raw: Any  # (rows, cols, raw channels)
    params: Params  # particular to this array
    smallest: Any
    largest: Any


def encode(values: Any, codec: Codec, basis: Params) -> Encoded:
    """The encoded array, not checked; nothing here waits for a device.

    values  float32 (rows, cols, C), array or tensor; any order in memory
    """
    smallest, largest = extremes(values)
    if not isinstance(values, np.ndarray) and values.device.type == "cpu" and codec.components:
        values = values.contiguous().numpy()  # always with numpy: another library's products differ in their last bits
    params = codec.params(values, basis)
    own = {name: value for name, value in params.items() if name not in basis}
    raw = _in_bands(values, codec, params) if _by_pixel(values, codec) else channels_last(codec.encode(values, params))
    return Encoded(raw, own, smallest, largest)


def _by_pixel(values: Any, codec: Codec) -> bool:
    """Whether to encode in bands: not for matrix products, whose last bits would differ, nor on a GPU."""
    return not isinstance(values, np.ndarray) and values.device.type == "cpu" and not codec.components


def _in_bands(values: Any, codec: Codec, params: Params) -> Any:
    """The same numbers, encoded some rows at a time: new memory for whole arrays costs more than the work."""
    rows, cols, channels = values.shape
    step = max(1, BAND_VALUES // (cols * channels))
    first = channels_last(codec.encode(values[:step], params))
    raw = first.new_empty((rows, cols, channels))
    raw[:step] = first
    for top in range(step, rows, step):
        raw[top : top + step] = channels_last(codec.encode(values[top : top + step], params))
    return raw


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
