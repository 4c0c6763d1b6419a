"""16-bit PNG: every filter, interlacing, and damage."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers
from PIL import Image, ImageCms

from championship_sr.evaluate.inference.pictures import write_picture
from championship_sr.extract.images.decode import UnreadableImage, read_picture
from championship_sr.extract.images.picture import Picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF = Image.Exif()
EXIF[0x010F] = "A camera"
EXIF = EXIF.tobytes()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # the specification's table 11.1


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: bytes, data: bytes, *more: bytes) -> bytes:
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def header(height: int, width: int, channels: int, interlaced: bool = False) -> bytes:
    return struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, interlaced)


def filtered(values: np.ndarray, rng: np.random.Generator) -> bytes:
    """The rows as an encoder writes them, each with a filter of its own; pixel by pixel, by the specification."""
    height, width, _ = values.shape
    rows, out = values.astype(">u2").view(np.uint8).reshape(height, width, -1).astype(int), b""
    for y, kind in enumerate(rng.integers(5, size=height)):
        out += bytes([kind])
        for x in range(width):
            for i in range(rows.shape[-1]):
                a = rows[y, x - 1, i] if x else 0
                b = rows[y - 1, x, i] if y else 0
                c = rows[y - 1, x - 1, i] if x and y else 0
                nearest = min((abs(a + b - c - p), k) for k, p in enumerate((a, b, c)))[1]
                predicted = (0, a, b, (a + b) // 2, (a, b, c)[nearest])[kind]
                out += bytes([(rows[y, x, i] - predicted) % 256])
    return out


def passes(values: np.ndarray) -> list[np.ndarray]:
    """The seven reduced images, by the table of 8 x 8 pixels in the specification's section 8.2."""
    table = np.array(
        [[1, 6, 4, 6, 2, 6, 4, 6], [7] * 8, [5, 6] * 4, [7] * 8, [3, 6, 4, 6, 3, 6, 4, 6], [7] * 8, [5, 6] * 4, [7] * 8]
    )
    height, width, channels = values.shape
    number = np.tile(table, (height // 8 + 1, width // 8 + 1))[:height, :width]
    found = []
    for n in range(1, 8):
        inside = number == n
        rows, cols = inside.any(axis=1).sum(), inside.any(axis=0).sum()
        if rows and cols:
            found.append(values[inside].reshape(rows, cols, channels))
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=integers(0, 2**32 - 1),
    height=integers(1, 20),
    width=integers(1, 20),
    channels=integers(1, 4),
    interlaced=booleans(),
)
def test_every_filter_and_interlacing_is_undone(tmp_path_factory, seed, height, width, channels, interlaced):
    rng = np.random.default_rng(seed)
    values = rng.integers(2**16, size=(height, width, channels), dtype=np.uint16)
    values[:, ::3] = values[:1, :1]  # ties in the Paeth predictor
    parts = passes(values) if interlaced else [values]
    data = zlib.compress(b"".join(filtered(part, rng) for part in parts))
    path = tmp_path_factory.getbasetemp() / "a.png"
    path.write_bytes(png(header(height, width, channels, interlaced), data))
    rgb = values[..., :3] if channels > 2 else values[..., :1].repeat(3, axis=2)
    picture = read_picture(path)
    assert picture.pixels.dtype == np.uint16 and np.array_equal(picture.pixels, rgb)
    assert np.array_equal(picture.alpha, values[..., -1]) if channels in (2, 4) else picture.alpha is None
    assert picture.grey == (channels < 3)


@settings(max_examples=30, deadline=None)
@given(
    seed=integers(0, 2**32 - 1),
    height=integers(1, 40),
    width=integers(1, 40),
    grey=booleans(),
    alpha=booleans(),
    data=booleans(),
)
def test_what_is_written_is_read_again(tmp_path_factory, seed, height, width, grey, alpha, data):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(2**16, size=(height, width, 3), dtype=np.uint16)
    pixels = pixels[..., :1].repeat(3, axis=-1) if grey else pixels
    layer = rng.integers(2**16, size=(height, width), dtype=np.uint16) if alpha else None
    before = Picture(pixels, layer, grey, *((EXIF, SRGB) if data else (b"", b"")))
    for name in ("a.png", "a.tif"):
        path = tmp_path_factory.getbasetemp() / name
        write_picture(path, before, overwrite=True)
        after = read_picture(path)
        assert np.array_equal(after.pixels, pixels) and after.pixels.dtype == np.uint16
        assert np.array_equal(after.alpha, layer) if alpha else after.alpha is None
        assert (after.grey, after.icc) == (grey, before.icc)
        assert after.exif == (before.exif if name == "a.png" else b"")
    channels = [*(pixels[..., i] for i in ((0,) if grey else range(3))), *([layer] if alpha else [])]
    folder = tmp_path_factory.getbasetemp()
    assert np.array_equal(np.atleast_3d(tifffile.imread(folder / "a.tif")), np.stack(channels, axis=-1))
    with Image.open(folder / "a.png") as image:  # Pillow keeps the upper byte of each value, but for grey
        seen = np.atleast_3d(np.asarray(image))
        seen = seen[..., [0, 3]] if grey and alpha else seen  # it has no mode for grey with alpha of 16 bits
        assert np.array_equal(seen, np.stack(channels, axis=-1) >> (8 if seen.dtype == np.uint8 else 0))
        assert (image.info.get("icc_profile") or b"") == before.icc


ROWS = bytes(2 * (1 + 6 * 3))  # 2 rows of 3 RGB pixels, filter 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "content",
    [
        png(header(2, 3, 3), zlib.compress(ROWS[:-1])),
        png(header(2, 3, 3), b"no zlib"),
        png(header(2, 3, 3), zlib.compress(b"\5" + ROWS[1:])),
        png(header(2, 3, 3)[:9], zlib.compress(ROWS)),
        png(header(2, 3, 3), zlib.compress(ROWS))[:-20],
        png(header(2, 3, 3), zlib.compress(ROWS)).replace(b"\x10\x02", b"\x10\x06", 1),
        png(header(100_000, 100_000, 3), zlib.compress(ROWS)),
        png(header(13_000, 13_000, 3), zlib.compress(ROWS)),
        png(header(2, 3, 3), zlib.compress(ROWS), chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(10_000_000)))),
    ],
    ids=["short", "no zlib", "no such filter", "short header", "cut off", "checksum", "huge", "too few bytes", "bomb"],
)
def test_damage_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(
        UnreadableImage, match=r"a\.png: (truncated or damaged image|not an image|larger than 179 mega)"
    ):
        read_picture(path)


def test_rows_too_many_or_a_damaged_profile_cost_nothing(tmp_path):
    path = tmp_path / "a.png"
    for content in (
        png(header(2, 3, 3), zlib.compress(ROWS * 1000)),
        png(header(2, 3, 3), zlib.compress(ROWS), chunk(b"iCCP", b"icc\0\0junk")),
    ):
        path.write_bytes(content)
        assert not read_picture(path).pixels.any() and read_picture(path).icc == b""
