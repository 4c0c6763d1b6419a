"""A weights file on disk -> its tensors, without ever running code that is in it."""

import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from championship_sr.extract.config import BUNDLED, ExpertConfig
from championship_sr.store.disk.small_files import sha256_of
from championship_sr.store.errors import ConfigError, StoreError, WeightsError

log = logging.getLogger(__name__)

Fits = Callable[[dict[str, Tensor]], object]  # taken as true or false

# an average over the training, and the plain weights: keys around a state_dict and prefixes of its names
AVERAGES = ("params_ema", "params-ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "g_ema")
WRAPPERS = (
    "model_state_dict",
    "state_dict",
    "params",
    "model",
    "module",
    "network",
    "net",
    "net_g",
    "generator",
    "shadow",
)
AVERAGE_PREFIXES = ("ema_model.", "model_ema.", "ema.", "g_ema.")
PREFIXES = ("module.", "model.", "network.", "net.", "netG.", "net_g.", "generator.", "online_model.")
COMPILED = "_orig_mod."  # of torch.compile, before any part of a name
COUNTERS = ("n_averaged", "num_updates", "step", "global_step", "initted", "decay")  # beside the weights
DEEPEST = 3  # prefixes before one another, such as model.module.
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def weights_path(config: ExpertConfig) -> Path:
    """Where the expert's weights are or should be.

    raises  ConfigError if it has none, being a folder of images
    """
    weights = config.weights
    if not weights:
        raise ConfigError(
            f"expert {config.name}: its images come from another program ({config.images}); it cannot be run here"
        )
    if weights.startswith(BUNDLED):
        return Path(str(resources.files("championship_sr.extract.weights").joinpath(weights.removeprefix(BUNDLED))))
    return Path(weights).expanduser()


def found_weights(config: ExpertConfig) -> tuple[Path, str]:
    """The expert's weights file and its sha256.

    raises  WeightsError if it is missing or not a file, ConfigError if the expert has none
    """
    path = weights_path(config)
    try:
        return path, sha256_of(path)
    except (FileNotFoundError, NotADirectoryError):
        where = f" Published at {config.url}." if config.url else ""
        raise WeightsError(
            f"expert {config.name}: no weights at {path}.{where} "
            "Put the file there, set the entry's weights, or give --random-weights"
        ) from None
    except StoreError as error:
        raise WeightsError(f"expert {config.name}: weights: {error}") from None


def check_digest(config: ExpertConfig, path: Path, digest: str) -> None:
    """Raises WeightsError if a file that fits the entry otherwise is not the one whose sha256 it states."""
    if config.sha256 and not digest.startswith(config.sha256):
        raise WeightsError(
            f"{path}: sha256 is {digest[:16]}..., but the entry of {config.name} says {config.sha256[:16]}; "
            "to use these weights, write an entry of your own"
        )


def read_state(path: Path, fits: Fits = bool) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU, unwrapped from what training tools put around them.

    fits    says whether tensors of these names are the network's: among several sets in one file it chooses, and an
            average over the training is taken before the weights of its last step
    raises  WeightsError for a file that is truncated, of another kind, or a pickle that would run code
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: not a weights file; expected a name ending in {', '.join(SUFFIXES)}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _unwrapped(content, path)
    tensors = {key.replace(COMPILED, ""): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors, only {', '.join(map(str, list(state)[:5])) or 'nothing'}")
    _check_extent(tensors, path)
    for prefix, candidate in _candidates(tensors):
        if fits(candidate):
            _tell_left_out(prefix, candidate, tensors, path)
            return candidate
    return tensors  # of no known network: the caller reports what is missing


def _unwrapped(content: dict, path: Path) -> dict:
    """The innermost mapping that holds the weights, or their average where a file has both."""
    while True:
        inner = {key: value for key, value in content.items() if isinstance(value, dict) and value}
        keys = [key for key in (*AVERAGES, *WRAPPERS) if key in inner]
        if not keys and len(content) == 1:
            keys = list(inner)
        if not keys:
            return content
        averages = [key for key in AVERAGES if key in content and key != keys[0]]
        others = [key for key in keys[1:] if _has_tensors(inner[key])]
        if keys[0] in AVERAGES and others:
            log.warning("%s: holds %s and %s; using the average, %s", path, keys[0], others[0], keys[0])
        elif averages:
            log.warning("%s: its %s is not a state_dict; using %s", path, averages[0], keys[0])
        content = inner[keys[0]]


def _has_tensors(content: dict) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, dict) and _has_tensors(value)) for value in content.values()
    )


def _candidates(tensors: dict[str, Tensor], above: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(prefix, tensors): all of them unchanged, and those below each prefix that training tools add."""
    yield above, {key: value for key, value in tensors.items() if key not in COUNTERS}
    for prefix in (*AVERAGE_PREFIXES, *PREFIXES):
        inner = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if inner and above.count(".") < DEEPEST:
            yield from _candidates(inner, above + prefix)


def _tell_left_out(prefix: str, taken: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    others = [key for key, value in tensors.items() if value.ndim and not key.startswith(prefix)]
    if others:
        log.warning("%s: using %d tensors below %s and ignoring %s", path, len(taken), prefix, _listed(others))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} others such as {names[0]}"


def _check_extent(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises WeightsError for tensors that claim to be larger than their data in the file."""
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {name} claims shape {tuple(tensor.shape)}, but the file holds less data")


def _read_safetensors(path: Path) -> dict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: truncated, or not a safetensors file ({error})") from None


def _read_pickle(path: Path) -> dict:
    _check_kind(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"(?:GLOBAL|Unsupported class|function) ([\w.]+)", str(error))
        if match:
            raise WeightsError(
                f"{path}: is a pickle with Python code ({match.group(1)}), which is never run. "
                "On a machine where you trust the file, save only its state_dict"
            ) from None
        raise WeightsError(f"{path}: truncated, or not a weights file (a pickle not written by torch)") from None
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        # OSError: a zip that ends too early
        raise WeightsError(f"{path}: truncated, or not a weights file ({_first_line(error)})") from None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state


def _check_kind(path: Path) -> None:
    """Raises WeightsError for a file whose beginning or members show that it is something else."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a Git LFS pointer instead of the weights. Run: git lfs pull")
    if start[:1] == b"<":
        raise WeightsError(f"{path}: a web page instead of the weights: the download failed")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as parts:
        infos = parts.infolist()
    if any("/code/" in info.filename for info in infos):
        raise WeightsError(
            f"{path}: a TorchScript program (torch.jit.save), which holds code and is never run. Save the state_dict "
            "of the original module instead"
        )
    if any(info.file_size > info.compress_size for info in infos):
        raise WeightsError(f"{path}: a compressed zip, which torch never writes")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:120] or "it ends too early"
