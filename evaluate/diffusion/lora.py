"""Low-rank updates added to the weights of a model, once, so that a step costs no more than without them."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from championship_sr.store.disk.small_files import parse_json
from championship_sr.store.errors import WeightsError

KEY = re.compile(
    r"(?:transformer\.|vae\.)?(.+)\.lora_([AB])\.weight"
)  # TSD-SR's VAE keys begin with "transformer." too
METADATA = "lora_adapter_metadata"  # where diffusers keeps lora_alpha; older files have none, and alpha = rank
UNKNOWN = ("alpha_pattern", "use_dora", "use_rslora", "lora_bias")  # settings that change the update


def merge_lora(model: nn.Module, path: Path) -> int:
    """Adds the LoRA to the weights and returns how many layers changed: W becomes W + (alpha / rank) B A, in fp32.

    raises  WeightsError if the file is not a LoRA, or has a layer that the model lacks: then nothing is changed
    source  Hu et al. 2021, section 4.1
    """
    tensors, settings = _read(path)
    updates = _updates(tensors, settings.get("lora_alpha"), path)
    weights = {name: _weight(model, name, update, path) for name, update in updates.items()}
    for name, update in updates.items():
        weight = weights[name].data
        weight.copy_(weight.float() + update.view_as(weight))
    return len(updates)


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it isn't a mapping
            settings = dict(parse_json((file.metadata() or {}).get(METADATA, "{}")))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable LoRA: {' '.join(str(error).split())}") from None
    settings = {key.rpartition(".")[2]: value for key, value in settings.items()}
    strange = [key for key in UNKNOWN if settings.get(key)]
    if strange:
        raise WeightsError(
            f"{path}: a LoRA with {', '.join(strange)}, which is unsupported; merge it with another tool"
        )
    return tensors, settings


def _updates(tensors: dict[str, Tensor], alpha: float | None, path: Path) -> dict[str, Tensor]:
    """Layer -> (out, in), or (out, in * height * width) for a convolution."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if not match:
            raise WeightsError(
                f"{path}: {key} is not a supported kind of LoRA key (layer.lora_A.weight, layer.lora_B.weight)"
            )
        half = halves.setdefault(match[1], {})
        if match[2] in half:
            raise WeightsError(f"{path}: {match[1]}: two lora_{match[2]}, with and without a prefix")
        half[match[2]] = tensor.float().flatten(1)
    if not halves:
        raise WeightsError(f"{path}: contains no LoRA")
    updates = {}
    for name, half in halves.items():
        if len(half) < 2 or half["A"].shape[0] != half["B"].shape[1]:
            raise WeightsError(f"{path}: {name}: lora_A and lora_B do not form a pair")
        rank = half["A"].shape[0]
        updates[name] = half["B"] @ half["A"] * ((alpha or rank) / rank)
    return updates


def _weight(model: nn.Module, name: str, update: Tensor, path: Path) -> nn.Parameter:
    try:
        weight = model.get_submodule(name).get_parameter("weight")
    except AttributeError:
        raise WeightsError(f"{path}: {name}: the model has no such layer") from None
    if weight.flatten(1).shape != update.shape:
        raise WeightsError(
            f"{path}: {name}: the model's weight is {tuple(weight.shape)}, but the update is {tuple(update.shape)}"
        )
    return weight
