"""A fusion network of the user's own, as docs/fusion.md describes it: the profile `cnn` in a module of the user's."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from championship_sr.extract.experts.architecture import RefusedArchitecture
from championship_sr.store.config import dump_yaml, to_plain
from championship_sr.store.errors import ConfigError
from championship_sr.train.commands import train as command
from championship_sr.train.fusion import plain_cnn
from championship_sr.train.records.checkpoint import load_fusion
from championship_sr.train.run.loop import train

OWN = "mynet.cnn:PlainCNN"


@pytest.fixture(scope="module")
def own_module(tmp_path_factory):
    """A package of the user's that can be imported."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "mynet").mkdir()
    (folder / "mynet" / "__init__.py").write_text("")
    shutil.copyfile(plain_cnn.__file__, folder / "mynet" / "cnn.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def runs(own_module, shared_store, make_config, tmp_path_factory) -> dict[str, Path]:
    """The example as a module of the user's, and as the profile that it is."""
    root = tmp_path_factory.mktemp("runs")
    fusions = {"own": {"architecture": OWN}, "profile": {"profile": "cnn"}}
    configs = {name: make_config(steps=2, fusion=fusion) for name, fusion in fusions.items()}
    return {name: train(config, shared_store, root / name) for name, config in configs.items()}


def test_the_documented_example_trains_as_the_profile_that_it_is(runs):
    own, profile = (
        load_fusion(run, trusted=["mynet.cnn"]).network.state_dict() for run in (runs["own"], runs["profile"])
    )
    assert own.keys() == profile.keys()
    assert all(torch.equal(own[key], profile[key]) for key in own)


def test_a_run_that_names_its_network_is_loaded_only_when_its_module_is_trusted(runs):
    with pytest.raises(RefusedArchitecture, match=r"own/config\.yaml: .*--trust-architecture mynet\.cnn"):
        load_fusion(runs["own"])


def test_resuming_follows_the_run_only_when_its_module_is_trusted(runs):
    arguments = ["--resume", str(runs["own"]), "--set", "train.steps=3"]
    refused = CliRunner().invoke(command, arguments)
    assert isinstance(refused.exception, RefusedArchitecture) and "mynet.cnn" in str(refused.exception)
    done = CliRunner().invoke(command, [*arguments, "--trust-architecture", "mynet.cnn"])
    assert done.exit_code == 0, done.exception
    assert load_fusion(runs["own"], "last", ["mynet.cnn"]).checkpoint.step == 3


def test_arguments_reach_the_factory_and_wrong_ones_are_named(own_module, shared_store, make_config, tmp_path):
    fusion = {"architecture": OWN, "hyperparameters": {"depth": 2}}
    with pytest.raises(ConfigError, match=r"fusion\.architecture=mynet\.cnn:PlainCNN: .*unexpected.* 'depth'"):
        train(make_config(fusion=fusion), shared_store, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"fusion\.hyperparameters.*not set"):
        make_config(fusion={"hyperparameters": {"depth": 2}})


def test_a_network_without_phases_is_described_as_one(own_module, shared_store, make_config, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(dump_yaml({"train": to_plain(make_config(fusion={"architecture": OWN}))}))
    done = CliRunner().invoke(command, ["--describe", "--store", str(shared_store), "--config", str(path)])
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[-1].startswith("network")
