"""Whole images, scored as the field does, by which checkpoints are chosen."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.extract.device import float32_products
from championship_sr.extract.images.bicubic import upscale
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store
from championship_sr.train.combination import combined
from championship_sr.train.config import ValidationConfig
from championship_sr.train.data.batch import decoded_window
from championship_sr.train.metrics import SSIM_WINDOW, psnr, rgb_to_y, round_to_8bit, ssim
from championship_sr.train.run.processes import World

if TYPE_CHECKING:
    from championship_sr.extract.experts.tiling import TileSpan

log = logging.getLogger(__name__)

SMALLEST_TILE_PX, HALO_PX = 64, 16  # of tiles where memory is short
PICTURE_PX = 192  # side of the windows that are shown


class WholeImage(NamedTuple):
    """One image of a store, the network's input and target, with a batch axis of 1.

    hr  the teacher's image in a store without HR
    """

    lr: Tensor
    hr: Tensor
    images: Tensor
    features: dict[str, Tensor]
    teacher: Tensor | None = None


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
    read      image index -> what the network gets, and should give
    pictures  so many of the images are shown
    taught    whether there is a teacher's image of each
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
                raise StoreError(f"{store.root}: validation image {image.id} has sides below {least} HR pixels")

    def references(self, fitted: Mapping[str, float]) -> dict[str, ValidationScores]:
        """What each expert, the experts' mean and fitted weights score: the lines that the fusion has to pass.

        fitted  expert -> weight, fitted to images that are not scored here
        """
        methods: dict[str, Callable[[WholeImage], Tensor]] = {
            name: partial(_image_of, row) for row, name in enumerate(self.experts)
        }
        if self.store.manifest.has_hr and self.taught:
            methods["teacher"] = _teacher_of
        if not self.experts:  # of a student
            return self._scores({"bicubic": lambda whole: enlarged(whole.lr, self.store.scale), **methods})
        methods["mean"] = lambda whole: whole.images.mean(1)
        weights = torch.tensor([fitted[name] for name in self.experts])
        methods["fitted"] = lambda whole: combined(whole.images, weights)
        return self._scores(methods)

    def score(self, network: nn.Module) -> ValidationScores:
        """What the network scores, in float32."""
        was_training = network.training
        network.eval()
        scores = self._scores({"fusion": partial(self._fused, network)})["fusion"]
        network.train(was_training)
        return scores

    def _fused(self, network: nn.Module, whole: WholeImage) -> Tensor:
        """The network's image; from when memory is short on in tiles, and in smaller ones until they fit."""
        while True:
            try:
                return in_tiles(network, whole, self.store.scale, self.tile_px)
            except torch.OutOfMemoryError:
                smaller = (self.tile_px or max(whole.lr.shape[-2:])) // 2
                if smaller < SMALLEST_TILE_PX:
                    raise
            # only here have the tensors of the failed forward gone with the exception
            self.tile_px = smaller
            log.warning("validation: out of memory; going on with tiles of %d LR pixels", smaller)

    @torch.no_grad()
    @float32_products()  # whole images of many sizes, in float32
    def _scores(self, methods: Mapping[str, Callable[[WholeImage], Tensor]]) -> dict[str, ValidationScores]:
        found = []
        for index in self.images[self.world.rank :: self.world.size]:
            whole = self.read(index)
            for method, run in methods.items():
                sr = run(whole).clamp(0, 1)
                picture = _picture(whole, sr) if index in self.shown else None
                found.append((self.images.index(index), method, self._one(sr, whole.hr), picture))
        # by place, so that the order does not depend on who scored what
        everybodys = sorted((each for part in self.world.gather(found) for each in part), key=lambda each: each[0])
        return {method: self._of(method, everybodys) for method in methods}

    def _of(self, method: str, found: Sequence[tuple]) -> ValidationScores:
        mine = [
            (self.store.images[self.images[place]].id, score, pic)
            for place, name, score, pic in found
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


def in_tiles(network: Callable[..., Tensor], whole: WholeImage, scale: int, tile_px: int | None) -> Tensor:
    """The network's image of a whole one, in tiles of at most this side whose insides are put together."""
    height, width = whole.lr.shape[-2:]
    if tile_px is None or max(height, width) <= tile_px:
        return network(whole.lr, whole.images, whole.features)
    from championship_sr.extract.experts.tiling import spans  # brings every architecture; only where memory is short

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


def split_images(
    store: Store | Manifest, config: ValidationConfig, count: int | None = None
) -> tuple[list[int], list[int]]:
    """(training, validation) images of one store, by index; none is in both.

    count   only the first so many of the store; None: all
    raises  ConfigError if an id is not in the store or nothing is left to train on
    """
    index = {image.id: number for number, image in enumerate(store.images[:count])}
    unknown = [name for name in config.images if name not in index]
    if unknown:
        raise ConfigError(f"validation.images: {store.root} has no image {', '.join(unknown[:3])}")
    if config.images:
        chosen = {index[name] for name in config.images}
    else:
        held = min(config.hold_out, len(index))
        chosen = {int((number + 0.5) * len(index) / held) for number in range(held)}
    left = [number for number in range(len(index)) if number not in chosen]
    if not left:
        raise ConfigError(
            f"validation: all {len(index)} images of {store.root} are held out and none is left to train on; "
            "lower validation.hold_out, or give another store with validation.store"
        )
    return left, sorted(chosen)


DECIDING = ("architecture", "hyperparameters", "weights_sha256", "taps")  # what makes two experts the same


def check_apart(training: Store, experts: Mapping[str, Expert], validation: Store) -> None:
    """Raises StoreError if a validation store shares an image with the training store or has other experts."""
    if training.scale != validation.scale:
        raise StoreError(f"{validation.root}: scale {validation.scale}; the training store has {training.scale}")
    known = {image.hr_sha256 for image in training.images}
    shared = [image.id for image in validation.images if image.hr_sha256 in known]
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise StoreError(f"{validation.root}: images that are also trained on: {', '.join(shared[:3])}{more}")
    for name, mine in experts.items():
        theirs = validation.experts[name]
        differing = [key for key in DECIDING if mine.identity.get(key) != theirs.identity.get(key)]
        if differing:
            raise StoreError(
                f"{validation.root}: its {name} differs from the training store's in {', '.join(differing)}"
            )


def _picture(whole: WholeImage, sr: Tensor) -> Tensor:
    """LR, the experts' mean (or bicubic), the result and HR side by side, a window from the middle."""
    lr = F.interpolate(whole.lr, size=whole.hr.shape[-2:], mode="nearest")
    scale = whole.hr.shape[-1] // whole.lr.shape[-1]
    rival = whole.images.mean(1) if whole.images.shape[1] else enlarged(whole.lr, scale)
    return torch.cat([_middle(image)[0].cpu() for image in (lr, rival, sr, whole.hr)], dim=-1)


def enlarged(lr: Tensor, scale: int) -> Tensor:
    """The bicubic baseline (1, 3, H, W), by the field's recipe."""
    pixels = round_to_8bit(lr)[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return torch.from_numpy(upscale(pixels, scale)).to(lr.device).permute(2, 0, 1)[None] / 255


def _middle(image: Tensor) -> Tensor:
    rows, cols = (min(size, PICTURE_PX) for size in image.shape[-2:])
    y, x = (image.shape[-2] - rows) // 2, (image.shape[-1] - cols) // 2
    return image[..., y : y + rows, x : x + cols].clamp(0, 1)
