"""Files through a run: what is kept, what is refused, and what a bad file does to the good ones."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from championship_sr import load
from championship_sr.evaluate.deliver.upscale import UpscaleOptions, find_inputs, plan_outputs, upscale_files
from championship_sr.evaluate.inference.pictures import write_picture
from championship_sr.extract.images.bicubic import upscale
from championship_sr.extract.images.decode import read_picture
from championship_sr.extract.images.picture import Picture
from championship_sr.store.errors import ConfigError, StoreError


@pytest.fixture(scope="module")
def model(run_root):
    return load(run_root, device="cpu")


@pytest.fixture
def photo(hr_folder):
    return hr_folder / "photo1.png"


def test_every_kind_of_image_gives_the_same_pixels(model, photo):
    pixels = np.asarray(Image.open(photo))
    tensor = torch.from_numpy(pixels / 255).permute(2, 0, 1).float()
    expected = model(pixels)
    assert expected.shape == (256, 192, 3) and expected.dtype == np.uint8
    assert np.array_equal(np.asarray(model(photo)), expected)
    assert np.array_equal(np.asarray(model(str(photo))), expected)
    assert np.array_equal(np.asarray(model(Image.open(photo))), expected)
    assert np.array_equal((model(tensor) * 255).round().permute(1, 2, 0).numpy(), expected)
    assert torch.equal(model(tensor[None])[0], model(tensor))


def test_tiles_of_a_large_image_fit_together(model, run_root, photo):
    from championship_sr.evaluate.config import EvaluateConfig

    cut = load(run_root, config=EvaluateConfig(device="cpu", tile_px=32, halo_px=16, blend_px=8))
    whole, tiled = (m(np.asarray(Image.open(photo))).astype(int) for m in (model, cut))
    assert 0 < np.abs(whole - tiled).mean() < 2  # the fusion sees the whole image in its frequency bands


def test_16_bit_and_transparency_are_kept(model, tmp_path):
    rng = np.random.default_rng(0)
    pixels, alpha = (rng.integers(2**16, size=shape, dtype=np.uint16) for shape in ((12, 10, 3), (12, 10)))
    write_picture(tmp_path / "deep.png", Picture(pixels, alpha))
    [path] = upscale_files(model, [tmp_path / "deep.png"], tmp_path / "out", UpscaleOptions())
    result = read_picture(path)
    assert result.pixels.dtype == np.uint16 and result.pixels.shape == (48, 40, 3)
    assert np.array_equal(result.alpha, upscale(alpha[..., None], 4)[..., 0])
    assert len(np.unique(result.pixels)) > 256


def test_a_folder_keeps_names_and_a_pattern_chooses(model, tmp_path, hr_folder):
    found = find_inputs(str(hr_folder / "photo[12].*"))
    assert [path.name for path in found] == ["photo1.png", "photo2.png"]
    written = upscale_files(model, found, tmp_path / "out", UpscaleOptions(suffix=".webp"), into_folder=True)
    assert [path.name for path in written] == ["photo1.webp", "photo2.webp"] and all(p.exists() for p in written)


def test_experts_only_writes_one_image_an_expert(model, tmp_path, photo):
    written = upscale_files(model, [photo], tmp_path / "big.png", UpscaleOptions(experts_only=True))
    assert [path.name for path in written] == ["big-one.png", "big-two.png"]
    tensor = torch.from_numpy(np.asarray(Image.open(photo)) / 255).permute(2, 0, 1)[None].float()
    expected = (model.experts[0](tensor)[0][0] * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(read_picture(written[0]).pixels, expected)


def test_self_ensemble_of_a_turned_image_is_the_turned_result(model, photo):
    pixels = np.asarray(Image.open(photo))
    one, other = (model(np.ascontiguousarray(image), self_ensemble=True) for image in (pixels, np.rot90(pixels)))
    assert np.abs(np.rot90(one).astype(int) - other).max() <= 1
    assert not np.array_equal(model(pixels), one)


def test_one_bad_file_is_named_and_the_others_are_done(model, tmp_path, photo):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "b.png").write_bytes(photo.read_bytes()[:300])
    with pytest.raises(StoreError, match=r"2 written; left out: .*b\.png: truncated or damaged image"):
        upscale_files(model, find_inputs(str(folder)), tmp_path / "out", UpscaleOptions())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_a_turned_photograph_comes_out_upright_in_every_format(model, tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.asarray(Image.open(photo))[:12, :16]
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    expected = model(np.rot90(pixels, -1).copy())
    for suffix in (".png", ".bmp", ".tif"):
        [path] = upscale_files(model, [tmp_path / "phone.png"], tmp_path / "out", UpscaleOptions(suffix=suffix))
        with Image.open(path) as image:
            assert image.getexif().get(0x0112, 1) == 1
            assert np.array_equal(np.asarray(image), expected)


def test_what_lies_under_transparency_does_not_show_in_the_rim(model, tmp_path):
    pixels = np.full((12, 16, 3), 200, np.uint8)
    alpha = np.full((12, 16), 255, np.uint8)
    alpha[:, 8:] = 0
    black = np.where(alpha[..., None] == 0, 0, pixels).astype(np.uint8)
    seen = [model.upscale(Picture(values, alpha)).pixels for values in (pixels, black)]
    assert np.array_equal(*seen)
    assert not np.array_equal(seen[0], model(black))


@pytest.mark.parametrize("name", ["甲乙丙", "甲" * 83, os.fsdecode(b"\xff")], ids=["CJK", "253 bytes", "no UTF-8"])
def test_names_of_any_bytes_are_kept(model, tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    upscale_files(model, find_inputs(str(tmp_path)), tmp_path / "out", UpscaleOptions(suffix=".webp"))
    assert os.listdir(tmp_path / "out") == [f"{name}.webp"]


def test_folders_that_are_not_read_are_named(tmp_path, caplog):
    for name in ("a.png", "more/b.png", "other/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [path.name for path in find_inputs(str(tmp_path))] == ["a.png"]
    assert caplog.messages == [f"{tmp_path}: images in its subfolders are not read: more, other"]


def test_existing_results_are_found_before_any_work(model, tmp_path, photo):
    (tmp_path / "photo1.png").write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"photo1\.png: already exists\. Give --overwrite"):
        upscale_files(model, [photo], tmp_path, UpscaleOptions())
    assert (tmp_path / "photo1.png").read_bytes() == b"mine"
    upscale_files(model, [photo], tmp_path, UpscaleOptions(overwrite=True))
    assert read_picture(tmp_path / "photo1.png").pixels.shape == (256, 192, 3)


def test_an_input_is_never_replaced(hr_folder, photo):
    with pytest.raises(ConfigError, match="the output would replace an input"):
        plan_outputs([photo], hr_folder, UpscaleOptions(overwrite=True), (), into_folder=True)


def test_two_inputs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.png: more than one input would be written to it"):
        plan_outputs(
            [tmp_path / "a.jpg", tmp_path / "a.bmp"],
            tmp_path / "out",
            UpscaleOptions(suffix=".png"),
            (),
            into_folder=True,
        )


def test_nothing_to_do_is_said(tmp_path):
    for given in (tmp_path, tmp_path / "none*.png", tmp_path / "missing.png"):
        with pytest.raises(StoreError, match="not an image file"):
            find_inputs(str(given))


def test_a_folder_that_cannot_be_written_is_found_before_any_work(model, tmp_path, photo, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, to whom all is open
    with pytest.raises(StoreError, match="cannot be written to"):
        upscale_files(model, [photo], tmp_path / "out", UpscaleOptions())


def test_out_of_memory_goes_on_with_smaller_tiles(run_root, photo, monkeypatch):
    model, seen = load(run_root, device="cpu"), []
    forward = model.network.forward

    def limited(lr, images, features):
        seen.append(lr.shape[-2])
        if lr.shape[-2] > 70:
            raise torch.OutOfMemoryError("too large")
        return forward(lr, images, features)

    monkeypatch.setattr(model.network, "forward", limited)
    big = np.tile(np.asarray(Image.open(photo)), (2, 1, 1))[:, :40]  # 128 x 40
    model.tiling = type(model.tiling)(128, 4, 0)
    assert model(big).shape == (512, 160, 3)
    assert model.tiling.tile_px == 64 and seen == [128, 68, 68]
