"""A weights file on disk -> its tensors, without ever running code that is in it."""

import hashlib
import pickle
import re
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from spandrel import canonicalize_state_dict
from torch import Tensor

from championship_sr.extract.config import BUNDLED, ExpertConfig
from championship_sr.store.errors import ConfigError, WeightsError

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def weights_path(config: ExpertConfig) -> Path:
    """Where the expert's weights are or should be.

    raises  ConfigError if it has none, being a folder of images
    """
    if config.images:
        raise ConfigError(
            f"expert {config.name}: its images are those of another program ({config.images}); it cannot be run here"
        )
    if config.weights.startswith(BUNDLED):
        return Path(
            str(resources.files("championship_sr.extract.weights").joinpath(config.weights.removeprefix(BUNDLED)))
        )
    return Path(config.weights).expanduser()


def found_weights(config: ExpertConfig) -> tuple[Path, str]:
    """The expert's weights file and its sha256.

    raises  WeightsError if it is missing, ConfigError if the expert has none
    """
    path = weights_path(config)
    if not path.is_file():
        where = f" Published at {config.url}." if config.url else ""
        raise WeightsError(
            f"expert {config.name}: no weights at {path}.{where} "
            "Put the file there or set the entry's weights; --random-weights does without"
        )
    return path, sha256_of(path)


def check_digest(config: ExpertConfig, path: Path, digest: str) -> None:
    """Raises WeightsError if a file that fits the entry otherwise is not the one whose sha256 it states."""
    if config.sha256 and not digest.startswith(config.sha256):
        raise WeightsError(
            f"{path}: sha256 is {digest[:16]}..., the entry of {config.name} says {config.sha256[:16]}: other weights; "
            "to use them, give an entry of your own"
        )


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU, unwrapped from what training tools put around them.

    raises  WeightsError for a file that is truncated, of another kind, or a pickle that would run code
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: weights end in {', '.join(SUFFIXES)}")
    state = canonicalize_state_dict(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path))
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors, only {', '.join(list(state)[:5]) or 'nothing'}")
    return tensors


def _read_safetensors(path: Path) -> dict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: truncated, or not a safetensors file ({error})") from None


def _read_pickle(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported class|function) ([\w.]+)", str(error))
        if found:
            raise WeightsError(
                f"{path}: is a pickle with Python code ({found.group(1)}), which is never run. "
                "Save its state_dict alone, on a machine where you trust the file"
            ) from None
        raise WeightsError(f"{path}: truncated, or not a weights file (a pickle that torch did not write)") from None
    except (OSError, EOFError, RuntimeError, ValueError, LookupError) as error:  # OSError: a zip that ends too early
        raise WeightsError(f"{path}: truncated, or not a weights file ({_first_line(error)})") from None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:120] or "it ends too early"
