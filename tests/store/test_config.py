from dataclasses import field
from pathlib import Path

import pytest

from championship_sr.store.config import (
    PathText,
    UserPath,
    build,
    config_dataclass,
    dump_yaml,
    load_section,
    override,
    to_plain,
)
from championship_sr.store.errors import ConfigError


@config_dataclass
class Optimiser:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


@config_dataclass
class Run:
    steps: int
    optimiser: Optimiser = field(default_factory=Optimiser)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_configuration_survives_yaml(tmp_path):
    run = build(Run, {"steps": 5, "optimiser": {"lr": 0.5, "betas": [0.1, 0.2]}}, "here")
    path = write(tmp_path, dump_yaml({"train": to_plain(run)}))
    assert load_section(Run, path, "train") == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 5, stepz: 6}", "train.stepz: no such key"),
        ("train: {steps: 5, optimiser: {lrr: 1}}", "train.optimiser.lrr: no such key"),
        ("train: {steps: many}", "train.steps: .*integer.*'many'"),
        ("train: {}", "train.steps: missing"),
        ("train: {steps: 0}", "steps must be at least 1"),
        ("trian: {steps: 5}", "trian: no such section"),
        ("train: 5", "train: expected a group of keys"),
        ("- 5", "expected a mapping"),
        ("a: [", "not a readable YAML"),
    ],
)
def test_whatever_does_not_fit_is_named_with_its_path(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_section(Run, write(tmp_path, text), "train")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such configuration file"):
        load_section(Run, tmp_path / "nothing.yaml", "train")


def test_set_overrides_one_value_deep_down_and_leaves_its_neighbours(tmp_path):
    path = write(tmp_path, "train: {steps: 5, optimiser: {lr: 0.5}}")
    run = load_section(Run, path, "train", ["train.optimiser.betas=[0.5, 0.6]", "train.steps=7"])
    assert (run.steps, run.optimiser.lr, run.optimiser.betas) == (7, 0.5, (0.5, 0.6))


@pytest.mark.parametrize("assignment", ["train.steps", "=5", "train.steps.x=5", "train.steps=[1"])
def test_a_malformed_set_is_named(assignment):
    with pytest.raises(ConfigError, match="--set"):
        override({"train": {"steps": 5}}, [assignment])


@config_dataclass
class Part:
    crop_px: int = 64
    folder: UserPath | None = None


@config_dataclass
class Whole:
    optimiser: Part = field(default_factory=Part)
    data: Part = field(default_factory=Part)
    stages: tuple[Part, ...] = ()
    batch: int = 1
    images: tuple[str, ...] = ()
    root: PathText = ""


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.optimizer.crop_px=1", "train.optimizer: no such key; did you mean train.optimiser?"),
        ("train.data.crop=1", "train.data.crop: no such key; did you mean train.data.crop_px?"),
        ("train.batches=1", "train.batches: no such key; did you mean train.batch?"),
        ("train.folder=x", "train.folder: no such key; did you mean train.optimiser.folder?"),
        ("train.stages=[{crop: 1}]", "train.stages.0.crop: no such key; did you mean train.stages.crop_px?"),
        ("crop_px=64", "crop_px: no such section (expected one of extract, train, evaluate); did you mean train."),
        ("data.crop_px=64", "did you mean train.data.crop_px?"),
        ("trian.batch=1", "trian: no such section (expected one of extract, train, evaluate); did you mean train"),
        ("train.zzz=1", "train.zzz: no such key"),
    ],
)
def test_an_unknown_key_names_the_one_that_is_near(assignment, said):
    with pytest.raises(ConfigError) as caught:
        load_section(Whole, None, "train", [assignment])
    assert said in str(caught.value)
    assert said.endswith("key") == str(caught.value).endswith("key")


def test_an_id_of_digits_is_a_text_as_it_was_typed():
    found = load_section(Whole, None, "train", ["train.images=[0010, 101085, 0801]"])
    assert found.images == ("0010", "101085", "0801")


def test_paths_below_the_home_folder_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    found = load_section(Whole, None, "train", ["train.data.folder=~/a", "train.root=~/b"])
    assert (str(found.data.folder), found.root) == ("/home/somebody/a", "/home/somebody/b")
    assert load_section(Whole, None, "train", ["train.root=s3://a/~b"]).root == "s3://a/~b"


def test_nothing_is_blamed_on_an_option_that_nobody_typed():
    with pytest.raises(ConfigError, match=r"^the given options: train.batch: "):
        load_section(Whole, None, "train", [], ["train.batch=x"])
