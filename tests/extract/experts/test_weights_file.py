"""Weights files: what may be in them, what is refused, and in which words."""

import os
import pickle

import pytest
import torch

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.networks import load_network
from championship_sr.store.disk.small_files import sha256_of
from championship_sr.store.errors import WeightsError
from tests.extract.experts.small_edsr import DECLARED, edsr


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_not_run(entry, tmp_path, zipped):
    state = {"params": edsr().state_dict(), "evil": Evil(tmp_path / "ran")}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    config = entry((tmp_path / "w.pth").read_bytes(), ".pth")
    with pytest.raises(WeightsError, match=r"is a pickle with Python code \(posix.mkdir\), which is never run"):
        load_network(config, 4)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_something_else_is_refused(entry):
    with pytest.raises(WeightsError, match="a pickle not written by torch"):
        load_network(entry(pickle.dumps({"a": [1, 2]}), ".pth"), 4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.001, 0.0])
def test_a_truncated_file_is_told_in_one_line(entry, tmp_path, suffix, keep):
    whole = entry(edsr().state_dict(), suffix)
    content = (tmp_path / f"weights{suffix}").read_bytes()
    with pytest.raises(WeightsError, match="truncated, or not a") as caught:
        load_network(entry(content[: int(len(content) * keep)], suffix), 4)
    assert "\n" not in str(caught.value)
    assert whole.weights in str(caught.value)


def test_a_missing_file_says_where_it_is_published(entry, tmp_path):
    config = entry(edsr().state_dict(), url="https://example.org/weights")
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"no weights at .*Published at https://example.org/weights.*--random-weights"
    ):
        load_network(config, 4)


def test_a_file_with_another_sha256_is_refused(entry, tmp_path):
    state = edsr().state_dict()
    digest = sha256_of(entry(state) and tmp_path / "weights.safetensors")
    assert load_network(entry(state, sha256=digest[:8]), 4).weights_sha256 == digest
    with pytest.raises(WeightsError, match=rf"sha256 is {digest[:16]}\.\.\., but the entry of e says 00000000"):
        load_network(entry(state, sha256="00000000"), 4)


def test_what_a_wrong_file_holds_is_said_before_its_sha256(entry):
    with pytest.raises(WeightsError, match="holds EDSR for x2, expected x4"):
        load_network(entry(edsr(upscale=2).state_dict(), sha256="00000000"), 4)


def wrapped(weights: dict, other: dict) -> dict:
    """Checkpoints as training tools write them: with these weights, those to be taken, and others beside them."""

    def below(prefix, state):
        return {prefix + key: value for key, value in state.items()}

    counter = {"n_averaged": torch.tensor(7)}
    return {
        "torch.compile": below("_orig_mod.", weights),
        "compiled and parallel": below("module._orig_mod.", weights),
        "SWA": below("module.", weights) | counter,
        "Lightning": {"state_dict": below("model.", weights) | {"loss.weight": torch.ones(3)}, "epoch": 3},
        "Lightning's EMA": {"state_dict": below("model.", other) | below("ema_model.module.", weights)},
        "params_ema": {"params": other, "params_ema": weights},
        "ema_state_dict": {"state_dict": other, "ema_state_dict": weights, "epoch": 3},
        "model_ema": {"model": other, "model_ema": below("module.", weights) | counter, "optimizer": {"state": {}}},
        "ema": {"network": other, "ema": weights, "step": 3},
        "shadow": {"ema": {"shadow": weights, "decay": 0.99}},
        "a list of averages": {"state_dict": weights, "ema": [torch.ones(2)]},
    }


AVERAGED = {"Lightning's EMA": "ema_model.module.", "params_ema": "using the average, params_ema",
            "ema": "using the average, ema", "ema_state_dict": "using the average, ema_state_dict",
            "model_ema": "using the average, model_ema",
            "a list of averages": "its ema is not a state_dict; using state_dict"}  # fmt: skip


@pytest.mark.parametrize("layout", wrapped({}, {}))
@pytest.mark.parametrize("own", [False, True])
def test_checkpoints_of_training_tools_load_and_a_choice_is_named(entry, caplog, monkeypatch, tmp_path, layout, own):
    network, other = edsr(), edsr()
    with torch.no_grad():
        other.conv_last.weight.add_(1)
    values = {}
    if own:
        (tmp_path / "own_edsr.py").write_text(
            "from championship_sr.extract.edsr import EDSR\ndef make(**v): return EDSR(**v)"
        )
        monkeypatch.syspath_prepend(tmp_path)
        values = {"architecture": "own_edsr:make", "hyperparameters": DECLARED["hyperparameters"]}
    config = entry(wrapped(network.state_dict(), other.state_dict())[layout], ".ckpt", **values)
    loaded = load_network(config, 4)
    image = torch.rand(1, 3, 7, 9)
    assert loaded.call(image).equal(network(image))
    assert AVERAGED.get(layout, "") in caplog.text


def test_what_is_no_weights_file_is_named_as_what_it_is(entry, tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 3, 1)).save(str(tmp_path / "scripted.pt"))
    for content, said in (
        ((tmp_path / "scripted.pt").read_bytes(), "a TorchScript program"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page instead of the weights"),
    ):
        with pytest.raises(WeightsError, match=said):
            load_network(entry(content, ".pth"), 4)


def test_hostile_weights_cannot_claim_more_than_they_hold(entry):
    state = edsr().state_dict()
    state["conv_first.weight"] = torch.zeros(1).expand(1 << 20, 3, 3, 3)
    with pytest.raises(WeightsError, match=r"conv_first.weight claims shape \(1048576, 3, 3, 3\), but the file holds"):
        load_network(entry(state, ".pth"), 4)


@pytest.mark.parametrize(
    ("kind", "said"), [("pipe", "a named pipe"), ("loop", "a link that leads"), ("folder", "a folder")]
)
def test_hostile_places_of_weights_are_named_and_not_waited_for(tmp_path, kind, said):
    path = tmp_path / "weights.pth"
    {"pipe": os.mkfifo, "loop": lambda p: p.symlink_to(p), "folder": os.mkdir}[kind](path)
    with pytest.raises(WeightsError, match=f"expert e: weights: .*{said}"):
        load_network(load_expert_config({"name": "e", "weights": str(path), "tap": "body"}), 4)
