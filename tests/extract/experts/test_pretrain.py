import json

import numpy as np
import pytest
import torch
from PIL import Image

from championship_sr.extract.config import PretrainConfig, load_expert_config
from championship_sr.extract.experts.architecture import build_network
from championship_sr.extract.experts.expert import load_expert
from championship_sr.extract.experts.pretrain import (
    export,
    learning_rate,
    load_pairs,
    pretrain,
    sample_batch,
    train_step,
)
from championship_sr.store.config import build
from championship_sr.store.errors import ConfigError, StoreError, WeightsError

CPU = torch.device("cpu")


@pytest.fixture
def make_config(save_photos):
    def make(**values) -> PretrainConfig:
        content = {
            "network": "extract.edsr:EDSR",
            "hyperparameters": {"num_feat": 4, "num_block": 1, "res_scale": 1.0},
            "hr": [str(save_photos([(48, 64)] * 3))],
            "steps": 4, "batch_size": 2, "patch_px": 8, "checkpoint_steps": 2, "warmup_steps": 1, "autocast": False,
        }  # fmt: skip
        return build(PretrainConfig, content | values, "test")

    return make


def test_an_interrupted_training_goes_on_to_the_same_weights(make_config, tmp_path, monkeypatch):
    config, steps = make_config(steps=6), []
    whole = pretrain("e", config, tmp_path / "whole", CPU)

    def step(*args):
        steps.append(args[0].step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return train_step(*args)

    monkeypatch.setattr("championship_sr.extract.experts.pretrain.train_step", step)
    with pytest.raises(KeyboardInterrupt):
        pretrain("e", config, tmp_path / "cut", CPU)
    assert pretrain("e", config, tmp_path / "cut", CPU).read_bytes() == whole.read_bytes()
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]  # from the last checkpoint on


def test_training_lowers_the_loss_and_its_weights_load_as_an_expert(make_config, tmp_path):
    config = make_config(steps=40, checkpoint_steps=20, learning_rate=5e-3)
    path = pretrain("e", config, tmp_path / "run", CPU)
    losses = [json.loads(line)["l1"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    expert = load_expert(load_expert_config({"name": "e", "weights": str(path), "tap": "conv_after_body"}), CPU, 4)
    assert expert.channels == {"features": 4}


def test_a_checkpoint_of_another_network_is_refused(make_config, tmp_path):
    pretrain("e", make_config(steps=2), tmp_path, CPU)
    other = {"num_feat": 8, "num_block": 1, "res_scale": 1.0}
    with pytest.raises(WeightsError, match=r"checkpoint.pt: not of this network with these hyperparameters"):
        pretrain("e", make_config(hyperparameters=other), tmp_path, CPU)


def test_crops_of_a_batch_are_pairs_and_depend_on_seed_and_step_alone(make_config):
    config = make_config(batch_size=5)
    pairs = load_pairs(config.hr, 4)
    lr, hr = sample_batch(pairs, config, 3)
    again = sample_batch(pairs, config, 3)
    assert lr.shape == (5, 3, 8, 8) and hr.shape == (5, 3, 32, 32)
    assert lr.equal(again[0]) and hr.equal(again[1])
    assert not lr.equal(sample_batch(pairs, config, 4)[0])
    means = hr.reshape(5, 3, 8, 4, 8, 4).mean((3, 5))
    assert (means - lr).abs().mean() < 0.05  # turned and flipped together


def test_images_are_read_as_extraction_reads_them(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (8, 12), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "more").mkdir()
    Image.fromarray(deep).save(tmp_path / "grey.png")
    Image.fromarray(np.rot90(np.round(deep / 257).astype(np.uint8))).save(tmp_path / "more" / "turned.png", exif=exif)
    for lr, hr in load_pairs((str(tmp_path),), 4):
        assert lr.shape == (2, 3, 3)
        assert np.array_equal(hr, np.round(deep / 257).astype(np.uint8)[..., None].repeat(3, axis=2))


def test_images_smaller_than_a_crop_are_left_out_and_said(make_config, tmp_path, caplog):
    folder = tmp_path / "small"
    folder.mkdir()
    for name, side in (("a", 16), ("b", 64)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / f"{name}.png")
    pretrain("e", make_config(hr=(str(folder),), steps=1), tmp_path, CPU)
    assert "1 images are smaller than pretrain.patch_px=8 LR pixels and are left out" in caplog.text
    (folder / "b.png").unlink()
    with pytest.raises(StoreError, match=r"1 images are smaller than pretrain.patch_px=8 LR pixels, and no other"):
        pretrain("e", make_config(hr=(str(folder),), steps=2), tmp_path, CPU)


def test_the_learning_rate_warms_up_and_ends_at_zero(make_config):
    config = make_config(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = np.array([learning_rate(config, step) for step in range(101)])
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert np.all(np.diff(rates[10:]) < 0) and rates[100] == pytest.approx(0)


def test_unknown_networks_and_folders_without_images_are_refused(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrain.network=extract.edsr:EDRS"):
        build_network("extract.edsr:EDRS", {}, "pretrain.network")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty: no images in it"):
        load_pairs((str(tmp_path / "empty"),), 4)


def test_exported_index_tables_take_one_byte_where_that_loses_nothing(tmp_path):
    from safetensors.torch import load_file

    network = torch.nn.Linear(2, 2)
    network.register_buffer("index", torch.tensor([0, 255]))
    network.register_buffer("wide", torch.tensor([0, 256]))
    export(network, network.state_dict(), tmp_path / "w.safetensors")
    saved = load_file(tmp_path / "w.safetensors")
    assert (saved["index"].dtype, saved["wide"].dtype, saved["weight"].dtype) == (
        torch.uint8,
        torch.int64,
        torch.float32,
    )
    assert saved["index"].long().equal(network.index)
