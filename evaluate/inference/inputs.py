"""The fusion's inputs for an image: windows from a store, or from experts that are run."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.images.results import GivenImage, ResultImages
from championship_sr.store.errors import ConfigError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.variants import transform
from championship_sr.store.shards.reader import Store
from championship_sr.train.data.batch import decoded_window
from championship_sr.train.data.uploads import to_device

SPATIAL = (-2, -1)
ROWS_AT_ONCE = 256
Device = torch.device | str


# lr (1, 3, h, w) in 0..1; images (1, E, 3, H, W); features: expert -> (1, C, h, w)
Window = tuple[Tensor, Tensor, dict[str, Tensor]]


class Inputs(Protocol):
    """What the fusion reads for one image, window by window."""

    size: tuple[int, int]  # rows and columns of the LR image
    scale: int
    experts: tuple[str, ...]

    def window(self, y: int, x: int, rows: int, cols: int) -> Window: ...


class StoredInputs:
    """An image of a store, as its experts saw it in one variant.

    features  False does not read the features, for networks that do not use them
    """

    def __init__(
        self,
        store: Store,
        image: int,
        experts: Sequence[str],
        variant: str = "identity",
        device: Device = "cpu",
        *,
        features: bool = True,
    ) -> None:
        self._store, self._image, self._variant, self._device = store, image, variant, torch.device(device)
        lr = decoded_window(store.array(image, PAIRS, "lr"), self._device)
        self._lr = transform(lr.contiguous(), variant, SPATIAL)
        self.size = tuple(self._lr.shape[-2:])
        self.scale, self.experts, self._features = store.scale, tuple(experts), features

    def window(self, y: int, x: int, rows: int, cols: int) -> Window:
        s = self.scale
        images = [self._load(name, "sr", y * s, x * s, rows * s, cols * s) for name in self.experts]
        features = {
            name: torch.cat([self._load(name, array, y, x, rows, cols) for array in self._taps(name)], dim=1)
            for name in self.experts
            if self._features and self._taps(name)
        }
        return self._lr[..., y : y + rows, x : x + cols], torch.stack(images, dim=1), features

    def _taps(self, expert: str) -> list[str]:
        return [spec.name for spec in self._store.experts[expert].arrays if spec.name != "sr"]

    def _load(self, expert: str, array: str, *window: int) -> Tensor:
        return decoded_window(self._store.array(self._image, expert, array, self._variant), self._device, *window)


class LiveInputs:
    """An image on whose windows the experts are run on request; only one window is kept.

    experts  those that are run, and images of those that are not
    raises   ConfigError for a flipped or turned image of an expert that is not run
    """

    def __init__(
        self,
        lr: Tensor,
        experts: Sequence[LoadedExpert | GivenImage],
        variant: str = "identity",
        device: Device = "cpu",
    ) -> None:
        if variant != "identity":
            must_run(experts)
        self._device, self._experts = torch.device(device), tuple(experts)
        self._lr = transform(to_device(lr, self._device), variant, SPATIAL)
        self.size = tuple(self._lr.shape[-2:])
        self.scale, self.experts = experts[0].scale, tuple(expert.name for expert in experts)

    def window(self, y: int, x: int, rows: int, cols: int) -> Window:
        images, features = [], {}
        for expert in self._experts:
            image, taps = self._answer(expert, y, x, rows, cols)
            images.append(image)
            if taps:
                features[expert.name] = torch.cat(list(taps.values()), dim=1)
        return self._lr[..., y : y + rows, x : x + cols], torch.stack(images, dim=1), features

    def _answer(
        self, expert: LoadedExpert | GivenImage, y: int, x: int, rows: int, cols: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.scale
        if isinstance(expert, GivenImage):
            window = expert.image[..., y * s : (y + rows) * s, x * s : (x + cols) * s]
            return to_device(window, self._device), {}
        # begun where extraction's tiles may begin, so that attention windows lie as in the whole image
        up, left = y % expert.align_px, x % expert.align_px
        image, taps = expert(self._lr[..., y - up : y + rows, x - left : x + cols])
        return image[..., up * s :, left * s :], {name: tap[..., up:, left:] for name, tap in taps.items()}


def must_run(experts: Sequence[LoadedExpert | GivenImage | ResultImages]) -> None:
    """Raises ConfigError if one of the experts is not run, and so cannot answer to flips and turns."""
    given = [expert.name for expert in experts if isinstance(expert, (GivenImage, ResultImages))]
    if given:
        raise ConfigError(f"expert {given[0]}: its images are given, but not those of flipped or rotated inputs")


def chw(image: np.ndarray) -> Tensor:
    """(1, 3, h, w) in 0..1 of an image (h, w, 3) in uint8 or uint16."""
    values = torch.from_numpy(image.astype(np.float32) / np.iinfo(image.dtype).max)
    return values.permute(2, 0, 1)[None].contiguous()


def hwc(image: Tensor, dtype: type | np.dtype = np.uint8) -> np.ndarray:
    """(H, W, 3) in uint8 or uint16, clipped and rounded, of an image (3, H, W) in about 0..1."""
    result = np.empty((*image.shape[-2:], 3), dtype)
    for first in range(0, len(result), ROWS_AT_ONCE):  # a large image does not fit into memory many times
        part = image[:, first : first + ROWS_AT_ONCE].clamp(0, 1).mul_(np.iinfo(dtype).max).round_()
        result[first : first + ROWS_AT_ONCE] = part.permute(1, 2, 0).numpy()
    return result
