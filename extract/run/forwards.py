"""A shard's images through a network on a GPU: several per forward pass, and fewer when memory runs out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from championship_sr.extract.experts.expert import LoadedExpert, NonFiniteError
from championship_sr.extract.experts.tiling import Tiling, as_input, is_tiled, run_tiled
from championship_sr.extract.run.on_device import Arriving, DeviceEncoder
from championship_sr.store.errors import StoreError
from championship_sr.store.format.variants import transform

Outputs = Arriving | dict[str, Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """One variant of one image, (h, w, 3)."""

    image_id: str
    variant: str
    lr: np.ndarray = field(repr=False)


def views(images: Sequence[tuple[str, np.ndarray]], variants: Sequence[str]) -> list[View]:
    """Each image in each variant."""
    return [View(image_id, variant, transform(lr, variant)) for image_id, lr in images for variant in variants]


def groups(shard: Sequence[View], tiling: Tiling, align_px: int) -> Iterator[list[View]]:
    """The groups that share forwards: a tiled image alone, others with those of their size in the shard, in order.

    A shard is made as a whole, so that the same images are always together.
    """
    waiting: dict[tuple[int, int], list[View]] = {}
    for view in shard:
        size = view.lr.shape[:2]
        if is_tiled(size, tiling, align_px):
            yield [view]
            continue
        group = waiting.setdefault(size, [])
        group.append(view)
        if len(group) == tiling.batch_size:
            yield waiting.pop(size)
    yield from waiting.values()


@dataclass(frozen=True)
class Forwards:
    """One expert's forwards on its device, whose encoded results are handed over before they are computed.

    smaller  called with the number of images or tiles in a forward, where memory does not suffice for the tiling's
    """

    expert: LoadedExpert
    tiling: Tiling
    encoder: DeviceEncoder
    smaller: Callable[[int], object] = lambda count: None

    def of_shard(self, shard: Sequence[View]) -> Iterator[tuple[View, Outputs]]:
        """Each view and its arrays in transit, or its outputs if only the machine's memory can hold the whole image.

        raises  StoreError if one tile at a time is too much
        """
        for group in groups(shard, self.tiling, self.expert.align_px):
            yield from self._of(group, self.tiling)

    def _of(self, group: list[View], tiling: Tiling) -> list[tuple[View, Outputs]]:
        try:
            return self._once(group, tiling)
        except torch.OutOfMemoryError:
            pass  # handled outside the block: the failed forward's tensors are freed with its frames
        torch.cuda.empty_cache()
        half, name = len(group) // 2, self.expert.name
        if half:
            log.warning("%s: out of memory; continuing with %d images at a time", name, half)
            self.smaller(half)
            return self._of(group[:half], tiling) + self._of(group[half:], tiling)
        if tiling.batch_size > 1 and is_tiled(group[0].lr.shape[:2], tiling, self.expert.align_px):
            tiling = replace(tiling, batch_size=tiling.batch_size // 2)
            log.warning("%s: out of memory; continuing with %d tiles at a time", name, tiling.batch_size)
            self.smaller(tiling.batch_size)
            return self._of(group, tiling)
        log.warning("%s: out of memory; image %s is assembled in main memory", name, group[0].image_id)
        return [(group[0], on_host(self.expert, group[0], tiling))]

    def _once(self, group: list[View], tiling: Tiling) -> list[tuple[View, Outputs]]:
        lr = self._uploaded(torch.cat([as_input(view.lr) for view in group]))
        sr, features = run_tiled(self.expert, lr, tiling.tile_px, tiling.halo_px, tiling.batch_size, stay=True)
        outputs = {"sr": sr} | features
        return [
            (view, self.encoder({k: v[i : i + 1] for k, v in outputs.items()}, partial(self._refuse, view.image_id)))
            for i, view in enumerate(group)
        ]

    def _uploaded(self, lr: Tensor) -> Tensor:
        if self.expert.device.type == "cuda":
            lr = lr.pin_memory()  # a copy from unpinned memory waits until the device is idle
        return lr.to(self.expert.device, non_blocking=True)

    def _refuse(self, image_id: str, name: str) -> None:
        raise not_finite(self.expert, image_id, self.expert.non_finite(name))


def on_host(expert: LoadedExpert, view: View, tiling: Tiling) -> dict[str, Tensor]:
    """The whole image's outputs, as float32 in the machine's memory.

    raises  StoreError naming an image whose output is not finite, or for which memory is too small
    """
    try:
        sr, features = run_tiled(expert, as_input(view.lr), tiling.tile_px, tiling.halo_px)
    except NonFiniteError as error:
        raise not_finite(expert, view.image_id, error) from None
    except torch.OutOfMemoryError:
        # the tile is part of the store's identity and cannot change any more
        raise StoreError(
            f"image {view.image_id}: out of memory on {expert.device} with one tile of {tiling.tile_px} px at a time; "
            "free the device and run the same command again, or set a smaller extract.tile_px with --rebuild"
        ) from None
    return {"sr": sr} | features


def not_finite(expert: LoadedExpert, image_id: str, error: StoreError) -> StoreError:
    """The message for an image whose output is not finite."""
    again = "" if expert.precision == "fp32" else f" and run again with --rebuild {expert.name}"
    return StoreError(f"image {image_id}: {error}{again}")
