"""A photograph in memory: upright, 8 or 16 bits a channel, with its file's other contents."""

import logging
import os
import struct
from dataclasses import dataclass, replace

import numpy as np
from PIL import ExifTags, Image
from scipy.ndimage import distance_transform_edt

from championship_sr.store.errors import StoreError

log = logging.getLogger(__name__)

LIMIT_VARIABLE = "CHAMPIONSHIP_SR_MAX_MEGAPIXELS"
TURNED = (5, 6, 7, 8)  # the orientations that swap width and height; Exif 2.32, table 6
ORIENTATION = ExifTags.Base.Orientation
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
# whose values have no agreed range or colours
UNKNOWN_RANGE = ("I", "LAB", "HSV")
BROKEN_EXIF = (SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, OSError, struct.error)


@dataclass(frozen=True)
class Picture:
    """A photograph as its file shows it.

    pixels  (h, w, 3), uint8 or uint16, upright
    alpha   (h, w) of the same type, or None
    grey    whether the file had one channel
    exif    its EXIF data, in which the orientation is upright; icc its colour profile
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    exif: bytes = b""
    icc: bytes = b""


def eight_bit(image: np.ndarray) -> np.ndarray:
    """The image as uint8; experts see 8-bit LR images, whatever the files have."""
    return image if image.dtype == np.uint8 else np.round(image / 257).astype(np.uint8)


def limit_megapixels() -> float:
    """The largest picture that is read, in millions of pixels: Pillow's limit, twice the size at which it warns."""
    return 2 * Image.MAX_IMAGE_PIXELS / 1e6 if Image.MAX_IMAGE_PIXELS else float("inf")


def allow_megapixels(limit: float) -> None:
    """Reads pictures of up to `limit` million pixels, here and in processes that are started from here."""
    os.environ[LIMIT_VARIABLE] = str(limit)
    Image.MAX_IMAGE_PIXELS = max(1, int(limit * 1e6 / 2))  # Pillow warns of more, and refuses more than twice as many


if LIMIT_VARIABLE in os.environ:
    allow_megapixels(float(os.environ[LIMIT_VARIABLE]))


def check_size(rows: int, columns: int) -> None:
    """Raises DecompressionBombError above Pillow's limit and ValueError without pixels, where Pillow does not check."""
    if min(rows, columns) < 1:
        raise ValueError(f"{columns} x {rows} pixels")
    if rows * columns > limit_megapixels() * 1e6:
        raise Image.DecompressionBombError(f"{columns} x {rows} pixels")


def from_pil(image: Image.Image, orientation: int | None = None) -> Picture:
    """The picture of a PIL image, turned upright.

    orientation  how it must be turned, as EXIF counts; None: as its EXIF data says
    raises       StoreError for a mode whose values have no agreed range, such as 32-bit integers
    """
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1:
        log.warning("%s: %d frames; using the first", getattr(image, "filename", "image"), n_frames)
    image.load()
    icc = b"" if image.mode == "CMYK" else image.info.get("icc_profile") or b""  # of a colour space that is left
    picture = replace(_pixels_of(image), exif=image.info.get("exif") or b"", icc=icc)
    return upright(picture, orientation_of(image) if orientation is None else orientation)


def _pixels_of(image: Image.Image) -> Picture:
    if image.mode in SIXTEEN_BIT_MODES:
        return from_channels(np.asarray(image).astype(np.uint16)[..., None])
    if image.mode == "F":
        return from_channels(sixteen_bit(np.asarray(image))[..., None])
    if image.mode in UNKNOWN_RANGE:
        raise StoreError(f"pixels of mode {image.mode}; convert it to grey or RGB of 8 or 16 bits")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    values = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    alpha = np.ascontiguousarray(values[..., 3]) if transparent else None
    return Picture(np.ascontiguousarray(values[..., :3]), alpha, image.mode in ("1", "L", "LA", "La"))


def filled(picture: Picture) -> np.ndarray:
    """The pixels, with invisible ones in the colour of the nearest visible one.

    Editors leave black under transparent parts, which a network would bleed into the edges.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.pixels
    rows, columns = distance_transform_edt(picture.alpha == 0, return_distances=False, return_indices=True)
    return picture.pixels[rows, columns]


def from_channels(values: np.ndarray, icc: bytes = b"") -> Picture:
    """The picture of an array (h, w, C), C being 1 to 4: grey or RGB, with or without alpha."""
    channels = values.shape[-1]
    pixels = values[..., :1].repeat(3, axis=-1) if channels < 3 else values[..., :3]
    alpha = np.ascontiguousarray(values[..., -1]) if channels in (2, 4) else None
    return Picture(np.ascontiguousarray(pixels), alpha, channels < 3, icc=icc)


def sixteen_bit(values: np.ndarray) -> np.ndarray:
    """Floating-point values in 0..1 as uint16.

    raises  StoreError if they lie outside of it
    """
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # NaN too is refused here
        raise StoreError(f"floating-point values from {low:g} to {high:g}; expected 0..1")
    return np.round(values.astype(np.float64) * 65535).astype(np.uint16)


def orientation_of(image: Image.Image) -> int:
    """How a stored picture must be turned to stand upright, 1 to 8 as EXIF counts; 1 where it does not say."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN_EXIF:
        return 1
    return value if value in range(1, 9) else 1


def orientation_in(exif: bytes) -> int:
    """The same, of EXIF data."""
    try:
        data = Image.Exif()
        data.load(exif)
        value = data.get(ORIENTATION, 1)
    except BROKEN_EXIF:
        return 1
    return value if value in range(1, 9) else 1


def upright_size(rows: int, columns: int, orientation: int) -> tuple[int, int]:
    """Rows and columns of the picture when it is turned upright."""
    return (columns, rows) if orientation in TURNED else (rows, columns)


def upright(picture: Picture, orientation: int) -> Picture:
    """The picture turned upright, its EXIF data saying so."""
    if orientation == 1:
        return picture
    pixels = turned(picture.pixels, orientation)
    alpha = None if picture.alpha is None else turned(picture.alpha, orientation)
    return replace(picture, pixels=pixels, alpha=alpha, exif=_upright_exif(picture.exif))


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """The array (h, w, ...) with its first row on top and its first column to the left."""
    values = values.swapaxes(0, 1) if orientation in TURNED else values
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(values[::rows, ::columns])


def _upright_exif(exif: bytes) -> bytes:
    """The EXIF data with the orientation of an upright picture."""
    if not exif:
        return exif
    data = Image.Exif()
    data.load(exif)
    data[ORIENTATION] = 1
    return data.tobytes()
