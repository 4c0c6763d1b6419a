"""Networks named as `package.module:factory`: who may name which, and what is called to build one.

Naming a module means running its code. A user's own configuration may name any; what a store, a run or an export names
is taken from spandrel and from this package alone, unless the user names the module too (docs/security.md).
"""

import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from torch import nn

from championship_sr.extract.edsr import EDSR
from championship_sr.store.disk.small_files import sha256_of
from championship_sr.store.errors import ConfigError

SPANDREL = "spandrel.architectures."
OWN = {
    name: EDSR for name in ("extract.edsr:EDSR", f"{EDSR.__module__}:EDSR")
}  # architectures that spandrel's registry lacks
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Origin:
    """The origin of an architecture's name.

    file     the file of a store, a run or an export that names it; None: the user, in this command
    trusted  modules that the user allows such a file to name, with --trust-architecture
    """

    file: Path | None = None
    trusted: tuple[str, ...] = ()


USER = Origin()


class RefusedArchitecture(ConfigError):
    """An architecture that is not imported, or not called."""


def known(path: str) -> bool:
    """True for an architecture of spandrel or this package, whose code is trusted whatever names it."""
    return path.startswith(SPANDREL) or path in OWN


def find_factory(path: str, key: str, origin: Origin) -> Callable[..., nn.Module]:
    """The class or function that `package.module:factory` names.

    key     what the messages call the place that names it, such as `expert hat: architecture`
    raises  RefusedArchitecture before anything is imported, ConfigError if it does not exist or makes no network
    """
    where = f"{origin.file}: {key}={path}" if origin.file else f"{key}={path}"
    match = NAME.fullmatch(path)
    if not match:
        raise ConfigError(f"{where}: expected package.module:factory")
    if path in OWN:
        return OWN[path]
    module, name = match.groups()
    if origin.file and not known(path) and module not in origin.trusted:
        raise RefusedArchitecture(f"{where}: {_refusal(module)}")
    try:
        factory = getattr(import_module(module), name)
    except Exception as error:  # a module's own code may raise anything during its import
        raise ConfigError(f"{where}: {_one_line(error)}") from error
    _check_factory(factory, where)
    home = factory.__module__
    if origin.file and home.partition(".")[0] != module.partition(".")[0] and home not in origin.trusted:
        raise RefusedArchitecture(f"{where}: {_refusal(home)}")
    if origin.file and known(path) and not isinstance(factory, type):
        raise RefusedArchitecture(f"{where}: not one of spandrel's classes")
    return factory


def _refusal(module: str) -> str:
    return (
        f"would import the module {module} and run its code, which a file that may come from somebody else does not "
        f"decide. If you trust the module, add --trust-architecture {module}"
    )


def _check_factory(factory: object, where: str) -> None:
    """Raises RefusedArchitecture for what cannot be a network's class or a function that returns one: `os:system`."""
    if isinstance(factory, type) and issubclass(factory, nn.Module):
        return
    if not isinstance(factory, FunctionType) or _of_python(factory.__module__):
        raise RefusedArchitecture(
            f"{where}: neither a torch.nn.Module class nor a function, in your own code, that returns one"
        )


def _of_python(module: str) -> bool:
    """True for a module of the standard library, and not for a file of the user's that has its name."""
    top = module.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is None or Path(file).is_relative_to(sysconfig.get_path("stdlib"))


def build_network(
    path: str, hyperparameters: Mapping[str, Any], key: str = "architecture", origin: Origin = USER
) -> nn.Module:
    """A new network: what `package.module:factory` makes of these keyword arguments.

    raises  as `find_factory`; ConfigError if the factory fails or returns something else
    """
    factory = find_factory(path, key, origin)
    try:
        network = factory(**hyperparameters)
    except Exception as error:  # of the network's own code, which may raise anything
        raise ConfigError(f"{key}={path}: {_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{key}={path}: returned a {type(network).__name__}, not a torch.nn.Module")
    return network


def code_identity(path: str) -> dict[str, str]:
    """The module that an architecture comes from, and the sha256 of the file that its code is in."""
    factory = find_factory(path, "architecture", USER)
    file = inspect.getfile(sys.modules[factory.__module__])
    return {"module": path.partition(":")[0], "file_sha256": sha256_of(Path(file))}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    plain = isinstance(error, (ImportError, AttributeError, TypeError, ValueError)) and text
    return text if plain else f"{type(error).__name__}: {text}"
