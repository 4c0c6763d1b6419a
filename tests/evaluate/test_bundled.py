"""The fusion that comes with the package, stood for by a small export in another folder."""

import logging
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from championship_sr import load
from championship_sr.evaluate import bundled
from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.deliver.export import export_run
from championship_sr.pipeline import cli
from championship_sr.store.errors import ConfigError


@pytest.fixture
def package(monkeypatch, tmp_path) -> Path:
    """The folder that is taken for the package's."""
    monkeypatch.setattr(bundled.resources, "files", lambda _name: tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def exported(package, run_root) -> Path:
    model = load(run_root, config=EvaluateConfig(device="cpu"))
    return export_run(model, package, with_experts=True, trained_on="four drawings\n(CC0)")


def test_upscale_without_a_run_takes_the_bundled_fusion_and_says_what_it_is(
    exported, run_root, hr_folder, tmp_path, caplog
):
    fast = ["--set", "evaluate.device=cpu"]
    with caplog.at_level(logging.WARNING):
        done = CliRunner().invoke(cli, ["upscale", str(hr_folder / "photo2.png"), str(tmp_path / "big.png"), *fast])
    assert done.exit_code == 0, done.exception
    [said] = [record.getMessage() for record in caplog.records if "bundled" in record.getMessage()]
    assert said.startswith("the bundled fusion: profile swift, ") and "x4, of one, two; " in said
    assert said.endswith("trained on four drawings (CC0)")
    own = load(run_root, device="cpu")(hr_folder / "photo2.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "big.png")), np.asarray(own))


def test_load_without_an_argument_is_the_bundled_fusion(exported):
    assert load(device="cpu").root == exported


def test_an_installation_without_a_fusion_says_so_and_what_to_do(package, hr_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"weights: .*no bundled fusion; give a run of your own: upscale --run DIR"):
        load()
    done = CliRunner().invoke(cli, ["upscale", str(hr_folder / "photo2.png"), str(tmp_path / "big.png")])
    assert isinstance(done.exception, ConfigError) and not (tmp_path / "big.png").exists()


def test_the_package_takes_along_every_file_of_an_export(run_root, tmp_path):
    exported = export_run(load(run_root, device="cpu"), tmp_path / "export")
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    patterns = setup["options.package_data"]["championship_sr.evaluate.weights"].split(", ")
    found = {path for pattern in patterns for path in exported.glob(pattern) if path.is_file()}
    assert found == {path for path in exported.rglob("*") if path.is_file()}
