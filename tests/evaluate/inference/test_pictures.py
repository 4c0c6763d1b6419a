"""Pictures through files and back: what must survive, and what must be refused."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from championship_sr.evaluate.inference.pictures import EXIF_HEIGHT, EXIF_IFD, EXIF_WIDTH, to_pil, write_picture
from championship_sr.extract.images.decode import read_picture
from championship_sr.extract.images.picture import Picture, from_pil
from championship_sr.store.errors import ConfigError, StoreError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(width: int = 5) -> bytes:
    data = Image.Exif()
    data[0x010F] = "A camera"
    data.get_ifd(EXIF_IFD).update({EXIF_WIDTH: width, EXIF_HEIGHT: 4})
    return data.tobytes()


def picture(dtype: type, *, alpha: bool = False, grey: bool = False) -> Picture:
    rng = np.random.default_rng(1)
    pixels = rng.integers(np.iinfo(dtype).max, size=(300, 7, 3), dtype=dtype)  # more rows than are filtered at once
    pixels = pixels[..., :1].repeat(3, axis=-1) if grey else pixels
    layer = rng.integers(np.iinfo(dtype).max, size=(300, 7), dtype=dtype) if alpha else None
    return Picture(pixels, layer, grey, exif(), SRGB)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_8_bit_pictures_survive(tmp_path, name, alpha, grey):
    before = picture(np.uint8, alpha=alpha, grey=grey)
    write_picture(tmp_path / name, before, quality=100)
    after = read_picture(tmp_path / name)
    assert np.array_equal(after.pixels, before.pixels) and after.icc == SRGB
    assert np.array_equal(after.alpha, before.alpha) if alpha else after.alpha is None
    assert after.grey == grey or name == "a.webp"  # WebP has no grey


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_pictures_survive(tmp_path, name, alpha, grey):
    before = picture(np.uint16, alpha=alpha, grey=grey)
    write_picture(tmp_path / name, before)
    after = read_picture(tmp_path / name)
    assert after.pixels.dtype == np.uint16 and np.array_equal(after.pixels, before.pixels)
    assert np.array_equal(after.alpha, before.alpha) if alpha else after.alpha is None
    assert after.grey == grey and after.icc == SRGB


def test_other_programs_read_our_16_bit_files(tmp_path):
    before = picture(np.uint16)
    for name in ("a.png", "a.tif"):
        write_picture(tmp_path / name, before)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), before.pixels)
    with Image.open(tmp_path / "a.png") as image:
        # Pillow keeps the upper byte of each value
        assert np.array_equal(np.asarray(image), before.pixels >> 8)
        assert image.getexif()[0x010F] == "A camera" and image.info["icc_profile"] == SRGB


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_survives_and_states_the_new_size(tmp_path, name):
    write_picture(tmp_path / name, picture(np.uint8))
    with Image.open(tmp_path / name) as image:
        inner = image.getexif().get_ifd(EXIF_IFD)
        assert image.getexif()[0x010F] == "A camera"
    assert (inner[EXIF_WIDTH], inner[EXIF_HEIGHT]) == (7, 300)


def test_a_palette_with_a_transparent_colour_is_read_with_alpha(tmp_path):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    image.save(tmp_path / "p.png", transparency=3)
    assert read_picture(tmp_path / "p.png").alpha.reshape(-1).tolist() == [255] * 3 + [0] + [255] * 12


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"exists\. Give --overwrite"):
        write_picture(path, picture(np.uint8))
    assert path.read_bytes() == b"mine"
    write_picture(path, picture(np.uint8), overwrite=True)
    assert read_picture(path).pixels.shape == (300, 7, 3)


def test_transparency_is_not_lost_silently(tmp_path):
    with pytest.raises(StoreError, match=r"JPEG cannot hold transparency\. Choose --format png"):
        write_picture(tmp_path / "a.jpg", picture(np.uint8, alpha=True))
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *_args, **_options: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_picture(tmp_path / "a.png", picture(np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_truncated_image_is_refused(tmp_path, name, dtype):
    whole = tmp_path / name
    write_picture(whole, picture(dtype))
    whole.write_bytes(whole.read_bytes()[:-4000])
    with pytest.raises(StoreError, match=rf"{name}: (truncated or damaged|not an) image"):
        read_picture(whole)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(StoreError, match="not an image of a known format"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(StoreError, match="no such file"):
        read_picture(tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"expected one of \.png"):
        write_picture(tmp_path / "a.gif", picture(np.uint8))


def test_a_pil_image_is_the_same_as_its_file():
    file = io.BytesIO()
    Image.fromarray(picture(np.uint8).pixels).save(file, "PNG")
    again = to_pil(from_pil(Image.open(file)))
    assert np.array_equal(np.asarray(again), picture(np.uint8).pixels)
