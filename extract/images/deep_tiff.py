"""TIFF files of more than 8 bits a value, of which Pillow reads few: 16-bit integers, and floating point in 0..1."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffPage

from championship_sr.extract.images.picture import (
    Picture,
    check_size,
    from_channels,
    log,
    sixteen_bit,
    upright,
    upright_size,
)
from championship_sr.store.errors import StoreError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, ICC = 274, 34675  # TIFF 6.0, section 8; ICC.1:2022, annex B.4
KNOWN = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)


@contextmanager
def deep_page(path: Path) -> Iterator[TiffPage | None]:
    """The first page of a TIFF file of more than 8 bits a value; None for any other file."""
    with open(path, "rb") as file:
        is_tiff = file.read(4) in STARTS
    if not is_tiff:
        yield None
        return
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if page.bitspersample > 8 and _has_second(tiff):
            log.warning("%s: more than one frame; using the first", path)
        yield page if page.bitspersample > 8 else None


def _has_second(tiff: tifffile.TiffFile) -> bool:
    try:
        return tiff.pages[1] is not None  # counting all pages may take long if they form a loop
    except IndexError:
        return False


def size_of_page(page: TiffPage) -> tuple[int, int]:
    """Rows and columns, upright."""
    check_size(page.imagelength, page.imagewidth)
    return upright_size(page.imagelength, page.imagewidth, _orientation(page))


def mode_of_page(page: TiffPage) -> str:
    """RGB, or how the file differs from it."""
    return "RGB" if page.samplesperpixel == 3 else f"{page.samplesperpixel} x {page.bitspersample} bits"


def picture_of_page(page: TiffPage) -> Picture:
    """The picture, with 16 bits a channel.

    raises  StoreError for what has no agreed range of values or no agreed colours
    """
    check_size(page.imagelength, page.imagewidth)
    colours = (3, 4) if page.photometric == PHOTOMETRIC.RGB else (1, 2)
    if page.photometric not in KNOWN or page.samplesperpixel not in colours or page.imagedepth != 1:
        raise StoreError(_kind(page) + "; convert it to grey or RGB")
    if page.dtype is None or not (page.dtype.kind == "f" or (page.dtype == np.uint16 and page.bitspersample == 16)):
        raise StoreError(_kind(page) + "; expected 8 or 16 bits, or floating point in 0..1")
    _check_whole(page)
    values = page.asarray()
    values = sixteen_bit(values) if page.dtype.kind == "f" else values
    values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else np.atleast_3d(values)
    if values.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError(f"{values.shape} values, expected {page.imagelength} x {page.imagewidth} pixels")
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        values[..., 0] = 65535 - values[..., 0]
    if page.extrasamples and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA:
        values = _unassociated(values)
    icc = bytes(page.tags[ICC].value) if ICC in page.tags else b""
    return upright(from_channels(values, icc=icc), _orientation(page))


def _check_whole(page: TiffPage) -> None:
    """Raises ValueError if strips or tiles are missing, which tifffile would read as zeros."""
    ends = [
        start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True) if start and count
    ]
    if len(ends) != math.prod(page.chunked) or max(ends) > page.parent.filehandle.size:
        raise ValueError(
            f"{len(ends)} of {math.prod(page.chunked)} strips or tiles are present, or their ends are missing"
        )


def _kind(page: TiffPage) -> str:
    colours = getattr(page.photometric, "name", page.photometric)
    return f"a TIFF of {page.samplesperpixel} x {page.bitspersample} bits, {colours}, {page.dtype}"


def _orientation(page: TiffPage) -> int:
    value = page.tags.valueof(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _unassociated(values: np.ndarray) -> np.ndarray:
    """The colours before they were multiplied by alpha, the last channel."""
    alpha = values[..., -1:].astype(np.float64)
    colours = np.divide(values[..., :-1] * 65535.0, alpha, out=np.zeros(values[..., :-1].shape), where=alpha > 0)
    return np.concatenate([np.round(colours.clip(0, 65535)).astype(np.uint16), values[..., -1:]], axis=-1)
