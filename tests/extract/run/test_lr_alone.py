"""LR images without HR: experts run on them, results are taken for them, and what needs HR says so."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Picture

from championship_sr.evaluate.scoring.evaluation import evaluate_store
from championship_sr.extract.commands.store import store as store_command
from championship_sr.extract.cost.estimate import plan
from championship_sr.extract.images.decode import decode
from championship_sr.extract.run.extraction import extract
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import TrainConfig
from championship_sr.train.run.loop import train
from tests.extract.stores import checksums


@pytest.fixture
def lr(save_photos) -> Path:
    return save_photos(((16, 12), (9, 20), (10, 10)), folder="LR")


@pytest.fixture
def config(make_config, lr):
    return make_config(data={"lr": [str(lr)]}, device="cpu")


def test_a_store_of_lr_images_alone_has_what_experts_say_of_them(config, make_config, lr, tmp_path):
    extract(config)
    store = Store(config.store)
    for index, image in enumerate(store.images):
        assert image.hr_sha256 is None and image.lr_source == "file"
        assert np.array_equal(store.array(index, PAIRS, "lr").load(), decode(lr / f"{image.id}.png"))
        assert store.array(index, "tiny", "sr").shape == (4 * image.lr_size[0], 4 * image.lr_size[1], 3)
    assert {key for key in checksums(store.root) if key.startswith("pairs")} == {
        f"pairs/{image.id}/lr" for image in store.images
    }
    assert plan(config).pairs_bytes == 3 * sum(rows * cols for rows, cols in ((16, 12), (9, 20), (10, 10)))
    assert not verify(store.root).faults and extract(config).experts["tiny"].shards_written == 0


def test_such_a_store_is_grown_converted_merged_looked_at_and_checked_as_any_other(config, lr, tmp_path):
    extract(config, limit=1)
    extract(config)
    convert(Path(config.store), tmp_path / "other", container="hdf5")
    assert checksums(tmp_path / "other") == checksums(config.store)
    merge([Path(config.store)], tmp_path / "merged")
    assert checksums(tmp_path / "merged") == checksums(config.store)
    sheet = CliRunner().invoke(store_command, ["view", config.store, "photo1", "-o", str(tmp_path / "sheet.png")])
    assert sheet.exit_code == 0 and Picture.open(tmp_path / "sheet.png").width > 80
    Picture.fromarray(np.zeros((9, 20, 3), np.uint8)).save(lr / "photo1.png")
    checked = CliRunner().invoke(store_command, ["verify", config.store, "--lr", str(lr)])
    assert "the LR image has changed since the store was made" in checked.output


def test_training_and_scores_refuse_a_store_without_hr_in_one_line(config, tmp_path):
    extract(config)
    with pytest.raises(StoreError, match=r"was made from LR images alone, but training needs HR images"):
        train(TrainConfig(device="cpu"), Path(config.store), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(StoreError, match=r"was made from LR images alone, but a score needs HR images"):
        evaluate_store(None, Path(config.store))


def test_hr_is_there_for_all_images_or_for_none(make_config, save_photos, lr, config):
    with pytest.raises(ConfigError, match="lr without hr cannot be combined with roots"):
        make_config(data={"roots": ["anywhere"], "lr": [str(lr)]})
    extract(config)
    both = make_config(data={"hr": [str(save_photos(((64, 48),)))]})
    with pytest.raises(StoreError, match="holds a different store: "):
        extract(both)
