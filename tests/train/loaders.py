"""A loader from plain options, each of which has its place in one of the loader's objects."""

from dataclasses import fields
from typing import Any

from championship_sr.train.data.loader import Buffers, Loader, Ranks, Sampling


def loader_of(store, experts=None, **options: Any) -> Loader:
    """The loader of a store with these options."""

    def taken(kind: type) -> Any:
        names = {field.name for field in fields(kind)} & options.keys()
        return kind(**{name: options.pop(name) for name in names})

    parts = {"buffers": taken(Buffers), "ranks": taken(Ranks)}
    return Loader(store, taken(Sampling), experts, **parts, **options)
