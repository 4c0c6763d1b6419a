"""Photographs in and out of files: transparency, 16 bits, EXIF and colour profile go through untouched."""

import io
import logging
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from championship_sr.extract.images.decode import eight_bit
from championship_sr.extract.images.png16 import Png16, is_png16, read_png16, write_png16
from championship_sr.store.errors import ConfigError, StoreError

log = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
           ".bmp": "BMP"}  # fmt: skip
SIXTEEN_BIT = ("PNG", "TIFF")
TRANSPARENT = ("PNG", "TIFF", "WEBP")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_ICC = 34675
EXIF_START = b"Exif\0\0"  # Pillow has it in front, PNG files do not
EXIF_IFD, EXIF_WIDTH, EXIF_HEIGHT = 0x8769, 0xA002, 0xA003  # Exif 2.32, tables 3 and 4


@dataclass(frozen=True)
class Picture:
    """A photograph as its file holds it.

    pixels  (h, w, 3), uint8 or uint16
    alpha   (h, w) of the same type, or None
    grey    whether the file had one channel
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    exif: bytes = b""
    icc: bytes = b""


def is_image(path: Path) -> bool:
    """Whether the file's name says that it is an image of a format that is read and written."""
    return path.suffix.lower() in FORMATS


def read_picture(path: Path) -> Picture:
    """The picture in a file.

    raises  StoreError if it cannot be read to its last pixel
    """
    try:
        picture = _read_16_bit(path)
        if picture is not None:
            return picture
        with Image.open(path) as image:
            return from_pil(image)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise StoreError(f"{path}: not a readable image: {error}") from None
    except (OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error, tifffile.TiffFileError) as error:
        # what Pillow, tifffile and our own reader raise on damaged files
        raise StoreError(f"{path}: damaged image: {' '.join(str(error).split())}") from None


def from_pil(image: Image.Image) -> Picture:
    """The picture of a PIL image with 8 bits a channel."""
    if getattr(image, "n_frames", 1) > 1:
        log.warning("%s: %d frames; the first is used", getattr(image, "filename", "image"), image.n_frames)
    image.load()
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    icc = b"" if image.mode == "CMYK" else image.info.get("icc_profile") or b""  # of a colour space that is left
    exif = image.info.get("exif") or b""
    values = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    alpha = np.ascontiguousarray(values[..., 3]) if transparent else None
    return Picture(np.ascontiguousarray(values[..., :3]), alpha, grey, exif, icc)


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a PIL image of 8 bits a channel."""
    image = Image.fromarray(eight_bit(picture.pixels))
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(eight_bit(picture.alpha)))
    for key, value in (("exif", picture.exif), ("icc_profile", picture.icc)):
        if value:
            image.info[key] = value
    return image


def write_picture(path: Path, picture: Picture, *, quality: int = 95, overwrite: bool = False) -> None:
    """Writes the picture in the format of the name's ending, whole or not at all.

    quality  of JPEG and WebP, 1..100; WebP at 100 is lossless
    raises   StoreError if the file exists, or if the format cannot hold the picture's transparency
    """
    kind = format_of(path)
    if path.exists() and not overwrite:
        raise StoreError(f"{path}: exists. Give --overwrite to replace it")
    if picture.alpha is not None and kind not in TRANSPARENT:
        raise StoreError(f"{path}: {kind} cannot hold transparency. Choose --format png")
    if picture.pixels.dtype != np.uint8 and kind not in SIXTEEN_BIT:
        log.warning("%s: %s holds 8 bits a channel; 16-bit values are rounded", path, kind)
    picture = replace(picture, exif=_with_size(picture.exif, picture.pixels.shape))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            if picture.pixels.dtype != np.uint8 and kind in SIXTEEN_BIT:
                (_write_png16 if kind == "PNG" else _write_tiff16)(file, picture)
            else:
                _save(file, picture, kind, quality)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Makes the folder, so that one that cannot be written is found before any work.

    raises  StoreError, OSError
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{folder}: cannot be written to")


def format_of(path: Path) -> str:
    """Pillow's name of the format that the file's ending means.

    raises  ConfigError naming the formats that there are
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: unknown format; expected one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def _save(file: io.BufferedWriter, picture: Picture, kind: str, quality: int) -> None:
    options = {"exif": picture.exif, "icc_profile": picture.icc or None}
    if kind in ("JPEG", "WEBP"):
        options["quality"] = quality
    if kind == "JPEG":
        options["subsampling"] = 0 if quality >= 90 else 2
    if kind == "WEBP":
        options |= {"lossless": quality == 100, "exact": True}
    to_pil(picture).save(file, kind, **{key: value for key, value in options.items() if value})


def _with_size(exif: bytes, shape: tuple[int, ...]) -> bytes:
    """The EXIF data with the size of the enlarged picture, where it states one."""
    if not exif:
        return exif
    data = Image.Exif()
    data.load(exif)
    inner = data.get_ifd(EXIF_IFD)
    if EXIF_WIDTH not in inner and EXIF_HEIGHT not in inner:
        return exif
    inner[EXIF_WIDTH], inner[EXIF_HEIGHT] = shape[1], shape[0]
    return data.tobytes()


def _read_16_bit(path: Path) -> Picture | None:
    """The picture in a PNG or TIFF file of 16 bits a channel; None for any other file."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start in TIFF_STARTS:
        return _read_tiff16(path)
    if not is_png16(path):
        return None
    png = read_png16(path)
    return _from_channels(png.values, EXIF_START + png.exif if png.exif else b"", png.icc)


def _read_tiff16(path: Path) -> Picture | None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        if page.dtype != np.uint16:
            return None
        icc = bytes(page.tags[TIFF_ICC].value) if TIFF_ICC in page.tags else b""
        values = page.asarray()
        if page.axes.startswith("S"):  # one plane a channel
            values = np.moveaxis(values, 0, -1)
    return _from_channels(np.atleast_3d(values), b"", icc)


def _from_channels(values: np.ndarray, exif: bytes, icc: bytes) -> Picture:
    channels = values.shape[-1]
    if values.ndim != 3 or channels > 4:
        raise ValueError(f"{values.shape} values; expected 1 to 4 channels")
    pixels = values[..., :1].repeat(3, axis=-1) if channels < 3 else values[..., :3]
    alpha = np.ascontiguousarray(values[..., -1]) if channels in (2, 4) else None
    return Picture(np.ascontiguousarray(pixels), alpha, channels < 3, exif, icc)


def _channels(picture: Picture) -> np.ndarray:
    """(h, w, C) with C = 1 to 4 as the file shall have them."""
    if picture.grey:
        parts = [np.round(picture.pixels.mean(axis=-1, keepdims=True)).astype(picture.pixels.dtype)]
    else:
        parts = [picture.pixels]
    if picture.alpha is not None:
        parts.append(picture.alpha[..., None])
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _write_tiff16(file: io.BufferedWriter, picture: Picture) -> None:
    values = _channels(picture)
    extra = {"extrasamples": ["unassalpha"]} if picture.alpha is not None else {}
    tags = [(TIFF_ICC, 7, len(picture.icc), picture.icc, True)] if picture.icc else []
    if picture.exif:
        log.warning("16-bit TIFF is written without EXIF data; PNG keeps it")
    photometric = "minisblack" if picture.grey else "rgb"
    values = values[..., 0] if values.shape[-1] == 1 else values
    tifffile.imwrite(file, values, photometric=photometric, compression="zlib", extratags=tags, metadata=None, **extra)


def _write_png16(file: io.BufferedWriter, picture: Picture) -> None:
    write_png16(file, Png16(_channels(picture), picture.exif.removeprefix(EXIF_START), picture.icc))
