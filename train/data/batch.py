"""Turns the raw windows of a step into its batch on the device, where codecs are decoded and windows turned."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from championship_sr.store.codecs import Codec, get_codec
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.train.data.slots import Field, Raw
from championship_sr.train.data.uploads import Constants, constants_on
from championship_sr.train.data.variants import transformed

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # codecs whose numbers a GPU computes with directly
SR = "sr"  # an expert's image; its other arrays are features


@dataclass(frozen=True)
class Batch:
    """One step's input on the device: float32, images in 0..1, in channels_last order of memory.

    On a GPU, features stay in the half precision in which they are stored: the network takes either.

    lr        (B, 3, h, w)
    hr        (B, 3, H, W); the teacher's image in a store without HR images
    images    (B, E, 3, H, W), the experts in their order
    features  expert -> (B, C, h, w); several arrays of an expert are joined along the channels
    places    (image id, y, x, variant) of each sample, in LR pixels of the upright image
    teacher   (B, 3, H, W), if the run has a teacher
    check     raises NonFiniteError if live experts gave NaN or Inf, once the device has computed that
    """

    lr: Tensor
    hr: Tensor
    images: Tensor
    features: dict[str, Tensor]
    places: list[tuple[str, int, int, str]]
    teacher: Tensor | None = None
    check: Callable[[], None] | None = None


def decoded_window(array: StoredArray, device: torch.device | str, *window: int) -> Tensor:
    """The window (y, x, rows, cols) of an array, or all of it, as (1, C, rows, cols), decoded on the device."""
    device = torch.device(device)
    params = {name: constants_on(device)(value) for name, value in array.params.items()}
    return array.codec.decode(_raw_window(array, device, *window), params).permute(2, 0, 1)[None]


def _raw_window(
    array: StoredArray, device: torch.device, y: int = 0, x: int = 0, rows: int | None = None, cols: int | None = None
) -> Tensor:
    height, width, channels = array.entry.raw_shape
    shape = (height - y if rows is None else rows, width - x if cols is None else cols, channels)
    pinned = device.type == "cuda"  # then the host does not wait for the copy
    memory = torch.empty(shape, dtype=getattr(torch, array.raw_dtype.name), pin_memory=pinned)
    array.read_into(memory.numpy(), y, x)
    return memory.to(device, non_blocking=pinned)


def fields_of(store: Store, experts: Iterable[str], features: bool = True) -> tuple[Field, ...]:
    """LR, HR if there is any, then the experts' outputs."""
    pairs = tuple(Field(PAIRS, spec.name, spec.resolution) for spec in store.manifest.specs(PAIRS))
    made = (Field(name, spec.name, spec.resolution) for name in experts for spec in store.experts[name].arrays)
    return pairs + tuple(field for field in made if features or field.name == SR)


def decoded(
    raw: Raw, ids: Sequence[str], turned: frozenset[Field], constants: Constants, teacher: str | None = None
) -> Batch:
    """The batch of a step, which shares no memory with its raw windows.

    ids      of each sample's image
    turned   the fields that were read in their sample's variant; the others are turned here
    teacher  the source of the teacher's image
    """
    windows, params = raw.cut()
    values = {
        field: _values(raw, field, windows[field], params[field], field in turned, constants) for field in windows
    }
    pair = {field.name: values.pop(field) for field in list(windows) if field.source == PAIRS}
    taught = next((values.pop(field) for field in list(values) if field.source == teacher), None)
    images = [values.pop(field) for field in list(values) if field.name == SR]
    hr = pair.get("hr", taught)
    assert hr is not None, "a store without HR has a teacher's images"
    by_expert: dict[str, list[Tensor]] = {}
    for field, value in values.items():
        by_expert.setdefault(field.source, []).append(value)
    return Batch(
        lr=pair["lr"].permute(0, 3, 1, 2),
        hr=hr.permute(0, 3, 1, 2),
        images=(torch.stack(images, 1) if images else hr[:, None][:, :0]).permute(0, 1, 4, 2, 3),
        features={name: _joined(parts).permute(0, 3, 1, 2) for name, parts in by_expert.items()},
        places=[(name, *place[1:]) for name, place in zip(ids, raw.places, strict=True)],
        teacher=None if taught is None else taught.permute(0, 3, 1, 2),
    )


def _values(
    raw: Raw, field: Field, windows: Tensor, own: dict[str, Tensor], turned: bool, constants: Constants
) -> Tensor:
    first = raw.arrays[field][0]
    # a batch of pairs may hold 8 bits as 16: its own type says how it is to be read
    codec = get_codec(str(windows.dtype).removeprefix("torch.")) if field.source == PAIRS else first.codec
    shared = {name: constants(value) for name, value in first.params.items() if name not in own}
    if not turned:
        windows = transformed(windows, [place.variant for place in raw.places])
    stays_half = field.source != PAIRS and field.name != SR and windows.device.type != "cpu"
    if stays_half and (half := half_of(codec)):
        return windows.view(half).clone()
    values = codec.decode(windows, {**shared, **{name: value[:, None, None] for name, value in own.items()}})
    shares = values.untyped_storage().data_ptr() == raw.memory.untyped_storage().data_ptr()
    return values.clone() if shares else values


def half_of(codec: Codec) -> torch.dtype | None:
    """The half precision in which the codec's raw numbers can be read as they lie, however they are compressed."""
    return HALF.get(codec.name.partition("+")[0])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=-1)
