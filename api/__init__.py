"""A feature store for frozen super-resolution experts, and the fusion that is trained from it.

The public names, each imported when it is first used (docs/api.md has examples that run):

    extract, train, evaluate    the three stages; they are also the packages that hold them
    load                        a trained run or an export, as a function of images
    Store, Loader, Sampling     a feature store, batches of random windows of it, and which windows these are
    complementarity, Evidence, products_of    what experts are worth together, from their images alone
    ConfigError, StoreError, WeightsError    the three kinds of bad input, each with a one-line message
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from championship_sr.evaluate.model import load
    from championship_sr.evaluate.scoring.baselines import products_of
    from championship_sr.evaluate.scoring.complementarity import Evidence, complementarity
    from championship_sr.stages import evaluate, extract, train
    from championship_sr.store.errors import ConfigError, StoreError, WeightsError
    from championship_sr.store.shards.reader import Store
    from championship_sr.train.data.loader import Loader, Sampling

__all__ = [
    "ConfigError",
    "Evidence",
    "Loader",
    "Sampling",
    "Store",
    "StoreError",
    "WeightsError",
    "complementarity",
    "evaluate",
    "extract",
    "load",
    "products_of",
    "train",
]

_STAGES = ("evaluate", "extract", "train")
_HOMES = {
    "ConfigError": "store.errors",
    "Evidence": "evaluate.scoring.complementarity",
    "Loader": "train.data.loader",
    "Sampling": "train.data.loader",
    "Store": "store.shards.reader",
    "StoreError": "store.errors",
    "WeightsError": "store.errors",
    "complementarity": "evaluate.scoring.complementarity",
    "load": "evaluate.model",
    "products_of": "evaluate.scoring.baselines",
}


class CallablePackage(ModuleType):
    """A package that is called like a function: `championship_sr.train(...)`, whose modules lie below it.

    A function of a package's own name would be hidden by the package as soon as anything below it is imported.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        stages = import_module("championship_sr.stages")
        return getattr(stages, self.__name__.rpartition(".")[2])(*args, **options)


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
