"""A store and a run that name code of their own, put through every command that loads their experts."""

import shutil
import sys
from itertools import count

import pytest
import yaml
from PIL import Image

from championship_sr import pipeline
from championship_sr.store.config import dump_yaml

NUMBER = count()
STRANGER = """
from pathlib import Path
from championship_sr.extract.edsr import EDSR
Path({marker!r}).touch()

def network(**hyperparameters):
    return EDSR(num_feat=6, num_block=1, res_scale=1.0)

def number(**hyperparameters):
    return 3
"""
COMMANDS = {
    "evaluate": "evaluate --run {mine} --store {store} --set evaluate.device=cpu",
    "evaluate without a run": "evaluate --store {store} --set evaluate.device=cpu",
    "evaluate of files": "evaluate --run {run} --hr {hr} --set evaluate.device=cpu",
    "upscale": "upscale --run {run} {hr} {out} --set evaluate.device=cpu",
    "submit": "evaluate submit --run {run} --lr {hr} {out} --set evaluate.device=cpu",
    "export": "evaluate export --run {run} --with-experts {out}",
    "verify": "store verify {store} --live 1",
    "experts live": "experts live {store} --images 1 --device cpu",
    "train --live": "train --store {store} --live --out {out}" + " {fast}",
    "train --live --resume": "train --resume {live_run} {fast}",
    "train --resume": "train --resume {held_run} {fast}",
    "train on a store": "train --store {store} --out {out} --set train.validation.hr=[{held_out}] {fast}",
}
FAST = (
    "train.steps=1 train.device=cpu train.data.crop_px=8 train.data.batch_size=1 train.validation.hold_out=1 "
    "train.tensorboard=false"
)


def rewritten(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(dump_yaml(content))


@pytest.fixture
def hostile(tmp_path, store_root, run_root, hr_folder, monkeypatch):
    """The places of a store and of runs whose expert `two` names an architecture, and the marker of the code there."""

    def make(architecture: str, hyperparameters: dict, key: str = "architecture"):
        module, marker = f"stranger_{next(NUMBER)}", tmp_path / "marker"
        (tmp_path / f"{module}.py").write_text(STRANGER.format(marker=str(marker)))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        named = architecture.replace("MODULE", module)

        def change(entry):
            config = entry["notes"]["config"]
            if key == "architecture":
                config |= {"architecture": named, "hyperparameters": hyperparameters}
            else:
                config["pretrain"] = {"network": named, "hyperparameters": hyperparameters, "hr": ["."]}

        places = {"mine": run_root, "hr": hr_folder, "out": tmp_path / "out", "marker": marker, "module": module}
        places["fast"] = " ".join(f"--set {text}" for text in FAST.split())
        places["store"] = shutil.copytree(store_root, tmp_path / "their.store")
        rewritten(places["store"] / "experts/two/expert.yaml", change)
        places["held_out"] = tmp_path / "held_out"
        places["held_out"].mkdir()
        Image.effect_noise((40, 40), 50).convert("RGB").save(places["held_out"] / "other.png")
        held = {"validation": {"hr": [str(places["held_out"])]}}
        for name, values in (("run", {}), ("live_run", {"live": {"enabled": True}}), ("held_run", held)):
            run = places[name] = shutil.copytree(run_root, tmp_path / name)
            rewritten(run / "experts.yaml", lambda content: change(content["two"]))
            rewritten(run / "run.yaml", lambda content: content.update(store=str(places["store"])))
            rewritten(run / "config.yaml", lambda content, values=values: content["train"].update(values))
        for name in ("live_run", "held_run"):
            shutil.rmtree(places[name] / "checkpoints")
        return places

    return make


def called(monkeypatch, capsys, command: str, places: dict, *more: str) -> tuple[int, str]:
    arguments = [text.format(**places) for text in command.format(fast=places["fast"], **without(places)).split()]
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *arguments, *more])
    with pytest.raises(SystemExit) as ended:
        pipeline.main()
    return ended.value.code, capsys.readouterr().err


def without(places):
    return {key: value for key, value in places.items() if key != "fast"}


@pytest.mark.parametrize(
    ("command", "key"), [*((command, "architecture") for command in COMMANDS), ("evaluate", "pretrain.network")]
)
def test_hostile_code_is_named_and_never_run(hostile, monkeypatch, capsys, command, key):
    places = hostile("MODULE:network", {}, key)
    status, said = called(monkeypatch, capsys, COMMANDS[command], places)
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status in (1, 2)
    assert places["module"] not in sys.modules and not places["marker"].exists()
    named_in = "experts.yaml" if "--run {run}" in COMMANDS[command] else "their.store/experts/two/expert.yaml"
    assert f"{named_in}: expert two: {key}={places['module']}:network: would import the module" in line
    assert f"--trust-architecture {places['module']}" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_the_user_names_too_is_run(hostile, monkeypatch, capsys, command):
    places = hostile("MODULE:network", {})
    status, said = called(monkeypatch, capsys, COMMANDS[command], places, "--trust-architecture", places["module"])
    assert status == 0, said
    assert places["marker"].exists()


@pytest.mark.parametrize("command", ["evaluate", "evaluate of files", "experts live", "train --resume"])
@pytest.mark.parametrize("trusted", [(), ("--trust-architecture", "os")])
def test_a_hostile_call_of_the_system_is_refused_in_any_case(hostile, monkeypatch, capsys, command, trusted):
    places = hostile("os:system", {"command": "touch marker"})
    status, said = called(monkeypatch, capsys, COMMANDS[command], places, *trusted)
    assert status in (1, 2) and not places["marker"].exists()
    assert ("neither a torch.nn.Module class" if trusted else "--trust-architecture os") in said


def test_a_hostile_run_does_not_choose_the_user_files_that_it_reads_its_experts_from(hostile, monkeypatch, capsys):
    places = hostile("MODULE:network", {})
    entry = yaml.safe_load((places["store"] / "experts/two/expert.yaml").read_text())["notes"]["config"]
    (places["live_run"] / "two.yaml").write_text(yaml.dump(entry))
    live = {"enabled": True, "experts": [str(places["live_run"] / "two.yaml")]}
    rewritten(places["live_run"] / "config.yaml", lambda content: content["train"].update(live=live))
    status, said = called(monkeypatch, capsys, COMMANDS["train --live --resume"], places)
    assert status == 2 and not places["marker"].exists()
    assert f"live_run/two.yaml: expert two: architecture={places['module']}:network" in said


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("MODULE:number", "returned a int, not a torch.nn.Module"),
        ("MODULE:Path", "neither a torch.nn.Module class nor a function"),
        ("MODULE:absent", "has no attribute 'absent'"),
    ],
)
def test_what_a_trusted_module_names_must_be_a_network(hostile, monkeypatch, capsys, factory, said):
    places = hostile(factory, {})
    status, text = called(
        monkeypatch, capsys, COMMANDS["experts live"], places, "--trust-architecture", places["module"]
    )
    assert status == 2 and said in text
