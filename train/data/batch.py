"""From the raw windows of a step to its batch on the device, where codecs are undone and windows turned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from championship_sr.store.codecs import get_codec
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.train.data.slots import Field, Slot
from championship_sr.train.data.variants import transformed

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
    raw = slot.cut(field, device)
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
