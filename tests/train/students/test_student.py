"""A student: trained from LR alone by the fusion's loop, resumed to the same bytes, and an expert in the end."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.experts.expert import load_expert
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.train.records.checkpoint import choose, load_fusion
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.loop import train
from championship_sr.train.run.watch import Watch
from championship_sr.train.students.student import export

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TAUGHT = {"stages": [{"length": "100 %", "weights": {"l1": 0.5, "teacher": 0.5}}]}


def entry(**changes) -> dict:
    network = {"network": "extract.edsr:EDSR", "hyperparameters": {"num_feat": 4, "num_block": 1, "res_scale": 1.0}}
    content = {"name": "small", "weights": "nowhere.pth", "tap": "conv_after_body", "pretrain": network}
    return {**content, **changes}


@pytest.fixture
def student_config(make_config):
    def make(student: dict | None = None, **changes):
        return make_config(**{"student": student or entry(), "data": {"augment": "stored"}, **changes})

    return make


def test_a_student_ends_as_an_expert_that_makes_the_image_that_was_scored(student_config, shared_store, tmp_path):
    run = train(student_config(), shared_store, tmp_path / "run")
    events = read_metrics(run)
    assert set(events[0]["psnr"]) == {"bicubic"} and events[-1]["event"] == "end"
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "run").rename(tmp_path / "moved" / "run")  # the entry finds its weights beside it
    config = load_expert_config(moved / "small.yaml")
    with load_expert(config, CPU, 4) as expert:
        sr, features = expert(torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0)))
    assert sr.shape == (1, 3, 36, 56) and features["features"].shape == (1, 4, 9, 14)
    kept = load_file(choose(moved, "best").path / "weights.safetensors")
    assert all(torch.equal(value, kept[f"network.{key}"]) for key, value in load_file(config.weights).items())


def test_a_student_learns(student_config, shared_store, tmp_path):
    longer = student_config(steps=40, optimiser={"learning_rate": 5e-3}, ema_decay=0.5, validation={"every": 40})
    losses = [e["loss"] for e in read_metrics(train(longer, shared_store, tmp_path / "run")) if e["event"] == "train"]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_an_interrupted_student_goes_on_to_the_same_bytes(student_config, make_learnable, tmp_path, monkeypatch):
    config = student_config(losses=TAUGHT, teacher={"of": "fitted"})
    stores = [make_learnable(tmp_path / f"{name}.store") for name in ("whole", "cut")]
    whole = train(config, stores[0], tmp_path / "whole")
    watched = Watch.__call__

    def interrupted(self, number, *rest):
        if number == 6:
            raise KeyboardInterrupt
        return watched(self, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Watch, "__call__", interrupted)
        train(config, stores[1], tmp_path / "cut")
    assert not (tmp_path / "cut/small.yaml").exists()
    cut = train(config, stores[1], tmp_path / "cut", resume=True)
    assert set(read_metrics(cut)[0]["psnr"]) == {"bicubic", "teacher"}
    for name in ("small.safetensors", "small.yaml"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_network_of_ones_own_becomes_an_expert_too(student_config, shared_store, tmp_path):
    mine = entry(pretrain={"network": f"{__name__}:mine", "hyperparameters": {"width": 3}}, tap="none")
    run = train(student_config(mine, steps=4), shared_store, tmp_path / "run")
    made = yaml.safe_load((run / "small.yaml").read_text())
    assert made["architecture"] == f"{__name__}:mine" and made["hyperparameters"] == {"width": 3}
    with load_expert(load_expert_config(run / "small.yaml"), CPU, 4) as expert:
        assert expert(torch.zeros(1, 3, 8, 8))[0].shape == (1, 3, 32, 32)


def mine(width: int, scale: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, width * scale**2, 3, padding=1), torch.nn.PixelShuffle(scale))


def test_a_student_goes_on_from_weights(student_config, shared_store, tmp_path):
    network = EDSR(num_feat=4, num_block=1, res_scale=1.0)
    export(network, tmp_path / "start.safetensors")
    begun = entry(pretrain=entry()["pretrain"] | {"start": str(tmp_path / "start.safetensors")})
    still = {"learning_rate": 1e-12, "weight_decay": 0}
    run = train(student_config(begun, steps=4, optimiser=still), shared_store, tmp_path / "run")
    for key, value in load_file(run / "small.safetensors").items():
        assert torch.allclose(value, network.state_dict()[key], atol=1e-6)
    save_file({"other": torch.zeros(1)}, tmp_path / "start.safetensors")
    with pytest.raises(WeightsError, match=r"start.safetensors: another network than small"):
        train(student_config(begun), shared_store, tmp_path / "other")


@pytest.mark.parametrize(
    "student, message",
    [
        (
            entry(pretrain={**entry()["pretrain"], "hyperparameters": {"num_feat": 4, "num_block": 1, "upscale": 2}}),
            r"student small: cannot become an x4 expert of this store: .*x2",
        ),
        (entry(pretrain={"network": f"{__name__}:mine", "hyperparameters": {"width": 1, "scale": 2}}, tap="none"),
         "student small: cannot become an x4 expert of this store"),
        (entry(tap="conv_after_nothing"), "student small: cannot become an x4 expert.*conv_after_nothing"),
        (entry(pretrain=None), "student small: its entry describes no network to train"),
    ],
)  # fmt: skip
def test_what_cannot_become_an_expert_of_the_store_is_refused_first(
    student_config, shared_store, tmp_path, student, message
):
    with pytest.raises(ConfigError, match=message):
        train(student_config(student), shared_store, tmp_path / "run")


def test_keys_that_a_student_has_no_use_for_are_refused(student_config):
    with pytest.raises(ConfigError, match=r"experts: a student sees only LR; name its teacher's experts"):
        student_config(experts=["one"])
    with pytest.raises(ConfigError, match="student: it sees only LR, so there is no expert to run live"):
        student_config(live={"enabled": True})


def test_a_students_run_is_no_fusion(student_config, make_config, shared_store, tmp_path):
    run = train(student_config(steps=4), shared_store, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"the run of a student.*use it as an expert with --expert .*small.yaml"):
        load_fusion(run)
    with pytest.raises(ConfigError, match="the run of a student"):
        train(make_config(teacher={"of": str(run)}, losses=TAUGHT), shared_store, tmp_path / "taught")


def test_without_validation_the_last_checkpoint_is_taken(student_config, shared_store, tmp_path):
    run = train(student_config(validation={"hold_out": 0}, steps=6), shared_store, tmp_path / "run")
    assert choose(run, "best").step == 6 and (run / "small.safetensors").exists()
    assert {event["event"] for event in read_metrics(run)} == {"train", "end"}


def test_a_run_does_not_decide_which_code_its_student_is(student_config, shared_store, tmp_path):
    from click.testing import CliRunner

    from championship_sr.train.commands import train as command

    mine = entry(pretrain={"network": f"{__name__}:mine", "hyperparameters": {"width": 3}}, tap="none")
    run = train(student_config(mine, steps=4), shared_store, tmp_path / "run")
    refused = CliRunner().invoke(command, ["--resume", str(run), "--set", "train.steps=8"])
    assert "would import the module" in str(refused.exception) and "--trust-architecture" in str(refused.exception)
    given = ["--resume", str(run), "--set", "train.steps=8", "--trust-architecture", __name__]
    assert CliRunner().invoke(command, given).exit_code == 0


def test_the_command_trains_a_student_and_names_its_entry(shared_copy, tmp_path):
    from click.testing import CliRunner

    from championship_sr.train.commands import train as command

    (tmp_path / "small.yaml").write_text(yaml.safe_dump(entry()))
    short = [f"--set=train.{key}" for key in ("steps=2", "data.crop_px=8", "data.batch_size=2", "tensorboard=false",
                                              "schedule.warmup=0", "validation.hold_out=1")]  # fmt: skip
    given = ["--student", str(tmp_path / "small.yaml"), "--teacher", "fitted", "--store", str(shared_copy)]
    done = CliRunner().invoke(command, [*given, "--out", str(tmp_path / "run"), *short], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.splitlines()[-1] == str(tmp_path / "run/small.yaml")
    assert done.output.startswith("bicubic") and "\nteacher " in done.output and "\nsmall " in done.output


@pytest.fixture
def shared_copy(make_learnable, tmp_path) -> Path:
    return make_learnable(tmp_path / "copy.store")


def test_images_without_hr_teach_a_student_by_the_teacher_alone(student_config, shared_store, tmp_path):
    from tests.train.students.test_teacher import without_hr

    root = without_hr(shared_store, tmp_path / "store")
    with pytest.raises(StoreError, match="training needs HR images"):
        train(student_config(), root, tmp_path / "run")
    only = {"stages": [{"length": "100 %", "weights": {"teacher": 1.0}}]}
    run = train(student_config(losses=only, teacher={"of": "mean"}, steps=4), root, tmp_path / "run")
    assert (run / "small.yaml").exists()
