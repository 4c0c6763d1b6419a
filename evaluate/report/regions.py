"""Parts of a scored image as a page holds them: its pictures, lossless, and its maps, encoded.

A page computes exact values from the pictures; the maps are only displayed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from championship_sr.evaluate.methods import BICUBIC, EXPERT, held_up, row
from championship_sr.evaluate.metrics import to_tensor
from championship_sr.evaluate.report.colours import categories, data_uri
from championship_sr.evaluate.scoring.comparison import Pictures
from championship_sr.extract.images.picture import eight_bit
from championship_sr.train.metrics import rgb_to_y

SMALLEST_BYTES_PER_PIXEL = 0.25  # of a lossless picture of a photograph: a picture that cannot fit is not encoded
WINDOW_LR_PX = 64  # side of a window; in HR pixels `scale` times that
PER_IMAGE = 2  # windows of each kind
KINDS_SHOWN = ("floor", "expert", "baseline", "fusion")
HR = "HR"
WINS_BLUR = 9  # side in HR pixels of the area over which the nearest expert is determined
ERROR_PERCENTILE = 99.5  # of the errors in a region is the brightest colour
THUMBNAIL_PX = 112

Box = tuple[slice, slice]  # rows and columns, HR pixels


@dataclass(frozen=True)
class Layer:
    """One picture of a region.

    key     of a picture: its method; of a map: its title
    kind    picture (lossless) | map (one channel between low and high, lossy) | nearest (in the experts' colours)
    source  a `data:` address
    """

    key: str
    title: str
    kind: str
    source: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, eq=False)
class Region:
    """An image, or a window of it, in all pictures that can be compared.

    y, x, height, width  where it lies, HR pixels
    uncounted            rows and columns at its top, left, bottom and right that the image's scores leave out
    brightest            luma error (of 255) that is shown in the brightest colour
    """

    image: str
    y: int
    x: int
    height: int
    width: int
    uncounted: tuple[int, int, int, int]
    brightest: float
    thumbnail: str
    layers: tuple[Layer, ...]

    @property
    def bytes(self) -> int:
        """The bytes that it takes on the page."""
        return sum(len(layer.source) for layer in self.layers)


class ShownImage:
    """One scored image, from which regions are made.

    nearest  (H, W): index of the expert that is nearest to HR around each pixel
    best     the expert with the least luma error on the whole image
    """

    def __init__(self, pictures: Pictures, scale: int, border: int) -> None:
        self.pictures, self.scale, self.border = pictures, scale, border
        self.experts = {k.removeprefix(EXPERT): v for k, v in pictures.images.items() if k.startswith(EXPERT)}
        self.nearest = nearest_expert(list(self.experts.values()), pictures.hr)
        self.shown = {k: v for k, v in pictures.images.items() if row(k).kind in KINDS_SHOWN}
        self.shown[HR] = eight_bit(pictures.hr)
        self.height, self.width = self.shown[HR].shape[:2]
        self.truth = _luma(self.shown[HR])
        squares = {name: self._squared_error(image) for name, image in self.experts.items()}
        self.best = min(squares, key=lambda name: float(squares[name].mean()))
        ours = self._squared_error(self.shown[held_up(self.shown)])
        self.best_squares, self.squares = squares[self.best], ours

    def _squared_error(self, image: np.ndarray) -> np.ndarray:
        """Of luma, (H, W), in levels of 8 bits."""
        return (_luma(image) - self.truth) ** 2

    def places(self) -> Iterator[tuple[int, int, int, float]]:
        """(y, x, size, gain) of the windows of most gain and most loss, at whole LR pixels; HR pixels."""
        difference = torch.from_numpy(self.best_squares - self.squares)
        size = min(WINDOW_LR_PX, self.height // self.scale, self.width // self.scale)
        means = F.avg_pool2d(difference[None, None], size * self.scale, stride=self.scale)[0, 0]
        for sign in (1, -1):
            for y, x, value in _peaks(sign * means, size):
                yield y * self.scale, x * self.scale, size * self.scale, sign * value

    def decibels(self, place: Box) -> float:
        """How much better the fusion, or its replacement, is than the best expert at this place."""
        with np.errstate(divide="ignore"):
            return float(10 * np.log10(self.best_squares[place].mean() / self.squares[place].mean()))

    def whole(self, most_bytes: int) -> Region | None:
        """The whole image, if it takes no more than this."""
        if self.height * self.width * len(self.shown) * SMALLEST_BYTES_PER_PIXEL > most_bytes:
            return None
        region = self.region((slice(0, self.height), slice(0, self.width)))
        return region if region.bytes <= most_bytes else None

    def region(self, place: Box) -> Region:
        """The part of the image at this place, encoded."""
        rows, cols = place
        height, width = rows.stop - rows.start, cols.stop - cols.start
        ends = (rows.start, cols.start, self.height - rows.stop, self.width - cols.stop)
        return Region(
            image=self.pictures.case.name,
            y=rows.start,
            x=cols.start,
            height=height,
            width=width,
            uncounted=tuple(max(0, self.border - distance) for distance in ends),
            brightest=self._brightest(place),
            thumbnail=self.thumbnail(place),
            layers=(*self._pictures(place), *self._maps(place)),
        )

    def thumbnail(self, place: Box) -> str:
        """The place in HR, small."""
        return data_uri(self.shown[HR][place], lossless=False, longest=THUMBNAIL_PX)

    def _pictures(self, place: Box) -> Iterator[Layer]:
        for method, image in self.shown.items():
            yield Layer(method, title_of(method), "picture", data_uri(np.ascontiguousarray(image[place])))

    def _maps(self, place: Box) -> Iterator[Layer]:
        yield Layer("nearest expert", "nearest expert", "nearest", data_uri(categories(self.nearest[place])))
        for name, layers in self.pictures.maps.items():
            part = layers[:, *place]
            low, high = float(part.min()), float(part.max())
            titles = [name] if len(part) == 1 else [f"{name}: {expert}" for expert in self.experts]
            for title, layer in zip(titles, part, strict=True):
                grey = np.round((layer - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
                source = data_uri(np.repeat(grey[..., None], 3, axis=2), lossless=False)
                yield Layer(title, title, "map", source, low, high)

    def _brightest(self, place: Box) -> float:
        squares = np.stack([self.best_squares[place], self.squares[place]])
        return max(1.0, float(np.sqrt(np.percentile(squares, ERROR_PERCENTILE))))


def title_of(method: str) -> str:
    """The picture's name in the page's choice of pictures."""
    return HR if method == HR else "LR (bicubic)" if method == BICUBIC else row(method).title


def nearest_expert(images: Sequence[np.ndarray], hr: np.ndarray) -> np.ndarray:
    """(H, W): the index of the expert whose luma is nearest to HR's around each pixel."""
    truth = rgb_to_y(to_tensor(hr))
    squares = torch.cat([(rgb_to_y(to_tensor(image)) - truth).square() for image in images])
    around = F.avg_pool2d(squares, WINS_BLUR, stride=1, padding=WINS_BLUR // 2, count_include_pad=False)
    return around[:, 0].argmin(dim=0).numpy()


def _peaks(means: Tensor, size: int) -> Iterator[tuple[int, int, float]]:
    """(y, x, value) of the largest positive values; windows of this size that begin there do not overlap."""
    means = means.clone()
    for _ in range(PER_IMAGE):
        value, place = means.flatten().max(dim=0)
        if value <= 0:
            return
        y, x = divmod(int(place.item()), means.shape[1])
        means[max(0, y - size + 1) : y + size, max(0, x - size + 1) : x + size] = -torch.inf
        yield y, x, value.item()


def square(y: int, x: int, size: int) -> Box:
    return slice(y, y + size), slice(x, x + size)


def _luma(image: np.ndarray) -> np.ndarray:
    return rgb_to_y(to_tensor(image))[0, 0].numpy() * 255
