"""TIFF files of more than 8 bits a value, of which Pillow reads few: 16-bit integers, and floating point in 0..1."""

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
        page = tiff.pages[0]
        if len(tiff.pages) > 1:
            log.warning("%s: %d frames; the first is used", path, len(tiff.pages))
        yield page if page.bitspersample > 8 else None


def size_of_page(page: TiffPage) -> tuple[int, int]:
    """Rows and columns, upright."""
    check_size(page.imagelength, page.imagewidth)
    return upright_size(page.imagelength, page.imagewidth, _orientation(page))


def picture_of_page(page: TiffPage) -> Picture:
    """The picture, with 16 bits a channel.

    raises  StoreError for what has no agreed range of values or no agreed colours
    """
    check_size(page.imagelength, page.imagewidth)
    if page.photometric not in KNOWN or page.samplesperpixel > 4 or page.imagedepth != 1:
        raise StoreError(_kind(page) + "; convert it to grey or RGB")
    if page.dtype is None or not (page.dtype.kind == "f" or (page.dtype == np.uint16 and page.bitspersample == 16)):
        raise StoreError(_kind(page) + "; expected 8 or 16 bits, or floating point in 0..1")
    values = page.asarray()
    values = sixteen_bit(values) if page.dtype.kind == "f" else values
    values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else np.atleast_3d(values)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        values[..., 0] = 65535 - values[..., 0]
    if page.extrasamples and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA:
        values = _unassociated(values)
    icc = bytes(page.tags[ICC].value) if ICC in page.tags else b""
    return upright(from_channels(values, icc=icc), _orientation(page))


def _kind(page: TiffPage) -> str:
    return f"a TIFF of {page.samplesperpixel} x {page.bitspersample} bits, {page.photometric.name}, {page.dtype}"


def _orientation(page: TiffPage) -> int:
    found = page.tags.valueof(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _unassociated(values: np.ndarray) -> np.ndarray:
    """The colours before they were multiplied by alpha, the last channel."""
    alpha = values[..., -1:].astype(np.float64)
    colours = np.divide(values[..., :-1] * 65535.0, alpha, out=np.zeros(values[..., :-1].shape), where=alpha > 0)
    return np.concatenate([np.round(colours.clip(0, 65535)).astype(np.uint16), values[..., -1:]], axis=-1)
