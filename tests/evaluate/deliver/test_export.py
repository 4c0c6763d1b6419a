"""An exported run is the run, without its training and without its machine."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from championship_sr import load
from championship_sr.evaluate.deliver import export
from championship_sr.evaluate.deliver.export import export_graph, export_run
from championship_sr.store.errors import ConfigError, StoreError, WeightsError


@pytest.fixture(scope="module")
def model(run_root):
    return load(run_root, device="cpu")


def test_an_exported_run_gives_the_same_images(model, tmp_path, hr_folder, monkeypatch):
    exported = load(export_run(model, tmp_path / "shared", with_experts=True), device="cpu")
    monkeypatch.chdir(tmp_path)
    photo = hr_folder / "photo1.png"
    assert np.array_equal(np.asarray(exported(photo)), np.asarray(model(photo)))


def test_weights_files_of_one_name_are_both_kept_and_found(
    tmp_path, hr_folder, expert_entries, make_store_of, make_run, monkeypatch
):
    entries = []
    for entry in expert_entries:
        path = tmp_path / entry["name"] / "net_g_latest.safetensors"
        path.parent.mkdir()
        shutil.copyfile(entry["weights"], path)
        entries.append({**entry, "weights": str(path)})
    run = make_run(tmp_path / "run", make_store_of(tmp_path / "same.store", hr_folder, entries))
    model, photo = load(run, device="cpu"), hr_folder / "photo1.png"
    expected, out = np.asarray(model(photo)), export_run(model, tmp_path / "shared", with_experts=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "one@net_g_latest.safetensors").write_bytes(b"of somebody else")
    for entry in entries:
        Path(entry["weights"]).unlink()
    assert np.array_equal(np.asarray(load(out, device="cpu")(photo)), expected)
    again = export_run(load(out, device="cpu"), tmp_path / "again", with_experts=True)
    assert sorted(path.name for path in (again / "weights").iterdir()) == [
        "one@net_g_latest.safetensors",
        "two@net_g_latest.safetensors",
    ]


def test_it_says_nothing_of_this_machine(model, tmp_path, run_root):
    out = export_run(model, tmp_path / "shared")
    entries = yaml.safe_load((out / "experts.yaml").read_text())
    assert [list(entry["notes"]) for entry in entries.values()] == [["config"]] * 2
    assert entries["one"]["notes"]["config"]["weights"] == "one.safetensors"
    text = "".join(path.read_text() for path in (*out.glob("*.yaml"), *out.glob("*.md")))
    assert str(run_root.parent.parent) not in text
    assert not list(out.rglob("training.safetensors"))


def test_without_the_weights_it_says_which_are_missing(model, tmp_path, hr_folder, monkeypatch):
    exported = load(export_run(model, tmp_path / "shared"), device="cpu")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"one\.safetensors"):
        exported(hr_folder / "photo1.png")


def test_the_model_card_names_the_experts_and_how_to_use_it(model, tmp_path):
    card = (export_run(model, tmp_path / "shared") / "README.md").read_text()
    for entry in model.fusion.expert_entries.values():
        assert entry.identity["weights_sha256"] in card
    assert "from championship_sr import load" in card and "20.000 dB" in card


def test_a_folder_with_something_in_it_is_left_alone(model, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        export_run(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_graph_gives_the_networks_output(model, tmp_path):
    path = tmp_path / "fusion.pt2"
    assert export_graph(model, path, 8) <= 1e-4
    inputs = export._example(model, 8, 5)
    with torch.no_grad():
        expected = model.network(inputs[0], inputs[1], dict(zip(("one", "two"), inputs[2:], strict=True)))
        assert torch.allclose(torch.export.load(path).module()(*inputs), expected, atol=1e-4)


def test_a_graph_that_differs_is_not_kept(model, tmp_path, monkeypatch):
    def wrong(flat, example, other, path):
        path.write_bytes(b"")
        return flat(*other) + 0.01

    monkeypatch.setattr(export, "_write_program", wrong)
    with pytest.raises(StoreError, match=r"differs from the network's by 0\.01"):
        export_graph(model, tmp_path / "fusion.pt2", 8)
    assert not (tmp_path / "fusion.pt2").exists()


@pytest.mark.slow
def test_onnx_gives_the_networks_output(model, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert export_graph(model, tmp_path / "fusion.onnx", 8) <= 1e-4


def test_without_onnx_the_error_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"fusion\.onnx: .*Run: pip install 'championship-sr\[onnx\]'"):
        export_graph(model, tmp_path / "fusion.onnx", 8)
