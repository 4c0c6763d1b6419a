"""Whole images of a store, and a network run on them at once or in tiles."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store
from championship_sr.train.data.batch import decoded_window

if TYPE_CHECKING:
    from championship_sr.extract.experts.tiling import TileSpan

HALO_PX = 16  # of tiles


class WholeImage(NamedTuple):
    """One image of a store, the network's input and target, with a batch axis of 1.

    hr  the teacher's image in a store without HR
    """

    lr: Tensor
    hr: Tensor
    images: Tensor
    features: dict[str, Tensor]
    teacher: Tensor | None = None


def in_tiles(network: Callable[..., Tensor], whole: WholeImage, scale: int, tile_px: int | None) -> Tensor:
    """The network's output for a whole image, in tiles of at most this side whose inner parts are put together."""
    height, width = whole.lr.shape[-2:]
    if tile_px is None or max(height, width) <= tile_px:
        return network(whole.lr, whole.images, whole.features)
    from championship_sr.extract.experts.tiling import spans  # imports every architecture, so only if memory is short

    image = whole.lr.new_empty(1, 3, height * scale, width * scale)
    for rows, cols in product(*(spans(length, tile_px, HALO_PX) for length in (height, width))):
        tile = network(*_window(whole, rows, cols, scale))
        image[..., *_kept(rows, cols, scale)] = tile[..., *_kept(rows, cols, scale, inside=True)]
    return image


def _window(
    whole: WholeImage, rows: "TileSpan", cols: "TileSpan", scale: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    lr = slice(rows.start, rows.start + rows.size), slice(cols.start, cols.start + cols.size)
    down, across = (slice(part.start * scale, part.stop * scale) for part in lr)
    features = {name: x[..., *lr] for name, x in whole.features.items()}
    return whole.lr[..., *lr], whole.images[..., down, across], features


def _kept(rows: "TileSpan", cols: "TileSpan", scale: int, inside: bool = False) -> tuple[slice, slice]:
    """The kept part of a tile in HR pixels, of the whole image or inside the tile."""
    firsts = (rows.start, cols.start) if inside else (0, 0)
    down, across = (
        slice((span.keep_from - first) * scale, (span.keep_to - first) * scale)
        for span, first in zip((rows, cols), firsts, strict=True)
    )
    return down, across


def read_stored(
    store: Store,
    image: int,
    experts: Sequence[str],
    device: torch.device,
    features: bool = True,
    teacher: str | None = None,
) -> WholeImage:
    """The image with this index, decoded on the device."""
    taught = decoded_window(store.array(image, teacher, "sr"), device) if teacher else None
    lr = decoded_window(store.array(image, PAIRS, "lr"), device)
    hr = decoded_window(store.array(image, PAIRS, "hr"), device) if store.manifest.has_hr else taught
    assert hr is not None, "a store without HR has a teacher's images"
    return WholeImage(lr, hr, *read_answers(store, image, experts, device, features), taught)


def read_answers(
    store: Store,
    image: int,
    experts: Sequence[str],
    device: torch.device,
    features: bool = True,
    variant: str = "identity",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The experts' images (1, E, 3, H, W) and joined features, expert -> (1, C, h, w), of an image in a variant."""

    def read(expert: str, name: str) -> Tensor:
        return decoded_window(store.array(image, expert, name, variant), device)

    if not experts:
        return torch.empty(1, 0, 3, 0, 0, device=device), {}
    taps = {name: [spec.name for spec in store.experts[name].arrays if spec.name != "sr"] for name in experts}
    images = torch.stack([read(name, "sr") for name in experts], dim=1)
    with_features = [name for name in experts if features and taps[name]]
    joined = {name: torch.cat([read(name, tap) for tap in taps[name]], dim=1) for name in with_features}
    return images, joined


def read_pair(store: Store, image: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """LR and HR of the image with this index, (1, 3, h, w) and (1, 3, H, W) in 0..1."""
    lr, hr = (decoded_window(store.array(image, PAIRS, name), device) for name in ("lr", "hr"))
    return lr, hr
