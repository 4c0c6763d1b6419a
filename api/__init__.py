"""A feature store for frozen super-resolution experts, and the fusion that is trained from it."""

from importlib import import_module
from typing import Any

# where each public name lives: a module is imported when its name is used, so that importing the package costs nothing
_HOMES = {"load": "evaluate"}
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
