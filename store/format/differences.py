"""How two descriptions of an expert, or of a store, differ: one phrase for each thing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from championship_sr.store.format.canonical import canonical
from championship_sr.store.format.entries import Expert, Image
from championship_sr.store.format.phrases import listed


def plain_expert(expert: Expert) -> Expert:
    """The expert as it is after being written and read: no tuples, no numpy scalars."""
    identity, notes = (json.loads(canonical(part)) for part in (expert.identity, expert.notes))
    return replace(expert, identity=identity, notes=notes)


def different_experts(there: Expert, wanted: Expert) -> list[str]:
    """Each key that decides the bytes and differs."""
    return differences(_comparable(there), _comparable(plain_expert(wanted)))


def _comparable(expert: Expert) -> dict[str, Any]:
    arrays = {spec.name: asdict(spec) for spec in expert.arrays}
    return {**expert.identity, "arrays": arrays}


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "", told: str = "{} is {} there, {} now"
) -> list[str]:
    """One phrase for each key whose values differ."""
    result = []
    for key in sorted({*old, *new}, key=str):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            result += differences(one, other, f"{prefix}{key}.", told)
        elif one != other and canonical(one) != canonical(other):
            result.append(told.format(f"{prefix}{key}", _short(one), _short(other)))
    return result


def different_stores(manifest: Any, scale: int, container: str, images: tuple[Image, ...]) -> list[str]:
    """One phrase for each thing in which the store of `manifest` (a Manifest) is not one of these images."""
    different = differences(
        {"scale": manifest.scale, "container": manifest.container}, {"scale": scale, "container": container}
    )
    if manifest.images == images:
        return different
    old, new = ({image.id: asdict(image) for image in listing} for listing in (manifest.images, images))
    for what, ids in (("without", new.keys() - old.keys()), ("with the extra", old.keys() - new.keys())):
        if ids:
            different.append(f"{what} {listed(sorted(ids), 3)}")
    for name in old.keys() & new.keys():
        different += [f"image {name}: {difference}" for difference in differences(old[name], new[name])]
    if not different and [*old] != [*new]:
        different.append("the images are in another order")
    return different


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "..."
