"""One image file to 8-bit RGB, or the reason why not."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from championship_sr.extract.images.png16 import read_png16
from championship_sr.store.errors import StoreError


class UnreadableImage(StoreError):
    """A file that is no image, or a part of one."""


def eight_bit(image: np.ndarray) -> np.ndarray:
    """The image as uint8; experts see 8-bit LR images, whatever the files have."""
    return image if image.dtype == np.uint8 else np.round(image / 257).astype(np.uint8)


def decode(path: Path) -> np.ndarray:
    """The image as RGB (H, W, 3), uint8, or uint16 where the file has 16 bits; grey is repeated, alpha left out.

    raises  UnreadableImage
    """
    try:
        with Image.open(path) as image:
            if _bits(image, path) == 16:
                array = _decode_16_bit(image, path)
            else:
                array = np.asarray(image if image.mode in ("L", "RGB") else image.convert(_rgb_mode(image)))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path}: {_reason(error)}") from None
    if array.ndim == 2:
        array = array[..., None]
    array = array[..., :1].repeat(3, axis=2) if array.shape[2] < 3 else array[..., :3]
    return np.ascontiguousarray(array)


def _rgb_mode(image: Image.Image) -> str:
    # through RGBA a transparent palette keeps the colours under its alpha, which is then left out
    return "RGBA" if image.mode == "P" and "transparency" in image.info else "RGB"


def _bits(image: Image.Image, path: Path) -> int:
    """Bits a value, which Pillow hides for colour images of 16."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # the bit depth in IHDR
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # BitsPerSample
    return 8


def _decode_16_bit(image: Image.Image, path: Path) -> np.ndarray:
    if image.format == "PNG":
        return read_png16(path).values
    import tifffile

    array = tifffile.imread(path)
    if array.dtype != np.uint16:
        raise ValueError(f"holds {array.dtype}, expected 8 or 16 bits a value")
    return array


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return f"truncated or damaged image ({' '.join(str(error).split())[:80]})"


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
