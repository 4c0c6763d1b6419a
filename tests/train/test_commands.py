"""The command `train`, from its options to its last lines."""

import json

import pytest
import yaml
from click.testing import CliRunner

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.train.commands import bench, read_settings, train
from championship_sr.train.records.checkpoint import checkpoints


def run(*arguments, fails: type[Exception] | None = None):
    result = CliRunner().invoke(train, [str(each) for each in arguments])
    if fails is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert isinstance(result.exception, fails)
    return result


@pytest.fixture(scope="module")
def config_file(make_config, tmp_path_factory):
    from championship_sr.store.config import dump_yaml, to_plain

    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(dump_yaml({"train": to_plain(make_config(steps=4))}))
    return path


def test_training_ends_with_the_best_and_goes_on_by_resume(shared_store, config_file, tmp_path):
    out = tmp_path / "run"
    done = run("--store", shared_store, "--config", config_file, "--out", out, "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["run"] == str(out) and result["best"]["step"] == 4
    assert set(result["reference_psnr"]) == {"one", "two", "mean", "fitted"}
    again = run("--resume", out, "--set", "train.steps=6")
    assert checkpoints(out)[-1].step == 6
    assert again.stdout.splitlines()[-1] == str(out) and "dB at step" in again.stdout


def test_the_same_command_goes_on_and_another_configuration_is_refused(shared_store, config_file, tmp_path):
    command = ["--store", shared_store, "--config", config_file, "--out", tmp_path / "run"]
    run(*command)
    run(*command)
    refused = run(*command, "--set", "train.seed=1", fails=ConfigError)
    assert "seed is 42 there, 1 now" in str(refused.exception)


def test_what_is_missing_or_too_much_is_a_usage_error(shared_store, tmp_path):
    assert "give --store and --out, or --resume" in run("--store", shared_store, fails=SystemExit).output
    both = run("--resume", tmp_path, "--out", tmp_path, fails=SystemExit)
    assert both.exit_code == 2 and "leave out --out" in both.output


def test_resuming_what_is_no_run_and_training_from_what_is_no_store_are_named(tmp_path):
    assert "not a training run" in str(run("--resume", tmp_path, fails=ConfigError).exception)
    nowhere = run("--store", tmp_path, "--out", tmp_path / "run", fails=StoreError)
    assert "not a feature store" in str(nowhere.exception)


def test_an_unknown_key_is_named_with_its_path(shared_store, tmp_path):
    failed = run("--store", shared_store, "--out", tmp_path, "--set", "train.data.batchsize=4", fails=ConfigError)
    assert "train.data.batchsize: no such key" in str(failed.exception)


def test_the_default_is_the_swift_profile_of_the_package():
    assert read_settings(None, ()).fusion.profile == "swift"
    assert read_settings(None, ("train.fusion.profile=paper",)).fusion.profile == "paper"


def test_describe_counts_the_parameters_of_the_stores_experts(shared_store, config_file):
    from championship_sr.train.fusion.network import build_fusion

    described = run("--store", shared_store, "--config", config_file, "--describe", "--json")
    result = json.loads(described.stdout.splitlines()[-1])
    settings = read_settings(config_file, ())
    network = build_fusion(settings.fusion, {"one": 5, "two": 7}, 4)
    assert result["channels"] == {"one": 5, "two": 7}
    whole = result["phases"][-1]
    assert whole["name"] == "network" and whole["parameters"] == sum(p.numel() for p in network.parameters())


def test_bench_step_has_the_figures_of_each_profile_and_batch():
    result = CliRunner().invoke(bench, ["step", "--crop", "8", "--batch", "1", "--rounds", "1", "--no-live", "--json"])
    figures = json.loads(result.stdout.splitlines()[-1])
    keys = {"seconds_forward", "seconds_step", "gflop_forward", "saved_mib", "parameters"}
    assert all(set(figures[profile]["1"]) == keys for profile in ("direct", "paper", "swift"))


@pytest.mark.parametrize("profile", ["swift.yaml", "paper.yaml", "lean.yaml"])
def test_the_profiles_fit_the_documents_data_set(profile):
    from importlib import resources

    from championship_sr.store.config import build
    from championship_sr.train.config import TrainConfig, learning_rate, loss_stages, span

    content = yaml.safe_load(resources.files("championship_sr.configs").joinpath(profile).read_text())["train"]
    config = build(TrainConfig, content, profile)
    length = span(config, 3450 * config.data.repeat_factor)
    rate, stages = learning_rate(config, length), loss_stages(config, length)
    assert rate(length.steps - 1) == pytest.approx(config.schedule.lowest, rel=1e-3)
    assert stages(length.steps - 1) == len(config.losses.stages) - 1


def test_what_features_are_worth_is_said_of_two_runs_that_differ_in_them_alone(shared_store, config_file, tmp_path):
    command = ["--store", shared_store, "--config", config_file, "--out", tmp_path, "--compare-features"]
    worth = json.loads(run(*command, "--json").stdout.splitlines()[-1])
    configs = [
        yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("with-features", "without-features")
    ]
    assert [each["train"]["fusion"].pop("features") for each in configs] == [True, False]
    assert configs[0] == configs[1]
    assert worth["gain"]["mean"] == pytest.approx(worth["with_features"] - worth["without_features"])
    assert worth["gain"]["low"] <= worth["gain"]["mean"] <= worth["gain"]["high"]
    assert (worth["steps"], worth["images"]) == (4, 1)
    said = run(*command).stdout  # the runs are there already
    assert "After 4 steps, on 1 images" in said and f"{worth['gain']['mean']:+.3f} dB" in said


def test_features_are_compared_only_where_there_are_some(make_store, config_file, tmp_path):
    refused = run("--store", tmp_path, "--compare-features", fails=SystemExit)
    assert "--compare-features needs --store and --out" in refused.output
    plain = make_store(tmp_path / "plain.store", {"a": 0}, sizes=((16, 20),) * 4)
    command = ["--store", plain, "--out", tmp_path / "runs", "--compare-features", "--config", config_file]
    assert "none of its experts has features (a)" in str(run(*command, fails=ConfigError).exception)
    assert not (tmp_path / "runs").exists()
