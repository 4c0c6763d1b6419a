"""What a report shows of the images, gathered while they are scored, in a bounded number of bytes.

An image is kept whole if it fits into its share of the bytes; of the others, the windows are kept in which the fusion
gains or loses most over all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from championship_sr.evaluate.report.regions import Region, ShownImage, square
from championship_sr.evaluate.scoring.comparison import Pictures

PAGE_BYTES = 27_000_000  # of all pictures of a page; with the rest of it less than 30 MB
LARGEST_SHARE = 3  # equal share of an image: otherwise the last images would displace all windows of the others


@dataclass(frozen=True, eq=False)
class Window:
    """Where the fusion gains or loses much.

    y, x      in its region, HR pixels
    gain      mean squared luma error of the best expert on the image less that of the fusion, in levels of 8 bits
    decibels  the same as PSNR of the fusion less that of the best expert
    """

    region: Region
    y: int
    x: int
    size: int
    gain: float
    decibels: float
    best: str
    thumbnail: str


@dataclass
class Gallery:
    """Collects pictures while a run is scored; pass it as `observe`.

    border  pixels at each side of an image that its scores leave out
    """

    scale: int
    border: int = 0
    page_bytes: int = PAGE_BYTES
    images: list[Region] = field(default_factory=list)  # those that are kept whole
    windows: list[Window] = field(default_factory=list)
    wins: dict[str, list[float]] = field(default_factory=dict)  # expert -> share of the pixels of each image
    seen: int = 0  # images

    def __call__(self, pictures: Pictures) -> None:
        image = ShownImage(pictures, self.scale, self.border)
        for index, name in enumerate(image.experts):
            self.wins.setdefault(name, []).append(float((image.nearest == index).mean()))
        self.seen += 1
        self._keep(image)

    @property
    def gains(self) -> list[Window]:
        """The windows where the fusion is better, the best first."""
        return sorted((w for w in self.windows if w.gain > 0), key=lambda window: -window.gain)

    @property
    def losses(self) -> list[Window]:
        """The windows where the fusion is worse, the worst first."""
        return sorted((w for w in self.windows if w.gain < 0), key=lambda window: window.gain)

    @property
    def regions(self) -> list[Region]:
        """Everything that is kept: whole images first."""
        return list(dict.fromkeys([*self.images, *(window.region for window in self.windows)]))

    def _keep(self, image: ShownImage) -> None:
        places = list(image.places())
        whole = image.whole(self._share(image.pictures.total))
        if whole:
            self.images.append(whole)
        for y, x, size, gain in places:
            if whole:
                region, inside = whole, (y, x)
            elif self._is_worth(gain):
                region, inside = image.region(square(y, x, size)), (0, 0)
            else:
                continue
            place = square(y, x, size)
            decibels, thumbnail = image.decibels(place), image.thumbnail(place)
            self.windows.append(Window(region, *inside, size, gain, decibels, image.best, thumbnail))
        self._shrink()

    def _share(self, total: int) -> int:
        """The bytes that the next of `total` images may take whole; unused shares are redistributed, within limits."""
        left = self.page_bytes - sum(region.bytes for region in self.images)
        return min(left // (total - self.seen + 1), LARGEST_SHARE * self.page_bytes // total)

    def _is_worth(self, gain: float) -> bool:
        """Whether a window of this gain would be kept over the others that could be dropped."""
        there = self._loose(self.gains if gain > 0 else self.losses)
        used = sum(region.bytes for region in self.regions)
        return not there or abs(gain) > abs(there[-1].gain) or used + there[-1].region.bytes <= self.page_bytes

    def _shrink(self) -> None:
        """Drops the least important windows, of the more frequent kind, until everything fits."""
        while sum(region.bytes for region in self.regions) > self.page_bytes:
            loose = max(self._loose(self.gains), self._loose(self.losses), key=len)
            if not loose:
                break
            self.windows.remove(loose[-1])

    def _loose(self, windows: Sequence[Window]) -> list[Window]:
        """The windows that can be dropped; a window may cover all of a small image."""
        kept = set(self.images)
        return [window for window in windows if window.region not in kept]
