"""Folders of images that other programs made, as experts: matched, checked, copied, noticed when they change."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from championship_sr.extract.cost.estimate import plan
from championship_sr.extract.experts.recorded import check_live
from championship_sr.extract.images.bicubic import downscale, upscale
from championship_sr.extract.images.decode import decode
from championship_sr.extract.images.picture import eight_bit
from championship_sr.extract.run.extraction import extract
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from tests.extract.stores import checksums

NAMES = ("photo0", "photo1", "photo2")


@pytest.fixture
def save_results(tmp_path, save_photos):
    """Enlarges the photographs as another program would and names them so; returns the expert's entry."""

    def save(name: str = "swinir", ending: str = "_SwinIR", noise: float = 2.0, suffix: str = ".png") -> dict:
        folder, rng = tmp_path / "results" / name, np.random.default_rng(len(name))
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(save_photos().iterdir()):
            hr = decode(path)
            hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
            sr = upscale(eight_bit(downscale(hr, 4)), 4) + rng.normal(0, noise, hr.shape)
            Picture.fromarray(sr.clip(0, 255).round().astype(np.uint8)).save(folder / f"{path.stem}{ending}{suffix}")
        return {"name": name, "images": str(folder)}

    return save


def folder_of(entry: dict) -> Path:
    return Path(entry["images"])


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Picture.open(file))


@pytest.mark.parametrize(
    ("ending", "suffix"), [("", ".png"), ("_SR", ".png"), ("x4", ".tif"), ("_HAT-L_SRx4_pretrained", ".png")]
)
def test_the_store_holds_the_results_pixel_for_pixel(make_config, save_results, ending, suffix):
    entry = save_results(ending=ending, suffix=suffix)
    config = make_config(experts=[entry], codecs={"sr": "uint8"}, variants=["identity", "mirror"])
    assert extract(config).experts["swinir"].shards_written == 3
    store = Store(config.store)
    expert = store.experts["swinir"]
    assert [spec.name for spec in expert.arrays] == ["sr"] and expert.variants == ("identity",)
    for index, name in enumerate(NAMES):
        expected = np.asarray(Picture.open(folder_of(entry) / f"{name}{ending}{suffix}"))
        assert np.array_equal(store.array(index, "swinir", "sr").read(), expected)
    assert not verify(store.root).faults
    assert extract(config).experts["swinir"].shards_written == 0


def test_sixteen_bits_stay(make_config, save_results):
    import tifffile

    entry, values = save_results(), {}
    for path in sorted(folder_of(entry).iterdir()):
        values[path.stem] = np.asarray(Picture.open(path)).astype(np.uint16) * 257 + 3
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), values[path.stem])
    config = make_config(experts=[entry], codecs={"sr": "uint16"})
    extract(config)
    store = Store(config.store)
    assert np.array_equal(store.array(1, "swinir", "sr").read(), values["photo1_SwinIR"])


def test_all_faults_are_in_one_report_before_anything_is_written(make_config, save_results, save_edsr, tmp_path):
    entry, other = save_results(), save_results("hat", "_SR")
    there = folder_of(entry)
    Picture.fromarray(np.zeros((32, 24, 3), np.uint8)).save(there / "photo0_SwinIR.png")
    (there / "photo1_SwinIR.png").unlink()
    (there / "photo2_SwinIR.png").rename(there / "kept.png")
    Picture.open(there / "kept.png").save(there / "photo2_SwinIR.png")
    Picture.open(there / "kept.png").save(there / "photo2_SwinIR.bmp")
    (there / "kept.png").unlink()
    Picture.fromarray(np.zeros((44, 80, 3), np.uint8)).save(folder_of(other) / "photo1_SR.png")
    (folder_of(other) / "photo2_SR.png").write_bytes((folder_of(other) / "photo2_SR.png").read_bytes()[:-200])
    config = make_config(experts=[entry, other, {"name": "gone", "images": str(tmp_path / "gone")}])
    with pytest.raises(StoreError) as report:
        extract(config)
    text = str(report.value)
    for fault in (
        f"expert swinir: {there} has no image for photo1",
        f"expert swinir: {there} has more than one image for photo2: photo2_SwinIR.bmp, photo2_SwinIR.png",
        f"{there / 'photo0_SwinIR.png'}: 32 x 24 is x2 of it, expected 64 x 48, x4 of the LR image",
        f"{folder_of(other) / 'photo1_SR.png'}: 44 x 80 is another crop, expected 48 x 80, x4 of the LR image",
        "photo2_SR.png: truncated",
        f"expert gone: {tmp_path / 'gone'}: no such folder",
    ):
        assert fault in text
    assert not Path(config.store).exists()


def test_folders_tell_results_apart_where_names_do_not(make_config, save_photos, tmp_path):
    photo = next(save_photos().iterdir())
    for place, shade in (("street", 10), ("forest", 200)):
        (tmp_path / "data" / place).mkdir(parents=True)
        (tmp_path / "there" / place).mkdir(parents=True)
        photo.replace(tmp_path / "data" / place / "0001.png") if place == "street" else Picture.fromarray(
            np.full((40, 40, 3), 7, np.uint8)
        ).save(tmp_path / "data" / place / "0001.png")
        rows, cols = np.asarray(Picture.open(tmp_path / "data" / place / "0001.png")).shape[:2]
        Picture.fromarray(np.full((rows, cols, 3), shade, np.uint8)).save(tmp_path / "there" / place / "0001_SR.png")
    entry = {"name": "there", "images": str(tmp_path / "there")}
    config = make_config(experts=[entry], data={"hr": [str(tmp_path / "data")]}, codecs={"sr": "uint8"})
    extract(config)
    store = Store(config.store)
    shades = {image.id: store.array(i, "there", "sr").read()[0, 0, 0] for i, image in enumerate(store.images)}
    assert shades == {"forest-0001": 200, "street-0001": 10}


def test_a_folder_of_other_images_is_one_fault(make_config, save_results):
    entry = save_results()
    for number, path in enumerate(sorted(folder_of(entry).iterdir())):
        path.rename(path.with_name(f"other{number}.png"))
    with pytest.raises(StoreError, match=r"none of the 3 images in .*, such as other0.png, is called as"):
        extract(make_config(experts=[entry]))


def test_a_changed_file_is_named_and_a_rebuild_takes_it(make_config, save_results):
    entry = save_results()
    config = make_config(experts=[entry])
    extract(config)
    before = checksums(config.store)
    path = folder_of(entry) / "photo1_SwinIR.png"
    Picture.fromarray(255 - np.asarray(Picture.open(path))).save(path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"swinir was made from other files: photo1_SwinIR.png changed since"):
            extract(config)
    extract(config, rebuild=["swinir"])
    after = checksums(config.store)
    assert [key for key in before if before[key] != after[key]] == ["swinir/photo1/sr"]
    assert extract(config).experts["swinir"].shards_written == 0


def test_results_of_new_images_are_added_and_watched_as_the_old_ones(make_config, save_results):
    entry = save_results()
    config = make_config(experts=[entry])
    extract(config, limit=2)
    identity = Store(config.store).experts["swinir"].identity
    assert extract(config).experts["swinir"].shards_written == 1
    store = Store(config.store)
    assert store.experts["swinir"].identity == identity and identity["images"]["count"] == 2
    path = folder_of(entry) / "photo2_SwinIR.png"
    Picture.fromarray(255 - np.asarray(Picture.open(path))).save(path)
    with pytest.raises(StoreError, match=r"photo2_SwinIR.png changed since"):
        extract(config)


def test_a_converted_store_still_says_which_files_it_was_made_from(make_config, save_results, tmp_path):
    config = make_config(experts=[save_results()])
    extract(config)
    convert(Path(config.store), tmp_path / "other", images_per_shard=2, codecs={"sr": "uint8"})
    there, here = (
        {name: digest for path in sorted(root.glob("experts/swinir/*.json"))
         for name, digest in json.loads(path.read_text())["files"].items()}
        for root in (Path(config.store), tmp_path / "other")
    )  # fmt: skip
    assert there == here and sorted(here) == list(NAMES)


def test_results_are_not_run_again_and_the_others_are(make_config, save_results, save_edsr, caplog):
    config = make_config(experts=[save_results(), save_edsr()])
    extract(config)
    assert [check.name for check in check_live(Path(config.store), 1)] == ["tiny"]
    assert "swinir: its images come from another program; it is not run again" in caplog.text
    with pytest.raises(ConfigError, match="it cannot be run here"):
        check_live(Path(config.store), 1, ["swinir"])


def test_artefacts_are_told_by_name(make_config, save_results, caplog):
    entries = [save_results("one"), save_results("two", "_SR"), save_results("three", "x4")]
    extract(make_config(experts=entries))
    assert "further from LR" not in caplog.text
    spoilt = folder_of(entries[1]) / "photo1_SR.png"
    Picture.fromarray(jpeg(np.asarray(Picture.open(spoilt)), 20)).save(spoilt)
    for path in folder_of(entries[2]).iterdir():
        Picture.fromarray(jpeg(np.asarray(Picture.open(path)), 20)).save(path)
    extract(make_config(experts=entries), rebuild=["two", "three"])
    messages = [message for message in caplog.messages if "further from LR" in message]
    assert [
        message for message in messages if message.startswith("expert two: downscaled bicubically, photo1_SR.png (")
    ]
    assert [
        message for message in messages if message.startswith("expert three: its images, downscaled bicubically, are")
    ]
    assert not [message for message in messages if "expert one" in message]


def test_one_folder_alone_is_judged_by_its_other_images(make_config, save_results, caplog):
    entry = save_results()
    path = folder_of(entry) / "photo1_SwinIR.png"
    Picture.fromarray(np.roll(np.asarray(Picture.open(path)), 5, axis=1)).save(path)
    extract(make_config(experts=[entry]))
    assert "photo1_SwinIR.png (" in caplog.text and "be cropped differently or show another image" in caplog.text


def test_a_plan_has_the_bytes_of_results_and_no_hours(make_config, save_results, save_edsr):
    config = make_config(experts=[save_results(), save_edsr()], codecs={"sr": "uint8"})
    made = plan(config)
    assert made.experts[0].bytes == made.lr_px * 48 and made.experts[0].hours == 0
    assert made.experts[1].bytes == made.lr_px * (48 + 16)
    next(folder_of(config.experts[0]).iterdir()).unlink()
    with pytest.raises(StoreError, match="has no image for photo"):
        plan(config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a"}, "give either weights or images"),
        ({"name": "a", "images": "x", "weights": "y", "tap": "z"}, "give either weights or images"),
        ({"name": "a", "images": "x", "tap": "body"}, "tap belongs to a network, but this expert is given as images"),
        ({"name": "a", "images": "x", "architecture": "m:f"}, "architecture belongs to a network"),
    ],
)
def test_an_entry_of_images_has_nothing_of_a_network(make_config, entry, message):
    with pytest.raises(ConfigError, match=message):
        extract(make_config(experts=[entry]))
