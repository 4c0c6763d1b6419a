"""A challenge submission: complete, of the right sizes, and refused otherwise."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from championship_sr import load
from championship_sr.evaluate.deliver.submit import Facts, check, readme, submit
from championship_sr.store.errors import ConfigError, StoreError

FACTS = Facts(extra_data=True, description="a fusion")


@pytest.fixture(scope="module")
def model(run_root):
    return load(run_root, device="cpu")


@pytest.fixture
def lr(tmp_path):
    folder = tmp_path / "LR"
    folder.mkdir()
    for number, size in ((901, (12, 10)), (902, (9, 14))):
        pixels = np.random.default_rng(number).integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"0{number}x4.png")
    return folder


def test_the_zip_holds_one_result_for_each_input_and_the_readme(model, lr, tmp_path):
    made = submit(model, lr, tmp_path / "out", FACTS)
    with zipfile.ZipFile(made.zip) as archive:
        assert archive.namelist() == ["readme.txt", "0901x4.png", "0902x4.png"]
        lines = archive.read("readme.txt").decode().splitlines()
        with archive.open("0901x4.png") as file:
            assert np.array_equal(np.asarray(Image.open(file)), np.asarray(model(lr / "0901x4.png")))
    assert lines[0].startswith("runtime per image [s] : ") and float(lines[0].rpartition(" ")[2]) >= 0
    assert lines[1:] == [
        "CPU[1] / GPU[0] : 1",
        "Extra Data [1] / No Extra Data [0] : 1",
        "Other description : a fusion",
    ]


def test_called_again_it_makes_only_what_is_missing(model, lr, tmp_path, monkeypatch):
    submit(model, lr, tmp_path / "out", FACTS)
    (tmp_path / "out" / "results" / "0902x4.png").unlink()
    made = counting(model, monkeypatch)
    assert submit(model, lr, tmp_path / "out", FACTS).images == 2 and len(made) == 1


def counting(model, monkeypatch) -> list:
    """One entry for each picture that the model makes."""
    made, upscale = [], model.upscale
    monkeypatch.setattr(model, "upscale", lambda picture, **options: made.append(1) or upscale(picture, **options))
    return made


def packed(submission) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(submission.zip) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names}


def test_pictures_of_another_run_are_made_anew(model, lr, tmp_path, make_run, store_root, caplog):
    submit(model, lr, tmp_path / "out", FACTS)
    other = load(make_run(tmp_path / "other", store_root, refinement_layers=4), device="cpu")
    expected = np.asarray(other(lr / "0901x4.png"))
    assert not np.array_equal(expected, np.asarray(model(lr / "0901x4.png")))
    assert np.array_equal(packed(submit(other, lr, tmp_path / "out", FACTS))["0901x4.png"], expected)
    assert "2 of 2 pictures come from another run, option or input, or were changed; making them again" in caplog.text


def test_pictures_of_another_option_are_made_anew(model, lr, tmp_path):
    submit(model, lr, tmp_path / "out", FACTS)
    expected = np.asarray(model(lr / "0902x4.png", self_ensemble=True))
    found = packed(submit(model, lr, tmp_path / "out", FACTS, self_ensemble=True))["0902x4.png"]
    assert np.array_equal(found, expected)


def test_the_picture_of_an_input_that_changed_is_made_anew_and_it_alone(model, lr, tmp_path, monkeypatch):
    submit(model, lr, tmp_path / "out", FACTS)
    Image.fromarray(255 - np.asarray(Image.open(lr / "0901x4.png"))).save(lr / "0901x4.png")
    expected, made = np.asarray(model(lr / "0901x4.png")), counting(model, monkeypatch)
    found = packed(submit(model, lr, tmp_path / "out", FACTS))
    assert np.array_equal(found["0901x4.png"], expected) and len(made) == 1


def test_a_picture_that_was_changed_by_hand_is_made_anew(model, lr, tmp_path, monkeypatch):
    first = packed(submit(model, lr, tmp_path / "out", FACTS))
    Image.new("RGB", (56, 36)).save(tmp_path / "out" / "results" / "0902x4.png")
    made = counting(model, monkeypatch)
    assert np.array_equal(packed(submit(model, lr, tmp_path / "out", FACTS))["0902x4.png"], first["0902x4.png"])
    assert len(made) == 1


def test_pictures_without_a_record_and_torn_records_are_made_anew(model, lr, tmp_path, monkeypatch):
    submit(model, lr, tmp_path / "out", FACTS)
    record = tmp_path / "out" / "made.jsonl"
    first, second = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(first + second[:-20])
    made = counting(model, monkeypatch)
    submit(model, lr, tmp_path / "out", FACTS)
    assert len(made) == 1
    submit(model, lr, tmp_path / "out", FACTS)
    assert len(made) == 1, "the line behind the torn one is not read"


def test_what_stands_for_no_input_is_refused_before_any_work(model, lr, tmp_path, monkeypatch):
    (tmp_path / "out" / "results").mkdir(parents=True)
    Image.new("RGB", (3, 3)).save(tmp_path / "out" / "results" / "0903x4.png")
    made = counting(model, monkeypatch)
    with pytest.raises(StoreError, match=r"0903x4\.png: stands for no input\. Remove them, or choose another folder"):
        submit(model, lr, tmp_path / "out", FACTS)
    assert not made


def test_every_fault_is_listed_before_anything_is_packed(model, lr, tmp_path):
    results = tmp_path / "out" / "results"
    submit(model, lr, tmp_path / "out", FACTS)
    Image.new("RGB", (3, 3)).save(results / "0901x4.png")
    Image.new("L", (56, 36)).save(results / "0902x4.png")
    Image.new("RGB", (3, 3)).save(results / "0903x4.png")
    with pytest.raises(StoreError) as raised:
        check(sorted(lr.iterdir()), results, 4)
    message = str(raised.value)
    assert "0901x4.png: 3 x 3, expected 40 x 48" in message
    assert "0902x4.png: of mode L, expected RGB" in message
    assert "0903x4.png: stands for no input" in message
    (results / "0901x4.png").write_bytes(b"no image")
    (results / "0902x4.png").unlink()
    with pytest.raises(StoreError, match=r"0902x4\.png: missing.*0901x4\.png: unreadable"):
        check(sorted(lr.iterdir()), results, 4)


def test_a_description_of_two_lines_is_refused():
    with pytest.raises(ConfigError, match="must be a single line"):
        readme(1.0, True, Facts(False, "a\nb"))
    assert "GPU[0] : 0" in readme(1.0, True, Facts(False, "a"))


def test_an_empty_folder_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no images in it"):
        submit(model, tmp_path / "empty", tmp_path / "out", FACTS)


def test_inputs_whose_results_would_have_one_name_are_refused_before_any_work(model, lr, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(lr / "0901x4.jpg")
    (lr / os.fsdecode(b"\xff.png")).write_bytes((lr / "0902x4.png").read_bytes())
    monkeypatch.setattr(model, "upscale", None)
    with pytest.raises(StoreError) as raised:
        submit(model, lr, tmp_path / "out", FACTS)
    assert r"\xff.png: the name is no UTF-8" in str(raised.value)
    assert "0901x4.png and 0901x4.jpg: both results would be 0901x4.png; leave one out" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_turned_input_has_an_upright_result(model, lr, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (lr / "0902x4.png").unlink()
    Image.open(lr / "0901x4.png").save(lr / "0901x4.png", exif=exif)
    submit(model, lr, tmp_path / "out", FACTS)
    assert Image.open(tmp_path / "out" / "results" / "0901x4.png").size == (48, 40)
