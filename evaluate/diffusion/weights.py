"""A refiner from a local folder: Stable Diffusion 3 in diffusers' layout, TSD-SR's LoRA and its prompts."""

import logging
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.diffusion.lora import merge_lora
from championship_sr.evaluate.diffusion.refine import Prompt, Refiner
from championship_sr.extract.device import pick_device
from championship_sr.store.disk.small_files import parse_json, read_as
from championship_sr.store.errors import ConfigError, StoreError, WeightsError

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROMPT_FILES = ("prompt_embeds", "pool_embeds")  # each as .safetensors or .pt, one tensor a file
SD3 = (
    "Stable Diffusion 3: hf download stabilityai/stable-diffusion-3-medium-diffusers "
    "--include 'vae/*' 'transformer/*' 'scheduler/*' --local-dir {folder}"
)
TSD_SR = "TSD-SR: download from the links in https://github.com/Microtreei/TSD-SR and name the files so"


def load_refiner(folder: str | Path, config: DiffusionConfig | None = None, device: str = "auto") -> Refiner:
    """The refiner whose weights lie in `folder`; docs/track-b.md lists the files. Nothing is downloaded.

    raises  WeightsError if files are missing, damaged or do not fit together; ConfigError without diffusers
    """
    folder, config = Path(folder), config or DiffusionConfig()
    _check_complete(folder, config)
    diffusers, place, dtype = _library(), pick_device(device), DTYPES[config.precision]
    vae = _model(diffusers.AutoencoderKL, folder / "vae", torch.float32)
    transformer = _model(diffusers.SD3Transformer2DModel, folder / "transformer", dtype)
    for model, file in ((transformer, _transformer_lora(config)), (vae, _vae_lora(config))):
        if file:
            log.info("%s: %d layers changed by %s", folder, merge_lora(model, folder / file), file)
    guided = _prompt_folders(config)
    prompt, *negative = (_prompt(folder / name, transformer) for name in guided)
    _check_fit(folder, config, vae, transformer)
    return Refiner(
        config,
        vae.to(place),
        # without accelerate diffusers leaves some weights in fp32; its own `to` warns of that where there are none
        nn.Module.to(transformer, place, dtype),
        prompt,
        negative[0] if negative else None,
        scheduler=_scheduler(diffusers, folder) if config.method == "teacher" else None,
        device=place,
        dtype=dtype,
    )


def _transformer_lora(config: DiffusionConfig) -> str | None:
    if config.method == "student":
        return "lora/transformer.safetensors"
    return "lora/teacher.safetensors" if config.teacher_lora else None


def _vae_lora(config: DiffusionConfig) -> str | None:
    return "lora/vae.safetensors" if config.method == "student" and config.vae_lora else None


def _prompt_folders(config: DiffusionConfig) -> list[str]:
    """The folders of the prompt and, with guidance, of the negative prompt."""
    guided = config.method == "teacher" and config.guidance != 1
    return ["prompt", "prompt-null"] if guided else ["prompt"]


def _check_complete(folder: Path, config: DiffusionConfig) -> None:
    scheduler = ["scheduler/scheduler_config.json"] if config.method == "teacher" else []
    models = ["vae/config.json", "vae/*.safetensors", "transformer/config.json", "transformer/*.safetensors"]
    loras = [file for file in (_transformer_lora(config), _vae_lora(config)) if file]
    prompts = [f"{name}/{file}.*" for name in _prompt_folders(config) for file in PROMPT_FILES]
    faults = []
    for source, patterns in ((SD3.format(folder=folder), models + scheduler), (TSD_SR, loras + prompts)):
        missing = [pattern for pattern in patterns if not any(folder.glob(pattern))]
        if missing:
            faults.append(f"{', '.join(missing)} ({source})")
    if faults:
        raise WeightsError(f"{folder}: files missing for {config.method}: {'; '.join(faults)}")


def _library() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            f"diffusion refinement needs diffusers ({error}): pip install 'championship-sr[diffusion]'"
        ) from None
    return diffusers


def _model(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A frozen model with every weight from its file, none missing and none left over."""
    _check_class(cls, folder)
    try:
        model, info = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, torch_dtype=dtype
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: can't be loaded: {_one_line(error)}") from None
    faults = [f"{kind} {keys[0]} and {len(keys) - 1} more" for kind, keys in _differences(info) if keys]
    if faults:
        raise WeightsError(f"{folder}: the weights don't fit the configuration: {', '.join(faults)}")
    return model.requires_grad_(False).eval()


def _check_class(cls: Any, folder: Path) -> None:
    try:
        name = read_as(parse_json, folder / "config.json")["_class_name"]
    except (OSError, KeyError, StoreError) as error:
        raise WeightsError(f"{folder / 'config.json'}: not a model's configuration: {_one_line(error)}") from None
    if name != cls.__name__:
        raise WeightsError(f"{folder}: expected a {cls.__name__}, found a {name}")


def _differences(info: dict[str, Any]) -> list[tuple[str, list]]:
    return [(kind, sorted(info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")]


def _scheduler(diffusers: ModuleType, folder: Path) -> Any:
    try:
        return diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / 'scheduler'}: can't be loaded: {_one_line(error)}") from None


def _prompt(folder: Path, transformer: Any) -> Prompt:
    embeds, pooled = (_tensor(folder, file) for file in PROMPT_FILES)
    prompt = Prompt(embeds if embeds.ndim == 3 else embeds[None], pooled if pooled.ndim == 2 else pooled[None])
    shape = (*prompt.embeds.shape[::2], *prompt.pooled.shape)
    expected = (1, transformer.config.joint_attention_dim, 1, transformer.config.pooled_projection_dim)
    if shape != expected:
        raise WeightsError(
            f"{folder}: the transformer expects embeddings (1, tokens, {expected[1]}) and (1, {expected[3]}), "
            f"found {tuple(embeds.shape)} and {tuple(pooled.shape)}"
        )
    return prompt


def _tensor(folder: Path, name: str) -> Tensor:
    """The one tensor of `name.safetensors` or `name.pt`; a .pt that holds anything but tensors is refused."""
    path = folder / f"{name}.safetensors"
    try:
        if path.exists():
            (value,) = load_file(path).values()
        else:
            path = folder / f"{name}.pt"
            value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path}: can't be loaded: {_one_line(error)}") from None
    if not isinstance(value, Tensor):
        raise WeightsError(f"{path}: expected a tensor, found {type(value).__name__}")
    return value


def _check_fit(folder: Path, config: DiffusionConfig, vae: Any, transformer: Any) -> None:
    made, taken = vae.config.latent_channels, transformer.config.in_channels
    if made != taken:
        raise WeightsError(f"{folder}: the VAE makes {made} latent channels, but the transformer takes {taken}")
    largest = transformer.config.pos_embed_max_size * transformer.config.patch_size
    if config.tile > largest:
        raise ConfigError(f"evaluate.diffusion.tile={config.tile}: the transformer in {folder} takes at most {largest}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
