"""`experts pretrain`: a student of a short configuration, from folders of HR images or from a store."""

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from championship_sr.extract.config import ExpertConfig, load_expert_config
from championship_sr.extract.experts.architecture import build_network
from championship_sr.extract.experts.expert import load_expert
from championship_sr.store.config import read_yaml
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import TeacherConfig, learning_rate, span
from championship_sr.train.pretraining.commands import experts
from championship_sr.train.pretraining.pretrain import pretrain, train_config
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.watch import Watch
from championship_sr.train.students.student import export

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(3):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def make_entry(photos):
    def make(**values) -> ExpertConfig:
        section = {
            "network": "extract.edsr:EDSR",
            "hyperparameters": {"num_feat": 4, "num_block": 1, "res_scale": 1.0},
            "hr": [str(photos)],
            "steps": 4, "batch_size": 2, "patch_px": 8, "checkpoint_steps": 2, "warmup_steps": 1, "autocast": False,
        }  # fmt: skip
        entry = {"name": "e", "weights": "none.pth", "tap": "conv_after_body", "pretrain": section | values}
        return load_expert_config(entry)

    return make


def test_an_interrupted_training_goes_on_to_the_same_weights(make_entry, tmp_path, monkeypatch):
    entry, steps = make_entry(steps=6), []
    whole = pretrain(entry, tmp_path / "whole", device="cpu")
    watched = Watch.__call__

    def watch(self, number, *rest):
        steps.append(number)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return watched(self, number, *rest)

    monkeypatch.setattr(Watch, "__call__", watch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(entry, tmp_path / "cut", device="cpu")
    assert pretrain(entry, tmp_path / "cut", device="cpu").read_bytes() == whole.read_bytes()
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]  # from the last checkpoint on


def test_training_lowers_the_loss_and_its_weights_load_as_an_expert(make_entry, tmp_path):
    entry = make_entry(steps=60, checkpoint_steps=20, learning_rate=5e-3)
    path = pretrain(entry, tmp_path / "run", device="cpu")
    losses = [event["loss"] for event in read_metrics(tmp_path / "run") if event["event"] == "train"]
    assert losses[-1] < losses[0]
    expert = load_expert(load_expert_config({"name": "e", "weights": str(path), "tap": "conv_after_body"}), CPU, 4)
    assert expert.channels == {"features": 4}


def test_a_longer_training_goes_on_and_another_network_is_refused(make_entry, tmp_path):
    pretrain(make_entry(steps=2), tmp_path / "run", device="cpu")
    pretrain(make_entry(steps=4), tmp_path / "run", device="cpu")
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4
    other = make_entry(hyperparameters={"num_feat": 8, "num_block": 1, "res_scale": 1.0})
    with pytest.raises(ConfigError, match=r"the run has another configuration: student.*num_feat is 4 there, 8 now"):
        pretrain(other, tmp_path / "run", device="cpu")


def test_images_smaller_than_a_crop_are_left_out_and_said(make_entry, tmp_path, caplog):
    folder = tmp_path / "small"
    folder.mkdir()
    for name, side in (("a", 16), ("b", 64)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / f"{name}.png")
    pretrain(make_entry(hr=[str(folder)], steps=2), tmp_path / "run", device="cpu")
    assert "1 images are smaller than data.crop_px=8 LR pixels and are left out" in caplog.text
    (folder / "b.png").unlink()
    with pytest.raises(StoreError, match=r"1 images are smaller than data.crop_px=8 LR pixels, and no other"):
        pretrain(make_entry(hr=[str(folder)], steps=2), tmp_path / "other", device="cpu")


def test_the_learning_rate_warms_up_and_ends_at_zero(make_entry):
    entry = make_entry(steps=100, warmup_steps=10, learning_rate=1.0)
    config = train_config(entry, entry.pretrain, "cpu", TeacherConfig())
    rate = learning_rate(config, span(config, 100))
    rates = np.array([rate(step) for step in range(100)])
    assert rates[:11] == pytest.approx(np.arange(11) / 10)
    assert np.all(np.diff(rates[10:]) < 0) and rates[-1] == pytest.approx(0)


def test_a_store_and_its_teacher_take_the_place_of_folders(make_entry, make_learnable, tmp_path):
    store = make_learnable(tmp_path / "store")
    taught = pretrain(
        make_entry(hr=[]), tmp_path / "run", device="cpu", store=store, teacher=TeacherConfig(of="fitted")
    )
    losses = next(event for event in read_metrics(tmp_path / "run") if event["event"] == "train")["losses"]
    assert set(losses) == {"l1", "teacher"} and load_file(taught)
    with pytest.raises(ConfigError, match="a teacher is made from a store's experts; give --store"):
        pretrain(make_entry(), tmp_path / "none", device="cpu", teacher=TeacherConfig(of="fitted"))
    with pytest.raises(ConfigError, match="no folder of HR images; give --hr or --store"):
        pretrain(make_entry(hr=[]), tmp_path / "none", device="cpu")


def test_an_expert_is_trained_beside_others(make_entry, make_learnable, tmp_path):
    store, run = make_learnable(tmp_path / "store"), tmp_path / "run"
    others = sorted(Store(store).experts)
    pretrain(make_entry(hr=[]), run, device="cpu", store=store, beside=others)
    event = next(event for event in read_metrics(run) if event["event"] == "train")
    assert set(event["losses"]) == {"l1", "complement"}
    config = read_yaml(run / "config.yaml")["train"]
    assert config["teacher"] == {"of": "mean", "experts": others, "x8": False}
    assert config["losses"]["complement_share"] == pytest.approx(1 / (1 + len(others)))
    with pytest.raises(ConfigError, match="a teacher is made from a store's experts; give --store"):
        pretrain(make_entry(), tmp_path / "none", device="cpu", beside=others)
    with pytest.raises(ConfigError, match=r"--teacher and --beside: .* choose one"):
        pretrain(make_entry(), run, device="cpu", store=store, beside=others, teacher=TeacherConfig(of="mean"))


def test_unknown_networks_and_folders_without_images_are_refused(make_entry, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrain.network=extract.edsr:EDRS"):
        build_network("extract.edsr:EDRS", {}, "pretrain.network")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty: no images in it"):
        pretrain(make_entry(hr=[str(tmp_path / "empty")]), tmp_path / "run", device="cpu")


def test_the_command_takes_an_entry_folders_and_values(make_entry, photos, tmp_path):
    section = {"network": "extract.edsr:EDSR", "hyperparameters": {"num_feat": 4, "num_block": 1, "res_scale": 1.0}}
    entry = {"name": "own", "weights": "none.pth", "tap": "none", "pretrain": section}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entry))
    values = [f"--set=pretrain.{each}" for each in ("steps=2", "batch_size=1", "patch_px=8", "warmup_steps=0")]
    given = ["pretrain", "--config", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = CliRunner().invoke(experts, [*given, "--hr", str(photos), *values], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path / "run/own.safetensors")
    del entry["pretrain"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entry))
    with pytest.raises(ConfigError, match="has no pretrain section"):
        CliRunner().invoke(experts, given, catch_exceptions=False)


def test_exported_index_tables_take_one_byte_where_that_loses_nothing(tmp_path):
    network = torch.nn.Linear(2, 2)
    network.register_buffer("index", torch.tensor([0, 255]))
    network.register_buffer("wide", torch.tensor([0, 256]))
    export(network, tmp_path / "w.safetensors")
    saved = load_file(tmp_path / "w.safetensors")
    assert (saved["index"].dtype, saved["wide"].dtype, saved["weight"].dtype) == (
        torch.uint8,
        torch.int64,
        torch.float32,
    )
    assert saved["index"].long().equal(network.index)
