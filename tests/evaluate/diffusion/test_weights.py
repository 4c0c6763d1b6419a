"""LoRA files and folders of weights: what is merged, and what is said of those that don't fit. Without diffusers."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.diffusion.lora import merge_lora
from championship_sr.evaluate.diffusion.weights import _tensor, load_refiner
from championship_sr.store.errors import ConfigError, WeightsError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"proj": nn.Linear(5, 7), "conv": nn.Conv2d(3, 4, 3, bias=False)})
        self.norm = nn.LayerNorm(4)


def updates(prefix: str = "transformer.", rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "block.proj.lora_A": (rank, 5),
        "block.proj.lora_B": (7, rank),
        "block.conv.lora_A": (rank, 3, 3, 3),
        "block.conv.lora_B": (4, rank, 1, 1),
    }
    return {f"{prefix}{key}.weight": torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def numpy_product(tensors: dict[str, torch.Tensor], name: str, prefix: str = "transformer.") -> np.ndarray:
    a, b = (tensors[f"{prefix}{name}.lora_{half}.weight"].numpy() for half in "AB")
    return np.einsum("orxy,rihw->oihw", b, a) if a.ndim == 4 else b @ a


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize(("alpha", "gain"), [(None, 1.0), (8, 4.0)])
def test_updates_are_added_to_the_weights(tmp_path, prefix, alpha, gain):
    tensors, model = updates(prefix), Small()
    before = {name: weight.detach().clone().numpy() for name, weight in model.named_parameters()}
    metadata = {"lora_adapter_metadata": json.dumps({f"{prefix}lora_alpha": alpha, f"{prefix}r": 2})} if alpha else None
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    assert merge_lora(model, tmp_path / "lora.safetensors") == 2
    for name, weight in model.named_parameters():
        expected = before[name]
        if name in ("block.proj.weight", "block.conv.weight"):
            expected = expected + gain * numpy_product(tensors, name.removesuffix(".weight"), prefix)
        np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-5)


def test_half_precision_weights_are_rounded_once(tmp_path):
    model = Small().half()
    tensors = updates()
    expected = model.block["proj"].weight.float() + torch.from_numpy(numpy_product(tensors, "block.proj"))
    save_file(tensors, tmp_path / "lora.safetensors")
    merge_lora(model, tmp_path / "lora.safetensors")
    assert torch.equal(model.block["proj"].weight, expected.half())


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in updates().items() if name != key}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "contains no LoRA"),
        ({"block.proj.alpha": torch.ones(1)}, r"block\.proj\.alpha is not a supported kind of LoRA key"),
        (without("transformer.block.proj.lora_B.weight"), r"block\.proj: lora_A and lora_B do not form a pair"),
        (updates("transformer.other."), r"other\.block\.(proj|conv): the model has no such layer"),
        (updates("") | updates(), r"block\.(proj|conv): two lora_[AB]"),
        (
            {"block.proj.lora_A.weight": torch.ones(2, 6), "block.proj.lora_B.weight": torch.ones(7, 2)},
            r"the model's weight is \(7, 5\), but the update is \(7, 6\)",
        ),
    ],
)
def test_a_lora_of_another_model_changes_nothing_and_is_named(tmp_path, tensors, message):
    model = Small()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(WeightsError, match=message):
        merge_lora(model, tmp_path / "l.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_lora_of_an_unknown_kind_is_refused(tmp_path):
    save_file(updates(), tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps({"use_dora": True})})
    with pytest.raises(WeightsError, match="a LoRA with use_dora"):
        merge_lora(Small(), tmp_path / "l.safetensors")


def test_a_truncated_lora_is_an_error_of_one_line(tmp_path):
    save_file(updates(), tmp_path / "l.safetensors")
    (tmp_path / "l.safetensors").write_bytes((tmp_path / "l.safetensors").read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a readable LoRA") as caught:
        merge_lora(Small(), tmp_path / "l.safetensors")
    assert "\n" not in str(caught.value)


def complete(folder, method: str = "student") -> None:
    """Files under the right names, of no use."""
    files = ["vae/config.json", "vae/model.safetensors", "transformer/config.json", "transformer/model.safetensors"]
    files += ["prompt/prompt_embeds.pt", "prompt/pool_embeds.safetensors"]
    if method == "student":
        files += ["lora/transformer.safetensors", "lora/vae.safetensors"]
    else:
        files += ["scheduler/scheduler_config.json", "lora/teacher.safetensors"]
        files += ["prompt-null/prompt_embeds.pt", "prompt-null/pool_embeds.pt"]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")


def test_everything_missing_is_named_at_once_with_where_to_get_it(tmp_path):
    with pytest.raises(WeightsError) as caught:
        load_refiner(tmp_path / "none")
    message = str(caught.value)
    assert "\n" not in message
    for piece in ("vae/config.json", "transformer/*.safetensors", "lora/vae.safetensors", "prompt/pool_embeds.*"):
        assert piece in message
    assert "scheduler" not in message.split("(")[0]
    assert "hf download stabilityai/stable-diffusion-3-medium-diffusers --include 'vae/*'" in message
    assert str(tmp_path / "none") in message and "github.com/Microtreei/TSD-SR" in message


@pytest.mark.parametrize(
    ("settings", "missing", "not_missing"),
    [
        ({"method": "student"}, ["lora/transformer.safetensors", "lora/vae.safetensors"], ["prompt-null", "teacher.s"]),
        ({"method": "student", "vae_lora": False}, ["lora/transformer.safetensors"], ["lora/vae.safetensors"]),
        ({"method": "teacher"}, ["lora/teacher.safetensors", "prompt-null/prompt_embeds.*"], ["lora/vae.safetensors"]),
        ({"method": "teacher", "teacher_lora": False, "guidance": 1}, ["scheduler/"], ["lora/", "prompt-null"]),
    ],
)
def test_only_what_the_method_needs_is_asked_for(tmp_path, settings, missing, not_missing):
    with pytest.raises(WeightsError) as caught:
        load_refiner(tmp_path, DiffusionConfig(**settings))
    assert all(piece in str(caught.value) for piece in missing)
    assert not any(piece in str(caught.value) for piece in not_missing)


@pytest.mark.parametrize("method", ["student", "teacher"])
def test_without_diffusers_the_error_says_what_to_install(tmp_path, monkeypatch, method):
    complete(tmp_path, method)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'championship-sr\[diffusion\]'") as caught:
        load_refiner(tmp_path, DiffusionConfig(method=method))
    assert "\n" not in str(caught.value)


class Payload:
    """A pickle of this would write a file on loading."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    torch.save(Payload(tmp_path / "run"), tmp_path / "prompt_embeds.pt")
    with pytest.raises(WeightsError, match="can't be loaded"):
        _tensor(tmp_path, "prompt_embeds")
    (tmp_path / "prompt_embeds.pt").write_bytes(pickle.dumps(Payload(tmp_path / "run"), protocol=2))
    with pytest.raises(WeightsError, match="can't be loaded"):
        _tensor(tmp_path, "prompt_embeds")
    assert not (tmp_path / "run").exists()


def test_prompts_are_read_from_either_format(tmp_path):
    value = torch.rand(1, 3, 4)
    torch.save(value, tmp_path / "prompt_embeds.pt")
    save_file({"any name": value}, tmp_path / "pool_embeds.safetensors")
    assert torch.equal(_tensor(tmp_path, "prompt_embeds"), value)
    assert torch.equal(_tensor(tmp_path, "pool_embeds"), value)


@pytest.mark.parametrize("content", [{"a": torch.ones(1)}, [1, 2]])
def test_a_prompt_that_is_no_tensor_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "prompt_embeds.pt")
    with pytest.raises(WeightsError, match="expected a tensor, found"):
        _tensor(tmp_path, "prompt_embeds")
