import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from championship_sr.extract.config import ImagesConfig
from championship_sr.extract.images.bicubic import downscale
from championship_sr.extract.images.decode import UnreadableImage, decode
from championship_sr.extract.images.pairs import find_pairs
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import checked_name


def save(path: Path, height=8, width=12, seed=0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(array).save(path)
    return array


def save_16_bit_png(path: Path, array: np.ndarray) -> None:
    """A 16-bit PNG written by hand: Pillow writes none in colour."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_colour_is_decoded_exactly(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(decode(tmp_path / f"a{suffix}"), array)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_become_rgb_by_repeating_grey_and_leaving_out_alpha(tmp_path, mode):
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    image = Image.fromarray(rgba).convert(mode)
    image.save(tmp_path / "a.png")
    got = decode(tmp_path / "a.png")
    array = np.asarray(image.convert("RGBA" if mode == "P" else mode)).astype(np.uint8)
    if mode == "1":
        array = array * 255
    expected = array[..., :3] if array.ndim == 3 and array.shape[2] > 2 else array.reshape(5, 7, -1)[..., :1]
    assert np.array_equal(got, np.broadcast_to(expected, (5, 7, 3)))


def test_the_colours_of_a_transparent_palette_are_kept(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=0)
    assert decode(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_its_16_bits(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), np.uint16)
    save_16_bit_png(tmp_path / "a.png", array)
    expected = array[..., :3] if channels > 2 else array[..., :1].repeat(3, 2)
    got = decode(tmp_path / "a.png")
    assert got.dtype == np.uint16 and np.array_equal(got, expected)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_16_bit_tiff_keeps_its_16_bits(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 65536, shape, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array)
    expected = array if len(shape) == 3 else array[..., None].repeat(3, 2)
    assert np.array_equal(decode(tmp_path / "a.tif"), expected)


def test_an_lr_image_of_16_bits_is_seen_as_8(tmp_path):
    hr = np.random.default_rng(0).integers(0, 65536, (8, 12, 3), np.uint16)
    (tmp_path / "hr").mkdir()
    save_16_bit_png(tmp_path / "hr/a.png", hr)
    (pair,) = find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),)), 4)
    lr, got = pair.read()
    assert np.array_equal(got, hr)
    assert np.array_equal(lr, np.round(downscale(hr, 4) / 257).astype(np.uint8))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_truncated_image_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    save(path, 64, 64)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UnreadableImage, match=f"a{suffix}: (truncated or damaged image|not an image)"):
        decode(path)


LAYOUTS = {
    "document": ("train_HR/a.png", "train_LR/a.png"),
    "DIV2K": ("DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X4/0001x4.png"),
    "Flickr2K": ("Flickr2K_HR/000001.png", "Flickr2K_LR_bicubic/X4/000001x4.png"),
    "benchmark": ("HR/baby.png", "LR_bicubic/X4/babyx4.png"),
    "shared names": ("HR/img_001.png", "LR_x4/img_001.png"),
    "BasicSR benchmark": ("GTmod12/baby.png", "LRbicx4/baby.png"),
    "HR and LR": ("HR/img_001_HR.png", "LR/img_001_LR.png"),
    "two data sets": ("DF2K/DIV2K/DIV2K_train_HR/0001.png", "DF2K/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_use_is_found(tmp_path, layout):
    hr_name, lr_name = LAYOUTS[layout]
    hr, lr = save(tmp_path / hr_name), save(tmp_path / lr_name, 2, 3, seed=1)
    root = tmp_path / "DF2K" if layout == "two data sets" else tmp_path
    (pair,) = find_pairs(ImagesConfig(roots=(str(root),)), 4)
    assert (pair.name, pair.lr_source, pair.lr_size) == (Path(hr_name).name, "file", (2, 3))
    got = pair.read()
    assert np.array_equal(got[0], lr) and np.array_equal(got[1], hr)


def test_a_split_is_chosen(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / f"{split}_HR/{split}.png")
        save(tmp_path / f"{split}_LR/{split}.png", 2, 3)
    for split, names in (("train", ["train"]), ("val", ["val"]), ("all", ["train", "val"])):
        assert [p.id for p in find_pairs(ImagesConfig(roots=(str(tmp_path),), split=split), 4)] == names


def test_lr_is_made_by_the_bicubic_recipe_of_hr_cut_to_multiples(tmp_path):
    hr = save(tmp_path / "photos/a.png", 11, 14)
    (pair,) = find_pairs(ImagesConfig(hr=(str(tmp_path / "photos"),)), 4)
    lr, got = pair.read()
    assert pair.lr_source == "bicubic"
    assert np.array_equal(got, hr[:8, :12]) and np.array_equal(lr, downscale(hr[:8, :12], 4))


def test_a_name_of_its_own_wins_over_a_name_with_the_scale(tmp_path):
    for name in ("a", "ax4"):
        save(tmp_path / f"hr/{name}.png")
        save(tmp_path / f"lr/{name}.png", 2, 3)
    pairs = find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)
    assert [(p.hr.name, p.lr.name) for p in pairs] == [("a.png", "a.png"), ("ax4.png", "ax4.png")]


def test_images_of_one_name_in_two_folders_get_ids_of_their_own(tmp_path):
    for folder in ("one", "two"):
        save(tmp_path / folder / "a b.png")
    save(tmp_path / "two" / "c.png")
    pairs = find_pairs(ImagesConfig(hr=(str(tmp_path / "one"), str(tmp_path / "two"))), 4)
    assert [p.id for p in pairs] == ["one-a-b", "two-a-b", "c"]


def test_two_benchmarks_of_the_same_names_are_told_apart_by_their_own(tmp_path):
    for name in ("Set5", "Set14"):
        save(tmp_path / name / "HR/img_001.png")
    pairs = find_pairs(ImagesConfig(roots=(str(tmp_path / "Set5"), str(tmp_path / "Set14"))), 4)
    assert [p.id for p in pairs] == ["Set5-HR-img_001", "Set14-HR-img_001"]


def test_images_in_subfolders_are_found_and_named_by_their_paths(tmp_path):
    for name in ("0000001", "0001000/0000001", "0001000/0000002", "0002000/deep/0000001"):
        save(tmp_path / f"hr/{name}.png")
        save(tmp_path / f"lr/{name}x4.png", 2, 3)
    save(tmp_path / "hr/.thumbnails/0000001.png", 1, 1)
    save(tmp_path / "hr/._0000001.png", 1, 1)
    (tmp_path / "hr/0002000/back").symlink_to(tmp_path / "hr")
    pairs = find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)
    ids = ["0000001", "0001000-0000001", "0001000-0000002", "0002000-deep-0000001"]
    assert sorted(pair.id for pair in pairs) == ids
    assert all(pair.lr.parent.name == pair.hr.parent.name or pair.id == "0000001" for pair in pairs)


def test_an_id_does_not_depend_on_the_images_that_are_added_later(tmp_path):
    def ids() -> dict[str, str]:
        pairs = find_pairs(ImagesConfig(hr=(str(tmp_path),)), 4)
        return {pair.hr.relative_to(tmp_path).as_posix(): pair.id for pair in pairs}

    save(tmp_path / "甲.png")
    save(tmp_path / "one/a.png")
    first = ids()
    save(tmp_path / "乙.png")
    save(tmp_path / "two/a.png")
    save(tmp_path / "a.png")
    later = ids()
    assert first.items() < later.items() and len(set(later.values())) == 5
    assert [later[f"{name}.png"] for name in ("a", "one/a", "two/a")] == ["a", "one-a", "two-a"]


@pytest.mark.parametrize(
    "names",
    [
        ("甲", "乙", "丙"),
        ("фото", "море"),
        ("été", "êté"),
        ("a b", "a-b"),
        ("甲" * 83, "乙" * 83),
        (os.fsdecode(b"\xff"), os.fsdecode(b"\xfe1")),
        ("x.tmp", "y.rebuild"),
        ("_", "-.-"),
    ],
    ids=["CJK", "Cyrillic", "accents", "a space", "253 bytes", "no UTF-8", "endings of ours", "signs alone"],
)
def test_names_in_any_script_have_ids_of_their_own(tmp_path, names):
    for name in names:
        save(tmp_path / f"{name}.png")
    pairs = find_pairs(ImagesConfig(hr=(str(tmp_path),)), 4)
    assert len({pair.id for pair in pairs}) == len(names) == len(pairs)
    for pair in pairs:
        assert checked_name(pair.id, "image") == pair.id and len(pair.id) < 220
        assert pair.name.encode() and pair.read()[0].shape == (2, 3, 3)


def test_hr_that_is_no_multiple_is_cut_to_its_lr_and_said_once(tmp_path, caplog):
    whole = {name: save(tmp_path / f"hr/{name}.png", *size) for name, size in (("a", (11, 15)), ("b", (9, 12)))}
    for name in ("a", "b"):
        save(tmp_path / f"lr/{name}x4.png", 2, 3)
    pairs = find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)
    for pair in pairs:
        lr, hr = pair.read()
        assert np.array_equal(hr, whole[pair.id][:8, :12]) and lr.shape == (2, 3, 3) and pair.lr_size == (2, 3)
    assert [record.message for record in caplog.records] == [
        "HR is cropped on the right and bottom to 4 times its LR in 2 images: a.png, b.png"
    ]


def test_hr_that_is_larger_by_a_pixel_of_lr_is_another_image(tmp_path):
    save(tmp_path / "hr/a.png", 12, 12)
    save(tmp_path / "lr/ax4.png", 2, 3)
    with pytest.raises(StoreError, match=r"hr/a.png: 12 x 12 is not 4 times ax4.png, 2 x 3"):
        find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)


@pytest.mark.parametrize("named", [False, True])
def test_hr_and_lr_in_one_folder_are_told_by_their_names(tmp_path, named):
    for name in ("Canon_001", "Canon_002"):
        save(tmp_path / f"{name}_HR.png")
        save(tmp_path / f"{name}_LR4.png", 2, 3)
    folder = (str(tmp_path),)
    pairs = find_pairs(ImagesConfig(hr=folder, lr=folder if named else ()), 4)
    assert [(pair.id, pair.lr.name) for pair in pairs] == [
        ("Canon_001", "Canon_001_LR4.png"),
        ("Canon_002", "Canon_002_LR4.png"),
    ]


def test_a_turned_photograph_is_paired_with_its_upright_lr(tmp_path):
    array = save(tmp_path / "plain/a.png", 12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    (tmp_path / "hr").mkdir()
    Image.fromarray(np.rot90(array)).save(tmp_path / "hr/a.png", exif=exif)
    save(tmp_path / "lr/a.png", 3, 2)
    (pair,) = find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)
    assert pair.lr_size == (3, 2) and np.array_equal(pair.read()[1], array)


def test_hostile_pipes_and_huge_headers_are_faults_beside_others(tmp_path):
    save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    whole = (tmp_path / "good.png").read_bytes()
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 16, 6, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    left_out = []
    (pair,) = find_pairs(ImagesConfig(hr=(str(tmp_path),)), 4, left_out)
    assert pair.id == "good" and len(left_out) == 2
    assert "huge.png: larger than 179 megapixels" in left_out[0] and "pipe.png: not a regular file" in left_out[1]


def test_a_folder_named_twice_is_refused(tmp_path):
    save(tmp_path / "hr/a.png")
    with pytest.raises(StoreError, match=r"hr/a.png: would have the same id as .*hr/a.png: a"):
        find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"), str(tmp_path / "hr"))), 4)


def test_everything_that_does_not_fit_is_reported_at_once(tmp_path):
    for name, size in (("good", (8, 12)), ("wrong", (8, 12)), ("alone", (8, 12)), ("text", (8, 12))):
        save(tmp_path / f"hr/{name}.png", *size)
    for name, size in (("good", (2, 3)), ("wrong", (3, 3)), ("orphan", (2, 3)), ("text", (2, 3))):
        save(tmp_path / f"lr/{name}x4.png", *size)
    (tmp_path / "lr/textx4.png").write_text("no image")
    with pytest.raises(StoreError) as caught:
        find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)
    message = str(caught.value)
    assert message.startswith("4 images do not fit: ") and "\n" not in message
    for part in (
        "hr/alone.png: has no LR image",
        "lr/orphanx4.png: has no HR image",
        "hr/wrong.png: 8 x 12 is not 4 times wrongx4.png, 3 x 3",
        "lr/textx4.png: not an image",
    ):
        assert part in message
    assert "good" not in message


def test_folders_of_other_images_are_reported_image_by_image(tmp_path):
    save(tmp_path / "hr/a.png")
    save(tmp_path / "lr/b.png", 2, 3)
    with pytest.raises(StoreError, match=r"2 images do not fit: .*a.png: has no LR.*b.png: has no HR"):
        find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),), lr=(str(tmp_path / "lr"),)), 4)


def test_too_many_faults_go_to_the_log(tmp_path, caplog):
    for i in range(13):
        save(tmp_path / f"hr/a{i:02d}.png", 2, 2)
    with pytest.raises(StoreError, match=r"13 images do not fit: .*; and 3 more, in the log"):
        find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),)), 4)
    assert [record.message.rpartition("/")[2][:7] for record in caplog.records] == ["a10.png", "a11.png", "a12.png"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"hr": ("nowhere",)}, "nowhere: no such folder"),
        ({"hr": ("empty",)}, "empty: no images in it"),
        ({"roots": ("empty",)}, "empty: no images in a known layout"),
    ],
)
def test_folders_without_images_are_refused(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(StoreError, match=message):
        find_pairs(ImagesConfig(**data), 4)


def test_conversions_are_said_once(tmp_path, caplog):
    (tmp_path / "hr").mkdir()
    for i in range(3):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"hr/{i}.png")
    find_pairs(ImagesConfig(hr=(str(tmp_path / "hr"),)), 4)
    assert [r.message for r in caplog.records if "RGB" in r.message] == [
        "converted to RGB (grey repeated, alpha dropped): 3 of mode L"
    ]
