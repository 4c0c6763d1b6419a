"""Numbers as colours, and pictures as text for a page that needs no other file."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# nine anchors each of matplotlib's `inferno` and `viridis` (CC0, van der Walt and Smith 2015)
INFERNO = ("000004", "210c4a", "57106e", "8a226a", "bc3754", "e45a31", "f98e09", "f9cb35", "fcffa4")
VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
# Okabe and Ito 2008, told apart by colour-blind readers; grey in place of black for dark pages
CATEGORIES = ("e69f00", "56b4e9", "009e73", "cc79a7", "0072b2", "d55e00", "f0e442", "999999")


def coloured(values: np.ndarray, low: float, high: float, anchors: Sequence[str] = VIRIDIS) -> np.ndarray:
    """(H, W, 3) in uint8 of values (H, W) between low and high."""
    table = np.array([_rgb(colour) for colour in anchors], float)
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(table) - 1)
    channels = [np.interp(place, np.arange(len(table)), table[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def categories(choice: np.ndarray) -> np.ndarray:
    """(H, W, 3) in uint8: one colour for each whole number (H, W)."""
    table = np.array([_rgb(colour) for colour in CATEGORIES], np.uint8)
    return table[choice % len(table)]


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue


def data_uri(image: np.ndarray, *, lossless: bool = True, longest: int = 0) -> str:
    """The image (H, W, 3) in uint8 as WebP in a `data:` address.

    longest  its sides are reduced to at most this, if given
    """
    picture = Image.fromarray(image)
    if longest and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if lossless:  # `quality` then means effort: more takes four times as long for 1 % fewer bytes
        picture.save(file, "WEBP", lossless=True, quality=20, method=2)
    else:
        picture.save(file, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
