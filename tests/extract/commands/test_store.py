import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from championship_sr.extract.commands.store import store
from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.run.extraction import extract


@pytest.fixture
def filled(tmp_path):
    """A folder of one HR image and its store, filled by a bundled expert."""
    folder = tmp_path / "hr"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    root = tmp_path / "one.store"
    extract(ExtractConfig(store=str(root), data={"hr": (str(folder),)}, experts=("edsr-xs",)))
    return folder, root


def test_verify_compares_with_the_live_experts_and_the_source_images(filled):
    folder, root = filled
    result = CliRunner().invoke(store, ["verify", str(root), "--hr", str(folder), "--live", "1"])
    assert result.exit_code == 0, result.output
    assert "no fault" in result.output and "edsr-xs: 2 arrays" in result.output


def test_verify_names_a_source_image_that_changed(filled):
    folder, root = filled
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(folder / "one.png")
    result = CliRunner().invoke(store, ["verify", str(root), "--hr", str(folder)])
    assert "the HR image has changed since the store was made" in result.output
    assert result.exit_code == 1


def test_verify_tells_which_source_images_are_not_there(filled, tmp_path, caplog):
    _, root = filled
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(other / "two.png")
    assert CliRunner().invoke(store, ["verify", str(root), "--hr", str(other)]).exit_code == 0
    assert f"1 of 1 images are not in {other} and were not compared, for example one" in caplog.text
