"""Image files as pictures: one decoder for extraction, evaluation and everything else that reads photographs."""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from championship_sr.extract.images.deep_tiff import deep_page, mode_of_page, picture_of_page, size_of_page
from championship_sr.extract.images.names import printable
from championship_sr.extract.images.picture import (
    Picture,
    check_size,
    from_channels,
    from_pil,
    limit_megapixels,
    orientation_in,
    orientation_of,
    upright,
    upright_size,
)
from championship_sr.store.errors import StoreError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# recognised by content; Pillow knows many more formats, some of which run other programs
CONTENTS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
PNG_DEPTH_AT = 24  # in the file: the signature, the header chunk's length and kind, width, height, depth
DEFLATE_RATIO = 1032  # zlib's "Technical Details": one byte stands for at most so many
LATE_EXIF_BYTES = 1 << 16  # how far from a PNG's end its EXIF data is looked for, where it follows the pixels
EXIF_START = b"Exif\0\0"  # Pillow has it in front, PNG files do not
# what Pillow, tifffile and imagecodecs (RuntimeError) raise on damaged files
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError,
          RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip


class UnreadableImage(StoreError):
    """A file that is not an image, or is incomplete."""


@dataclass(frozen=True)
class Header:
    """What a file says about its picture before any pixel is read."""

    size: tuple[int, int]  # rows and columns, upright
    mode: str  # as Pillow names it


def is_image(path: Path) -> bool:
    """Whether the file's name says that it is an image of a format that is read and written."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def decode(path: Path) -> np.ndarray:
    """The image as upright RGB (H, W, 3), uint8, or uint16 where the file has more; grey is repeated, alpha left out.

    raises  UnreadableImage
    """
    return read_picture(path).pixels


def read_header(path: Path) -> Header:
    """The picture's upright size and its mode.

    raises  UnreadableImage
    """
    with _faults_named(path), deep_page(path) as page:
        if page is not None:
            return Header(size_of_page(page), mode_of_page(page))
        with Image.open(path, formats=CONTENTS) as image:
            orientation = 1 if image.format == "TIFF" else _exif_of(image, path)[1]  # Pillow turns TIFF itself
            return Header(upright_size(image.height, image.width, orientation), image.mode)


def read_picture(path: Path) -> Picture:
    """The picture in a file, upright.

    raises  UnreadableImage if it cannot be read to its last pixel
    """
    with _faults_named(path), deep_page(path) as page:
        if page is not None:
            return picture_of_page(page)
        with Image.open(path, formats=CONTENTS) as image:
            if image.format == "PNG":
                exif, orientation = _exif_of(image, path)
                picture = _read_png16(path, image) if _is_png16(path) else from_pil(image, orientation=1)
                return upright(replace(picture, exif=exif), orientation)
            return from_pil(image)


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Whatever a damaged or hostile file raises, as UnreadableImage with the file's name."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading from a pipe would block for ever
            raise StoreError("not a regular file")
        yield
    except (StoreError, *DAMAGE) as error:
        raise UnreadableImage(f"{printable(path)}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format (PNG, JPEG, WebP, TIFF, BMP)"
    if isinstance(error, MemoryError):
        return "does not fit into this machine's memory"
    if isinstance(error, Image.DecompressionBombError):
        return f"larger than {limit_megapixels():.0f} megapixels; if you trust it, raise the limit by --max-megapixels"
    if isinstance(error, StoreError):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return f"truncated or damaged image ({' '.join(str(error).split())[:80]})"


def _is_png16(path: Path) -> bool:
    """Whether a PNG file has 16 bits a channel, which Pillow hides where there are several."""
    with open(path, "rb") as file:
        return file.read(PNG_DEPTH_AT + 1)[PNG_DEPTH_AT] == 16


def _read_png16(path: Path, image: Image.Image) -> Picture:
    check_size(image.height, image.width)
    content = path.read_bytes()
    if image.height * image.width > DEFLATE_RATIO * len(content):  # before memory is allocated for the pixels
        raise ValueError(f"{image.width} x {image.height} pixels cannot fit in {len(content)} bytes")
    values = imagecodecs.png_decode(content)
    picture = from_channels(values if values.ndim == 3 else values[..., None])
    return replace(picture, icc=image.info.get("icc_profile") or b"")


def _exif_of(image: Image.Image, path: Path) -> tuple[bytes, int]:
    """The EXIF data of an opened file, and the orientation; of a PNG without decoding it."""
    if image.format != "PNG":
        return image.info.get("exif") or b"", orientation_of(image)
    exif = image.info.get("exif") or _exif_as_text(image) or _late_exif(path)
    return exif, orientation_in(exif)


def _exif_as_text(image: Image.Image) -> bytes:
    """The EXIF data of a PNG file as ImageMagick writes it: a line, a name, a length, and hexadecimal digits."""
    lines = str(image.info.get("Raw profile type exif", "")).split("\n")[3:]
    try:
        return bytes.fromhex("".join(lines))
    except ValueError:
        return b""


def _late_exif(path: Path) -> bytes:
    """The EXIF data that follows a PNG's pixels, as some programs add it."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LATE_EXIF_BYTES))
        tail = file.read()
    place = tail.rfind(b"eXIf")
    if place < 4:
        return b""
    (length,) = struct.unpack_from(">I", tail, place - 4)
    data, checksum = tail[place + 4 : place + 4 + length], tail[place + 4 + length :][:4]
    return EXIF_START + data if checksum == struct.pack(">I", zlib.crc32(b"eXIf" + data)) else b""
