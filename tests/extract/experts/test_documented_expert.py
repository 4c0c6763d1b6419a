import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import load_expert
from championship_sr.store.errors import ConfigError, WeightsError

DOCUMENT = Path(__file__).parents[3] / "docs/experts.md"
CPU = torch.device("cpu")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The document's network, importable, with weights on disk; its class and its entry."""
    text = DOCUMENT.read_text(encoding="utf-8")
    code, entry = (re.search(rf"```{kind}\n# [\w/]*nafsr\.\w+\n(.*?)```", text, re.S)[1] for kind in ("python", "yaml"))
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets/nafsr.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict = {}
    exec(code, namespace)  # the same code as the module, for an independent answer
    torch.manual_seed(0)
    network = namespace["NAFSR"]().eval()
    Path("weights").mkdir()
    save_file(network.state_dict(), "weights/nafsr.safetensors")
    return network, yaml.safe_load(entry)


def test_the_documented_network_runs_as_an_expert(example):
    network, entry = example
    with load_expert(load_expert_config(entry), CPU, 4) as expert:
        lr = torch.rand(1, 3, 9, 14)
        sr, features = expert(lr)
    assert sr.equal(network(lr).clamp(0, 1))
    assert features["features"].equal(network.body(network.head(lr))) and expert.channels == {"features": 32}
    assert expert.identity["architecture"] == "NAFSR" and expert.identity["hyperparameters"] == entry["hyperparameters"]


def test_its_weights_load_strictly(example):
    network, entry = example
    state = network.state_dict()
    cut = {key: value for key, value in state.items() if not key.startswith("tail")}
    for wrong, message in (
        (cut, r"does not fit nafsr: 2 tensors missing \(such as tail.0.weight\)"),
        (state | {"more": torch.zeros(1)}, r"1 tensors unexpected \(such as more\)"),
        (state | {"head.bias": torch.zeros(3)}, r"1 of another shape \(such as head.bias\)"),
        ({"conv.weight": torch.zeros(1)}, "another network than nafsr: none of its tensors"),
    ):
        save_file(wrong, "weights/nafsr.safetensors")
        with pytest.raises(WeightsError, match=message):
            load_expert(load_expert_config(entry), CPU, 4)


def test_a_factory_that_cannot_be_imported_or_called_is_named(example):
    _, entry = example
    for architecture, values in (
        ("mynets.absent:NAFSR", {}),
        ("mynets.nafsr:Absent", {}),
        ("mynets.nafsr:NAFSR", {"depth": 3}),
    ):
        with pytest.raises(ConfigError, match=f"architecture={architecture}"):
            load_expert(load_expert_config(entry | {"architecture": architecture, "hyperparameters": values}), CPU, 4)
