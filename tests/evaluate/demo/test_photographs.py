import hashlib

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import Image

from championship_sr.evaluate.demo.photographs import HELD_OUT, TRAINING, VALIDATION, photograph, write_photographs
from championship_sr.extract.images.bicubic import downscale
from championship_sr.store.errors import ConfigError

NAMES = TRAINING + VALIDATION + HELD_OUT


def test_the_photographs_lr_is_the_one_that_every_figure_was_made_with():
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(downscale(photograph(name), 4).tobytes())
    assert digest.hexdigest()[:16] == "057df17ad1374c58"


def test_no_photograph_is_on_two_sides_of_the_split():
    names = NAMES
    assert len(set(names)) == len(names)
    assert len(HELD_OUT) >= 5


def thumbnails() -> dict[str, np.ndarray]:
    """Name -> the photograph's luma, 32 pixels high and wide, without mean and contrast."""
    small = {name: Image.fromarray(photograph(name)).convert("L").resize((32, 32)) for name in NAMES}
    values = {name: np.asarray(image, dtype=np.float64) for name, image in small.items()}
    return {name: (value - value.mean()) / value.std() for name, value in values.items()}


def test_no_held_out_photograph_shows_the_scene_of_another_one():
    images = thumbnails()
    alike = {(a, b) for a in images for b in images if a < b and (images[a] * images[b]).mean() > 0.75}
    assert alike == {("motorcycle_left", "motorcycle_right")}


@pytest.mark.parametrize(
    ("name", "module", "function", "package"),
    [
        ("chelsea", skimage.data, "chelsea", "scikit-image"),
        ("china", sklearn.datasets, "load_sample_image", "scikit-learn"),
    ],
)
def test_a_package_without_the_photograph_is_named_and_what_to_install(monkeypatch, name, module, function, package):
    def absent(*_):
        raise OSError("no such file")

    monkeypatch.setattr(module, function, absent)
    with pytest.raises(
        ConfigError,
        match=f"demo: the installed {package} does not contain the photograph {name} .* pip install '{package}==",
    ):
        photograph(name)


def test_grey_photographs_have_three_equal_channels():
    grey = photograph("coins")
    assert grey.shape == (300, 384, 3)
    assert (grey == skimage.data.coins()[:300, :384, None]).all()


def test_what_is_not_of_the_demo_goes(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "chelsea.png").write_bytes(b"trained on by an earlier version")
    folders = write_photographs(tmp_path)
    assert not (folders["training"] / "chelsea.png").exists()


def test_photographs_are_written_whole_and_kept(tmp_path):
    folders = write_photographs(tmp_path)
    kept = folders["held_out"] / "chelsea.png"
    before = kept.stat().st_mtime_ns
    assert write_photographs(tmp_path) == folders
    assert kept.stat().st_mtime_ns == before
    assert np.array_equal(np.asarray(Image.open(kept)), photograph("chelsea"))
    files = {split: {path.name for path in folder.iterdir()} for split, folder in folders.items()}
    assert files["training"] == {f"{name}.png" for name in TRAINING + VALIDATION}
    assert files["held_out"] == {f"{name}.png" for name in HELD_OUT}
