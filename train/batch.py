"""From the raw windows of a step to its batch on the device, where codecs are undone and windows turned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from store.codecs import get_codec
from store.layout import PAIRS
from store.reader import Store, StoredArray
from train.augment import transformed
from train.sampler import Place

SR = "sr"  # an expert's image; its other arrays are features


@dataclass(frozen=True)
class Batch:
    """One step's input on the device: float32, images in 0..1, in channels_last order of memory.

    lr        (B, 3, h, w)
    hr        (B, 3, H, W)
    images    (B, E, 3, H, W), the experts in their order
    features  expert -> (B, C, h, w); several arrays of an expert are joined along the channels
    places    (image id, y, x, variant) of each sample, in LR pixels of the upright image
    """

    lr: Tensor
    hr: Tensor
    images: Tensor
    features: dict[str, Tensor]
    places: list[tuple[str, int, int, str]]


class Field(NamedTuple):
    """An array that every image has."""

    source: str
    name: str
    resolution: int


@dataclass
class Strips:
    """Windows as the strips of whole columns that they lie in: (B, strips, rows, cols * raw channels).

    A window's rows follow each other in a strip, so that copying it takes half of the time; the device cuts it out.
    """

    cols: int  # of a strip
    side: int  # of a window
    left: list[int]  # the column where each sample's window begins

    def cut(self, raw: Tensor) -> Tensor:
        """The windows alone, (B, rows, cols, raw channels)."""
        integers = raw.view(torch.int16) if raw.dtype == torch.uint16 else raw  # torch moves few unsigned numbers
        rows = integers.unflatten(-1, (self.cols, -1)).transpose(1, 2).flatten(2, 3)
        return torch.stack([rows[i, :, x : x + self.side] for i, x in enumerate(self.left)]).view(raw.dtype)

    def put(self, window: np.ndarray, out: np.ndarray) -> None:
        """A sample's window (rows, cols, raw channels), as if it had begun with a strip."""
        for strip, first in enumerate(range(0, self.side, self.cols)):
            piece = window[:, first : first + self.cols].reshape(len(window), -1)
            out[strip, :, : piece.shape[1]] = piece


def n_strips(side: int, cols: int) -> int:
    """The most strips that a window of so many columns lies in."""
    return (side + cols - 2) // cols + 1


@dataclass
class Slot:
    """The raw windows of one step, overwritten by a later step once they are decoded."""

    raw: dict[Field, Tensor]  # (B, rows, cols, raw channels), or in strips; LR and HR come first
    strips: dict[Field, Strips]  # of the fields whose windows are copied in strips
    arrays: dict[Field, list[StoredArray]]  # where each sample's window comes from: its codec and parameters
    places: list[Place]
    left: "torch.cuda.Event | None" = None  # when the device has taken its copy

    def cut(self, field: Field, raw: Tensor) -> Tensor:
        """The field's windows, (B, rows, cols, raw channels), from `raw` or its copy on a device."""
        return self.strips[field].cut(raw) if field in self.strips else raw


def fields_of(store: Store, experts: Iterable[str], features: bool = True) -> tuple[Field, ...]:
    """LR, HR, and then what the experts made."""
    pairs = (Field(PAIRS, "lr", 1), Field(PAIRS, "hr", store.scale))
    made = (Field(name, spec.name, spec.resolution) for name in experts for spec in store.experts[name].arrays)
    return pairs + tuple(field for field in made if features or field.name == SR)


def decoded(slot: Slot, device: torch.device, ids: Sequence[str], turned: frozenset[Field]) -> Batch:
    """The slot's batch, which shares no memory with it.

    ids     of each sample's image
    turned  the fields that were read in their place's variant; the others are turned here
    """
    values = {field: _values(slot, field, device, field in turned) for field in slot.raw}
    if device.type == "cuda":
        slot.left = torch.cuda.current_stream(device).record_event()
    lr, hr, *images = (values.pop(field) for field in list(slot.raw) if field.source == PAIRS or field.name == SR)
    by_expert: dict[str, list[Tensor]] = {}
    for field, value in values.items():
        by_expert.setdefault(field.source, []).append(value)
    return Batch(
        lr=lr.permute(0, 3, 1, 2),
        hr=hr.permute(0, 3, 1, 2),
        images=(torch.stack(images, 1) if images else hr[:, None][:, :0]).permute(0, 1, 4, 2, 3),
        features={name: _joined(parts).permute(0, 3, 1, 2) for name, parts in by_expert.items()},
        places=[(name, *place[1:]) for name, place in zip(ids, slot.places, strict=True)],
    )


def _values(slot: Slot, field: Field, device: torch.device, turned: bool) -> Tensor:
    raw = slot.cut(field, slot.raw[field].to(device, non_blocking=device.type == "cuda"))
    if not turned:
        raw = transformed(raw, [place.variant for place in slot.places])
    # a batch of pairs may hold 8 bits as 16: its own type says how it is to be read
    codec = get_codec(str(raw.dtype).removeprefix("torch.")) if field.source == PAIRS else slot.arrays[field][0].codec
    values = codec.decode(raw, _params(slot.arrays[field]))
    return values.clone() if values.data_ptr() == slot.raw[field].data_ptr() else values


def _params(arrays: Sequence[StoredArray]) -> dict[str, np.ndarray]:
    """The codec's parameters for a batch: what the arrays share once, what differs stacked to (B, 1, 1, ...)."""
    result = {}
    for key, value in arrays[0].params.items():
        values = [array.params[key] for array in arrays]
        shared = all(each is value for each in values)
        result[key] = value if shared else np.stack([np.asarray(each) for each in values])[:, None, None]
    return result


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
