"""Whole images, scored as the field does, by which checkpoints are chosen."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.extract.device import float32_products
from championship_sr.extract.experts.tiling import SMALLEST_TILE_PX
from championship_sr.extract.images.bicubic import upscale
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.shards.reader import Store
from championship_sr.train.combination import combined
from championship_sr.train.data.uploads import to_device
from championship_sr.train.data.whole import WholeImage, in_tiles
from championship_sr.train.metrics import SSIM_WINDOW, psnr, rgb_to_y, round_to_8bit, ssim
from championship_sr.train.processes import World

log = logging.getLogger(__name__)

PICTURE_PX = 192  # side of the windows that are shown


class Score(NamedTuple):
    """In dB, and SSIM; luma, `scale` pixels cut, 8 bits."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class ValidationScores:
    """The score of each image, and windows of some to look at: (3, H, W) in 0..1."""

    images: dict[str, Score]
    pictures: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Score:
        """The mean over images; inf if an image is exactly right."""
        psnrs, ssims = zip(*self.images.values(), strict=True)
        return Score(sum(psnrs) / len(psnrs), sum(ssims) / len(ssims))


class Validation:
    """Images that are not trained on; every process scores its share of them.

    images    of the store, by index
    read      image index -> the network's inputs and target
    pictures  how many of the images are shown
    taught    whether each has a teacher's image
    """

    def __init__(
        self,
        store: Store,
        images: Sequence[int],
        experts: Sequence[str],
        read: Callable[[int], WholeImage],
        *,
        pictures: int,
        world: World,
        taught: bool = False,
    ) -> None:
        if not images:
            raise ConfigError("validation: no images; give validation.images, validation.store or validation.hold_out")
        self.store, self.images, self.experts, self.world = store, list(images), tuple(experts), world
        self.read, self.shown = read, self.images[:pictures]
        self.taught = taught
        self.tile_px: int | None = None  # None: whole images
        least = SSIM_WINDOW + 2 * store.scale
        for image in map(store.images.__getitem__, self.images):
            if min(image.lr_size) * store.scale < least:
                raise StoreError(f"{store.root}: validation image {image.id} has a side shorter than {least} HR pixels")

    def references(self, fitted: Mapping[str, float]) -> dict[str, ValidationScores]:
        """The scores of each expert, the experts' mean and fitted weights, which the fusion must exceed.

        fitted  expert -> weight, fitted to images that are not scored here
        """
        methods: dict[str, Callable[[WholeImage], Tensor]] = {
            name: partial(_image_of, row) for row, name in enumerate(self.experts)
        }
        if self.store.manifest.has_hr and self.taught:
            methods["teacher"] = _teacher_of
        if not self.experts:  # of a student
            return self._scores({"bicubic": lambda whole: enlarged(whole.lr, self.store.scale), **methods})
        weights = torch.tensor([fitted[name] for name in self.experts], device=self.world.device)
        methods["mean"] = partial(self._tiled, lambda _lr, images, _features: images.mean(1))
        methods["fitted"] = partial(self._tiled, lambda _lr, images, _features: combined(images, weights))
        return self._scores(methods)

    def score(self, network: nn.Module) -> ValidationScores:
        """The network's scores, in float32."""
        was_training = network.training
        network.eval()
        scores = self._scores({"fusion": partial(self._tiled, network)})["fusion"]
        network.train(was_training)
        return scores

    def _tiled(self, network: Callable[..., Tensor], whole: WholeImage) -> Tensor:
        """The network's image; once memory runs out, in tiles, which are made smaller until they fit."""
        while True:
            try:
                return in_tiles(network, whole, self.store.scale, self.tile_px)
            except torch.OutOfMemoryError:
                smaller = (self.tile_px or max(whole.lr.shape[-2:])) // 2
                if smaller < SMALLEST_TILE_PX:
                    raise
            # here, the tensors of the failed forward have been freed with the exception
            self.tile_px = smaller
            log.warning("validation: out of memory; continuing with tiles of %d LR pixels", smaller)

    @torch.no_grad()
    @float32_products()  # whole images of many sizes, in float32
    def _scores(self, methods: Mapping[str, Callable[[WholeImage], Tensor]]) -> dict[str, ValidationScores]:
        scored = []
        for index in self.images[self.world.rank :: self.world.size]:
            whole = self.read(index)
            for method, run in methods.items():
                sr = run(whole).clamp(0, 1)
                picture = _picture(whole, sr) if index in self.shown else None
                scored.append((self.images.index(index), method, self._one(sr, whole.hr), picture))
        # by place, so that the order does not depend on which process scored an image
        everybodys = sorted((one for part in self.world.gather(scored) for one in part), key=lambda one: one[0])
        return {method: self._of(method, everybodys) for method in methods}

    def _of(self, method: str, scored: Sequence[tuple]) -> ValidationScores:
        mine = [
            (self.store.images[self.images[place]].id, score, pic)
            for place, name, score, pic in scored
            if name == method
        ]
        return ValidationScores(
            {name: score for name, score, _ in mine}, {name: pic for name, _, pic in mine if pic is not None}
        )

    def _one(self, sr: Tensor, hr: Tensor) -> Score:
        sr, hr = rgb_to_y(round_to_8bit(sr)), rgb_to_y(round_to_8bit(hr))
        border = self.store.scale
        return Score(psnr(sr, hr, border=border).item(), ssim(sr, hr, border=border).item())


def _image_of(row: int, whole: WholeImage) -> Tensor:
    return whole.images[:, row]


def _teacher_of(whole: WholeImage) -> Tensor:
    assert whole.teacher is not None, "the teacher's images are read along"
    return whole.teacher


def _picture(whole: WholeImage, sr: Tensor) -> Tensor:
    """LR, the experts' mean (or bicubic), the result and HR side by side, a window from the middle."""
    lr = F.interpolate(whole.lr, size=whole.hr.shape[-2:], mode="nearest")
    scale = whole.hr.shape[-1] // whole.lr.shape[-1]
    rival = whole.images.mean(1) if whole.images.shape[1] else enlarged(whole.lr, scale)
    return torch.cat([_middle(image)[0].cpu() for image in (lr, rival, sr, whole.hr)], dim=-1)


def enlarged(lr: Tensor, scale: int) -> Tensor:
    """The bicubic baseline (1, 3, H, W), by the field's recipe."""
    pixels = round_to_8bit(lr)[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return to_device(upscale(pixels, scale), lr.device).permute(2, 0, 1)[None] / 255


def _middle(image: Tensor) -> Tensor:
    rows, cols = (min(size, PICTURE_PX) for size in image.shape[-2:])
    y, x = (image.shape[-2] - rows) // 2, (image.shape[-1] - cols) // 2
    return image[..., y : y + rows, x : x + cols].clamp(0, 1)
