"""Image files in: upright, in the right values, and no file that hangs, floods or silently shows something else."""

import os
import struct
import threading
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import data, integers, sampled_from
from PIL import Image, ImageOps

from championship_sr.extract.images.decode import UnreadableImage, decode, read_header, read_picture
from championship_sr.extract.images.picture import ORIENTATION, Picture, allow_megapixels, filled, from_pil
from championship_sr.store.errors import StoreError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7, 3), np.uint16)


def exif(orientation: int) -> bytes:
    entries = Image.Exif()
    entries[ORIENTATION] = orientation
    return entries.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_orientation_is_applied_as_pillow_does(tmp_path, name, orientation):
    path = tmp_path / name
    Image.fromarray(RGB).save(path, exif=exif(orientation))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, expected) and np.array_equal(decode(path), expected)
    assert read_header(path).size == expected.shape[:2]
    if picture.exif:
        entries = Image.Exif()
        entries.load(picture.exif)
        assert entries[ORIENTATION] == 1
    with Image.open(path) as image:
        assert np.array_equal(from_pil(image).pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bits_is_applied_too(tmp_path, orientation):
    import imagecodecs

    Image.fromarray(RGB).save(tmp_path / "rgb.png", exif=exif(orientation))
    expected = read_picture(tmp_path / "rgb.png").pixels.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", RGB.astype(np.uint16) * 257, extratags=[(274, 3, 1, orientation, True)])
    content = imagecodecs.png_encode(RGB.astype(np.uint16) * 257)
    tag = chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))
    (tmp_path / "early.png").write_bytes(content[:33] + tag + content[33:])
    (tmp_path / "late.png").write_bytes(content[:-12] + tag + content[-12:])  # behind the pixels, as some programs do
    for name in ("a.tif", "early.png", "late.png"):
        assert np.array_equal(decode(tmp_path / name), expected), name
        assert read_header(tmp_path / name).size == expected.shape[:2]


def test_imagemagicks_orientation_is_applied(tmp_path):
    content = exif(6)
    text = f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()
    Image.fromarray(RGB).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    more = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    (tmp_path / "a.png").write_bytes(whole[:33] + more + whole[33:])
    assert np.array_equal(decode(tmp_path / "a.png"), np.rot90(RGB, -1))
    assert read_header(tmp_path / "a.png").size == (7, 5)


def test_damaged_exif_data_turns_nothing(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(decode(tmp_path / "a.png"), RGB)


def grey(values: np.ndarray) -> np.ndarray:
    return values[..., None].repeat(3, axis=2)


FLOATS = RNG.random((5, 7, 3), np.float32)
TIFFS = {
    "lzw": (DEEP, {"photometric": "rgb", "compression": "lzw", "predictor": True}, DEEP),
    "planar": (np.moveaxis(DEEP, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, DEEP),
    "tiled": (DEEP, {"photometric": "rgb", "tile": (16, 16), "compression": "zstd"}, DEEP),
    "big-endian": (DEEP, {"photometric": "rgb", "byteorder": ">"}, DEEP),
    "BigTIFF": (DEEP, {"photometric": "rgb", "bigtiff": True}, DEEP),
    "grey": (DEEP[..., 0], {"photometric": "minisblack"}, grey(DEEP[..., 0])),
    "white is zero": (DEEP[..., 0], {"photometric": "miniswhite"}, grey(65535 - DEEP[..., 0])),
    "float RGB": (FLOATS, {"photometric": "rgb"}, np.round(FLOATS.astype(np.float64) * 65535)),
    "float grey": (FLOATS[..., 0], {}, grey(np.round(FLOATS[..., 0].astype(np.float64) * 65535))),
    "8-bit lzw": (RGB, {"photometric": "rgb", "compression": "lzw"}, RGB),
    "8-bit planar": (np.moveaxis(RGB, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "8-bit white is zero": (RGB[..., 0], {"photometric": "miniswhite"}, grey(255 - RGB[..., 0])),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_each_kind_of_tiff_shows_its_values(tmp_path, kind):
    values, options, expected = TIFFS[kind]
    options = dict(options)
    byteorder, bigtiff = options.pop("byteorder", None), options.pop("bigtiff", False)
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=byteorder, bigtiff=bigtiff) as file:
        file.write(values, metadata=None, **options)
    got = decode(tmp_path / "a.tif")
    assert got.dtype == (np.uint8 if kind.startswith("8-bit") else np.uint16) and np.array_equal(got, expected)
    assert read_header(tmp_path / "a.tif").size == (5, 7)


def test_hostile_tiffs_whose_strips_are_missing_are_not_black(tmp_path):
    whole = tmp_path / "a.tif"
    tifffile.imwrite(whole, DEEP, photometric="rgb", compression="zlib", rowsperstrip=1)
    with tifffile.TiffFile(whole) as tiff:
        names = ("StripByteCounts", "StripOffsets", "ImageLength")
        places = [tiff.pages[0].tags[name].valueoffset for name in names]
    content = whole.read_bytes()
    changed = {
        "no bytes": (places[0], struct.pack("<I", 0)),
        "behind the end": (places[1], struct.pack("<I", len(content))),
        "many rows": (places[2], struct.pack("<I", 8_000_000)),
        "no rows": (places[2], struct.pack("<I", 0)),
    }
    for kind, (place, value) in changed.items():
        path = tmp_path / f"{kind}.tif"
        path.write_bytes(content[:place] + value + content[place + len(value) :])
        with pytest.raises(UnreadableImage, match=rf"{kind}\.tif: truncated or damaged image"):
            read_picture(path)


def test_of_several_pages_the_first_is_used_and_it_is_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([DEEP, DEEP // 2]), photometric="rgb")
    assert np.array_equal(decode(tmp_path / "a.tif"), DEEP)
    assert caplog.messages == [f"{tmp_path}/a.tif: more than one frame; using the first"]


def test_colours_that_were_multiplied_by_alpha_are_divided_again(tmp_path):
    alpha = np.full((5, 7, 1), 32768, np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", np.concatenate([DEEP // 2, alpha], axis=2), photometric="rgb", extrasamples=["assocalpha"]
    )
    assert np.abs(decode(tmp_path / "a.tif").astype(int) - DEEP).max() <= 2


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (DEEP[..., 0].astype(np.uint32), {}, "a TIFF of 1 x 32 bits, MINISBLACK, uint32; expected 8 or 16 bits"),
        (DEEP[..., 0].astype(np.int16), {}, "1 x 16 bits, MINISBLACK, int16; expected 8 or 16 bits, or floating point"),
        (
            DEEP.repeat(2, 2)[..., :4],
            {"photometric": "separated"},
            "4 x 16 bits, SEPARATED, uint16; convert it to grey or",
        ),
        (FLOATS * 255, {"photometric": "rgb"}, r"floating-point values from \d\.\d+ to 25\d\.\d+; expected 0\.\.1"),
        (np.full((5, 7), np.nan, np.float32), {}, r"values from nan to nan; expected 0\.\.1"),
        (np.full((5, 7), -0.5, np.float16), {}, r"values from -0\.5 to -0\.5; expected 0\.\.1"),
    ],
    ids=["32 bits", "signed", "CMYK", "floats to 255", "NaN", "negative"],
)
def test_values_without_an_agreed_range_are_refused_by_name(tmp_path, values, options, message):
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, **options)
    with pytest.raises(UnreadableImage, match=f"a.tif: .*{message}"):
        decode(tmp_path / "a.tif")


def test_a_pil_image_of_16_bit_grey_is_not_white(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(from_pil(image).pixels, grey(DEEP[..., 0]))
    assert np.array_equal(decode(tmp_path / "a.png"), grey(DEEP[..., 0]))
    with pytest.raises(StoreError, match="mode I; convert it to grey or RGB of 8 or 16 bits"):
        from_pil(Image.new("I", (3, 3)))


def test_what_cannot_be_seen_has_the_colour_beside_it():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:] = (200, 100, 50)
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:, 3:] = 255
    alpha[:, 3] = 1  # hardly to be seen, but its colour counts
    assert (filled(Picture(pixels, alpha)) == (200, 100, 50)).all()
    nothing = Picture(pixels, np.zeros_like(alpha))
    assert np.array_equal(filled(nothing), pixels) and filled(Picture(pixels)) is pixels


def test_hostile_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "run.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "empty.png").write_bytes(b"")
    no_image = "not an image of a known format (PNG, JPEG, WebP, TIFF, BMP)"
    expected = {
        "pipe": "not a regular file",
        "loop": "Too many levels of symbolic links",
        "gone": "no such file",
        "folder": "not a regular file",
        "run": no_image,
        "empty": no_image,
    }
    messages = {}

    def read() -> None:
        for name in expected:
            for reader in (read_header, read_picture):
                with pytest.raises(UnreadableImage) as caught:
                    reader(tmp_path / f"{name}.png")
                messages[name] = str(caught.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert messages == {name: f"{tmp_path / name}.png: {text}" for name, text in expected.items()}


def test_a_name_that_is_no_utf8_is_written_as_text(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(b"text")
    with pytest.raises(UnreadableImage) as caught:
        decode(path)
    assert (
        str(caught.value).encode().endswith(rb"/\xff.png: not an image of a known format (PNG, JPEG, WebP, TIFF, BMP)")
    )


def test_the_limit_on_size_holds_for_every_format_and_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("CHAMPIONSHIP_SR_MAX_MEGAPIXELS", "1")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "deep.tif", DEEP, photometric="rgb")
    allow_megapixels(0.00002)
    for name in ("a.png", "deep.png", "deep.tif"):
        for reader in (read_header, read_picture):
            with pytest.raises(UnreadableImage, match=f"{name}: larger than 0 megapixels; .*--max-megapixels"):
                reader(tmp_path / name)
    allow_megapixels(0.001)
    assert {decode(tmp_path / name).shape for name in ("a.png", "deep.png", "deep.tif")} == {(5, 7, 3)}


SMALL = ("a.png", "a.jpg", "a.webp", "a.tif", "a.bmp", "deep.png", "deep.tif", "float.tif")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    for name in SMALL[:5]:
        Image.fromarray(RGB).save(folder / name, **({} if name == "a.bmp" else {"exif": exif(6)}))
    Image.fromarray(DEEP[..., 0]).save(folder / "deep.png")
    tifffile.imwrite(folder / "deep.tif", DEEP, photometric="rgb", compression="lzw")
    tifffile.imwrite(folder / "float.tif", FLOATS, photometric="rgb")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")  # Pillow's, on damaged tags
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=sampled_from(SMALL), more=data())
def test_a_hostile_file_ends_in_a_picture_or_in_one_line(small_files, tmp_path, name, more):
    content = bytearray(small_files[name])
    for _ in range(more.draw(integers(1, 4))):
        content[more.draw(integers(0, len(content) - 1))] = more.draw(integers(0, 255))
    path = tmp_path / name
    path.write_bytes(bytes(content))
    try:
        assert read_picture(path).pixels.shape[:2] == read_header(path).size
    except UnreadableImage as error:
        assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
