"""An expert's network with its weights in it: recognised by spandrel or built by the entry, always loaded strictly."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from spandrel import MAIN_REGISTRY, Architecture, ImageModelDescriptor, UnsupportedModelError
from torch import Tensor, nn

from championship_sr.extract import edsr
from championship_sr.extract.config import ExpertConfig
from championship_sr.extract.experts.architecture import build_network, code_identity, known
from championship_sr.extract.experts.weights_file import check_digest, found_weights, read_state
from championship_sr.store.errors import ConfigError, WeightsError

edsr.register()

# hyperparameters that change nothing in a frozen network; spandrel does not look for them
IN_TRAINING_ALONE = ("img_size", "drop_rate", "attn_drop_rate", "drop_path_rate", "use_checkpoint")
RANDOM_SEED = 0  # of --random-weights: the same network in every process
# what an architecture raises if a state dict has its identifying keys, but lacks others
INCOMPLETE = (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AssertionError)


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, frozen, and what is known of it before it has run."""

    model: nn.Module
    call: Callable[[Tensor], Tensor]
    multiple_px: int  # sides must be multiples of it
    align_px: int  # tiles begin at multiples of it, so that their windows coincide with those of the whole image
    minimum_px: int
    architecture: str
    hyperparameters: dict[str, Any]
    weights_sha256: str | None  # None for random weights
    code: dict[str, str] | None = None  # of an architecture that is neither spandrel's nor ours: where it is from


def load_network(config: ExpertConfig, scale: int | None, random_weights: bool = False) -> Network:
    """The expert's network, its weights loaded strictly, or random ones.

    scale   that it must have; None: any
    raises  WeightsError saying whether the file is of another network, of half of it, or of another scale
    """
    if random_weights and not config.images:
        return _described(config, _declared(config), None, None)
    path, digest = found_weights(config)
    if config.architecture and not known(config.architecture):
        descriptor, model = None, _declared(config)
        names = model.state_dict().keys()
        load_strictly(model, read_state(path, lambda state: names <= state.keys()), path, config.name)
    else:
        descriptor = _recognised(config, read_state(path, _detected), path, scale)
        model = _as_described(config, descriptor.model, path)
    check_digest(config, path, digest)  # last: the contents of a wrong file say more than its sha256
    return _described(config, model, descriptor, digest)


def _detected(state: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture that spandrel knows by these names, if there is one."""
    return next((a.architecture for a in MAIN_REGISTRY.architectures("detection") if a.detect(state)), None)


def _declared(config: ExpertConfig) -> nn.Module:
    """The network as the entry describes it, with random weights."""
    path, hyperparameters, key = config.architecture, config.hyperparameters, "architecture"
    if not path and config.pretrain:
        path, hyperparameters, key = config.pretrain.network, config.pretrain.hyperparameters, "pretrain.network"
    if not path:
        raise ConfigError(f"expert {config.name}: random weights need the entry's architecture and hyperparameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return build_network(path, hyperparameters, f"expert {config.name}: {key}")


def _described(config: ExpertConfig, model: nn.Module, descriptor: Any, digest: str | None) -> Network:
    own = getattr(model, "pad_size", None) or getattr(model, "window_size", 1)
    multiple = own if isinstance(own, int) else 1
    minimum = 1
    if descriptor is not None:
        multiple = math.lcm(multiple, descriptor.size_requirements.multiple_of)
        minimum = descriptor.size_requirements.minimum
    multiple = config.window_px or multiple
    inner = (getattr(module, "window_size", None) for module in model.modules())
    align = config.window_px or math.lcm(multiple, *(size for size in inner if isinstance(size, int)))
    return Network(
        model=model.eval().requires_grad_(False),
        # the network's own call convention: some return a tuple, some another range
        call=model if descriptor is None else lambda image: descriptor._call_fn(model, image),
        multiple_px=multiple,
        align_px=align,
        minimum_px=minimum,
        architecture=type(model).__name__,
        hyperparameters=_plain(getattr(model, "hyperparameters", None) or config.hyperparameters),
        weights_sha256=digest,
        code=code_identity(config.architecture) if config.architecture and not known(config.architecture) else None,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _recognised(config: ExpertConfig, state: dict[str, Tensor], path: Path, scale: int | None) -> ImageModelDescriptor:
    """The network in the file, which is the one that the entry describes, for RGB and this scale, or any."""
    descriptor = _recognise(config, state, path)
    if scale is not None and descriptor.scale != scale:
        raise WeightsError(f"{path}: holds {descriptor.architecture.id} for x{descriptor.scale}, expected x{scale}")
    if descriptor.input_channels != 3:
        raise WeightsError(f"{path}: takes {descriptor.input_channels} channels, expected 3 (RGB)")
    if config.architecture:
        _compare(config, descriptor.model, _declared(config), path)
    return descriptor


def _as_described(config: ExpertConfig, model: nn.Module, path: Path) -> nn.Module:
    """The network with the entry's values that weights do not show: a residual scale, a value range, a mean.

    raises  ConfigError for a hyperparameter that the network does not have, WeightsError for one that the file denies
    """
    taken = getattr(model, "arguments", None) or getattr(model, "hyperparameters", {})
    said = {
        key: value
        for key, value in config.hyperparameters.items()
        if key not in taken or (_differ(value, taken[key]) and key not in IN_TRAINING_ALONE)
    }
    if not said:
        return model
    unknown = [key for key in said if key not in taken]
    if unknown:
        raise ConfigError(
            f"expert {config.name}: hyperparameters.{unknown[0]}: {type(model).__name__} has no such argument "
            f"and would ignore it (has: {', '.join(taken)}). Leave it out, or set architecture to code that takes it"
        )
    with torch.random.fork_rng(devices=[]):
        try:
            described = type(model)(**{**taken, **said})
            described.load_state_dict(model.state_dict())
        except INCOMPLETE as error:
            values = ", ".join(f"{key}={value}" for key, value in said.items())
            raise WeightsError(
                f"{path}: does not match the hyperparameters of {config.name}, {values}: {_misfit(error)}"
            ) from None
    _compare(config, model, described, path)
    return described


def _differ(one: Any, other: Any) -> bool:
    return _plain(one) != _plain(other)


def _recognise(config: ExpertConfig, state: dict[str, Tensor], path: Path) -> ImageModelDescriptor:
    expected = config.architecture and config.architecture.partition(":")[0].rpartition(".")[2]
    detected = _detected(state)
    if detected is None:
        raise WeightsError(f"{path}: {_unrecognised(config, state)}")
    if expected and detected.id.lower() != expected.lower():  # extract.edsr holds EDSR
        raise WeightsError(f"{path}: holds {detected.id}, expected {expected.upper()}")
    try:
        descriptor = MAIN_REGISTRY.load(dict(state))
    except UnsupportedModelError:
        raise WeightsError(f"{path}: holds a kind of {detected.id} that spandrel does not support") from None
    except INCOMPLETE as error:
        raise WeightsError(f"{path}: not a complete {detected.id}: {_misfit(error)}") from None
    if not isinstance(descriptor, ImageModelDescriptor):
        raise WeightsError(f"{path}: holds {detected.id}, which needs more input than one image")
    return descriptor


def _unrecognised(config: ExpertConfig, state: dict[str, Tensor]) -> str:
    names = ", ".join(list(state)[:3])
    if not config.architecture:
        return f"no network that spandrel knows (tensors: {names}, ...): a part of one, or set the entry's architecture"
    wanted = dict(_declared(config).named_parameters())
    there = [name for name in wanted if name in state]
    if not there:
        return f"another network than {config.name}: none of its tensors (has: {names}, ...)"
    return f"not a whole {config.name}: {len(wanted) - len(there)} of its {len(wanted)} tensors are missing"


def _compare(config: ExpertConfig, model: nn.Module, declared: nn.Module, path: Path) -> None:
    """Raises if the file's network is another size of the architecture than the entry describes."""
    file_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {name: tuple(p.shape) for name, p in declared.named_parameters()}
    if file_shapes != wanted:
        millions = [sum(math.prod(shape) for shape in shapes.values()) / 1e6 for shapes in (file_shapes, wanted)]
        missing, others = sorted(wanted.keys() - file_shapes.keys()), sorted(file_shapes.keys() - wanted.keys())
        detail = f"{len(missing)} tensors missing, {len(others)} others" if missing or others else "other shapes"
        raise WeightsError(
            f"{path}: holds {type(model).__name__} of {millions[0]:.2f} M parameters, "
            f"but {config.name} has {millions[1]:.2f} M ({detail}): a different size, or only part of it"
        )
    for key in ("window_size", "stripe_size", "overlap_ratio"):
        here, said = getattr(model, key, None), getattr(declared, key, None)
        if here != said:
            raise WeightsError(f"{path}: {key} is {here}, but the entry of {config.name} says {said}")


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Loads the tensors of a file, every one and no other.

    raises  WeightsError saying in one line what does not fit
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        own = model.state_dict().keys()
        if not own & state.keys():
            text = f"another network than {name}: none of its tensors (has: {', '.join(list(state)[:3])}, ...)"
            raise WeightsError(f"{path}: {text}") from None
        raise WeightsError(f"{path}: does not fit {name}: {_misfit(error)}") from None


def _misfit(error: BaseException) -> str:
    """torch's message of many lines, in one."""
    text = str(error)
    parts = []
    for word, label in (("Missing", "missing"), ("Unexpected", "unexpected")):
        keys = re.findall(r'"([^"]+)"', (re.search(rf"{word} key\(s\) in state_dict: (.*)", text) or [""])[0])
        if keys:
            parts.append(f"{len(keys)} tensors {label} (such as {keys[0]})")
    shapes = re.findall(r"size mismatch for ([\w.]+)", text)
    if shapes:
        parts.append(f"{len(shapes)} of another shape (such as {shapes[0]})")
    return ", ".join(parts) or f"{type(error).__name__} {text.partition(chr(10))[0]}"
