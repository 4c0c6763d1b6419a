"""Compares a shard's own metadata (Zarr's JSON, HDF5's attributes) with its record; no array is read."""

from collections.abc import Iterable, Mapping
from typing import Any

from championship_sr.store.containers.chunks import Described
from championship_sr.store.containers.registry import CONTAINER_MODULES
from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import listed
from championship_sr.store.shards.record import WantedArray, read_record, wanted_arrays


def check_metadata(manifest: Manifest, source: str, shard: int, keys: Iterable[str] | None = None) -> None:
    """Compare what a shard's container says about its arrays with the record; no array is read.

    keys    of these arrays; None for all
    raises  StoreError naming the first difference; Unreadable
    """
    for fault in metadata_faults(manifest, source, shard, read_record(manifest, source, shard), keys).values():
        raise fault


def metadata_faults(
    manifest: Manifest, source: str, shard: int, record: dict[str, Any], keys: Iterable[str] | None = None
) -> dict[str, StoreError]:
    """What is wrong with a shard's metadata: name in the shard -> fault.

    raises  StoreError if the container as a whole is damaged or missing; Unreadable
    """
    path, wanted = manifest.shard_path(source, shard), wanted_arrays(manifest, source, shard)
    names = sorted(wanted) if keys is None else list(keys)
    if not files.is_there(path):
        raise StoreError(f"{path}: missing, although it is recorded")
    faults = {}
    for name, described in CONTAINER_MODULES[manifest.container].describe(path, names).items():
        if isinstance(described, StoreError):
            faults[name] = described
            continue
        photo = manifest.images[wanted[name].image].name
        told = _disagreement(name, record["arrays"][name], wanted[name], described, photo)
        if told:
            faults[name] = StoreError(f"{path}: {told}")
    return faults


def _disagreement(
    key: str, entry: Mapping[str, Any], wanted: WantedArray, described: Described, image_name: str
) -> str | None:
    """How the container's description of an array differs from the record's; None if they agree."""
    codec = wanted.codec_of(entry["dtype"])
    there, recorded = (described.shape, described.dtype), (tuple(entry["shape"]), entry["dtype"])
    if there != recorded:
        return f"{key} is {there[1]} {there[0]} in the file, {recorded[1]} {recorded[0]} in the record"
    compression = codec.compression.name if codec.compression else None
    if described.compression != compression or described.chunk != (tuple(entry["chunk"]) if entry["chunk"] else None):
        return f"{key}: its chunks are not cut or compressed as the record says"
    if entry["offset"] is not None and described.offset != entry["offset"]:
        return f"{key}: its chunks do not lie where the record says"
    attributes = {"codec": codec.name, "image": image_name, "variant": wanted.variant, **entry["params"]}
    different = [name for name, value in attributes.items() if described.attributes.get(name) != value]
    if different:
        return f"{key}: its attributes {listed(different)} are not what the record says"
    return None
