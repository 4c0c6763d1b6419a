"""Pictures into files: transparency, 16 bits, EXIF data and colour profile are kept if the format supports them."""

import io
import logging
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from championship_sr.extract.images.decode import EXIF_START
from championship_sr.extract.images.picture import BROKEN_EXIF, Picture, eight_bit
from championship_sr.store.errors import ConfigError, StoreError

log = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
           ".bmp": "BMP"}  # fmt: skip
SIXTEEN_BIT = ("PNG", "TIFF")
TRANSPARENT = ("PNG", "TIFF", "WEBP")
TIFF_ICC = 34675
PNG_HEADER_END, PNG_LEVEL = 33, 6  # the signature and the header chunk; what zlib takes by default
EXIF_IFD, EXIF_WIDTH, EXIF_HEIGHT = 0x8769, 0xA002, 0xA003  # Exif 2.32, tables 3 and 4


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
        raise StoreError(f"{path}: already exists. Give --overwrite to replace it")
    if picture.alpha is not None and kind not in TRANSPARENT:
        raise StoreError(f"{path}: {kind} cannot hold transparency. Choose --format png")
    if picture.pixels.dtype != np.uint8 and kind not in SIXTEEN_BIT:
        log.warning("%s: %s has 8 bits per channel; 16-bit values are rounded", path, kind)
    picture = replace(picture, exif=_with_size(picture.exif, picture.pixels.shape))
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.tmp")  # the name itself may be the longest
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
    """Makes the folder, so that an unwritable one is noticed before any work.

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
    options: dict[str, Any] = {"exif": picture.exif, "icc_profile": picture.icc or None}
    if kind in ("JPEG", "WEBP"):
        options["quality"] = quality
    if kind == "JPEG":
        options["subsampling"] = 0 if quality >= 90 else 2
    if kind == "WEBP":
        options |= {"lossless": quality == 100, "exact": True}
    to_pil(picture).save(file, kind, **{key: value for key, value in options.items() if value})


def _with_size(exif: bytes, shape: tuple[int, ...]) -> bytes:
    """The EXIF data with the size of the enlarged picture, if it states a size."""
    if not exif:
        return exif
    data = Image.Exif()
    try:
        data.load(exif)
        inner = data.get_ifd(EXIF_IFD)
        if EXIF_WIDTH not in inner and EXIF_HEIGHT not in inner:
            return exif
        inner[EXIF_WIDTH], inner[EXIF_HEIGHT] = shape[1], shape[0]
        return data.tobytes()
    except BROKEN_EXIF:
        return exif  # as it came


def _channels(picture: Picture) -> np.ndarray:
    """The array (h, w, C) with the C = 1 to 4 channels that the file will have."""
    if picture.grey:
        parts = [np.round(picture.pixels.mean(axis=-1, keepdims=True)).astype(picture.pixels.dtype)]
    else:
        parts = [picture.pixels]
    if picture.alpha is not None:
        parts.append(picture.alpha[..., None])
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _write_tiff16(file: io.BufferedWriter, picture: Picture) -> None:
    values = _channels(picture)
    extra: dict[str, Any] = {"extrasamples": ["unassalpha"]} if picture.alpha is not None else {}
    tags = [(TIFF_ICC, 7, len(picture.icc), picture.icc, True)] if picture.icc else []
    if picture.exif:
        log.warning("16-bit TIFF is written without EXIF data; PNG keeps it")
    photometric = "minisblack" if picture.grey else "rgb"
    values = values[..., 0] if values.shape[-1] == 1 else values
    tifffile.imwrite(file, values, photometric=photometric, compression="zlib", extratags=tags, metadata=None, **extra)


def _write_png16(file: io.BufferedWriter, picture: Picture) -> None:
    values = _channels(picture)
    encoded = imagecodecs.png_encode(values[..., 0] if values.shape[-1] == 1 else values, level=PNG_LEVEL)
    file.write(encoded[:PNG_HEADER_END])
    if picture.icc:
        _write_chunk(file, b"iCCP", b"icc\0\0" + zlib.compress(picture.icc))
    if picture.exif:
        _write_chunk(file, b"eXIf", picture.exif.removeprefix(EXIF_START))
    file.write(memoryview(encoded)[PNG_HEADER_END:])


def _write_chunk(file: io.BufferedWriter, kind: bytes, data: bytes) -> None:
    """One chunk; PNG specification, third edition, section 5.3."""
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
