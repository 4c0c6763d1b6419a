"""What a store holds, how much space it takes, and what is missing."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from championship_sr.store.codecs import get_codec
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import ArraySpec
from championship_sr.store.format.expert_files import EXPERT_FILE
from championship_sr.store.format.layout import PAIRS, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.repair import damaged_bytes
from championship_sr.store.shards.record import read_head


@dataclass(frozen=True)
class ArrayInfo:
    name: str
    channels: int
    codec: str
    bytes_per_lr_px: float  # before compression


@dataclass(frozen=True)
class SourceInfo:
    """The pairs or an expert; `identity` and `notes` are the expert's provenance."""

    name: str
    arrays: tuple[ArrayInfo, ...]
    variants: tuple[str, ...]
    shards: int
    missing_shards: tuple[int, ...]
    n_bytes: int  # on disk, records and leftovers included
    bytes_per_lr_px: float  # on disk, of the shards that are there
    identity: Mapping[str, Any]
    notes: Mapping[str, Any]
    devices: Mapping[str, int]  # device and how it computed -> shards; "cpu" also if the record names none
    rebuilt_shards: int | None  # of a rebuild that has not been swapped in; None: there is no rebuild


@dataclass(frozen=True)
class StoreInfo:
    root: str
    format_version: int
    scale: int
    container: str
    images: int
    lr_px: int
    shards: int
    n_bytes: int
    sources: tuple[SourceInfo, ...]
    damaged: tuple[str, ...]  # experts whose entries cannot be read
    moved_away_bytes: int  # by repairs


def info(root: Path) -> StoreInfo:
    """The store's description, from its files' sizes and the heads of its records; nothing in the shards is read."""
    damaged: list[str] = []
    manifest = Manifest.load(root, damaged)
    sources = tuple(_source(manifest, name) for name in manifest.sources)
    return StoreInfo(
        root=str(root),
        format_version=manifest.format_version,
        scale=manifest.scale,
        container=manifest.container,
        images=len(manifest.images),
        lr_px=sum(image.lr_size[0] * image.lr_size[1] for image in manifest.images),
        shards=manifest.n_shards,
        n_bytes=sum(source.n_bytes for source in sources),
        sources=sources,
        damaged=tuple(damaged),
        moved_away_bytes=damaged_bytes(manifest.root),
    )


def _source(manifest: Manifest, name: str) -> SourceInfo:
    missing = manifest.missing_shards(name)
    expert = None if name == PAIRS else manifest.experts[name]
    n_bytes = sum(_sizes(source_dir(manifest.root, name)))
    there = set(manifest.recorded_shards(name))
    lr_px = sum(image.lr_size[0] * image.lr_size[1] for image in manifest.images if image.shard in there)
    return SourceInfo(
        name=name,
        arrays=tuple(_array(spec) for spec in manifest.specs(name)),
        variants=manifest.variants(name),
        shards=len(there),
        missing_shards=tuple(missing),
        n_bytes=n_bytes,
        bytes_per_lr_px=n_bytes / lr_px if lr_px else 0.0,
        identity=expert.identity if expert else {},
        notes=expert.notes if expert else {},
        devices=_devices(manifest, name) if expert else {},
        rebuilt_shards=_rebuilt(manifest, name) if expert else None,
    )


def _devices(manifest: Manifest, name: str) -> dict[str, int]:
    """Device -> shards, from the records that can be read."""
    counts: Counter[str] = Counter()
    for shard in manifest.recorded_shards(name):
        with suppress(StoreError, FileNotFoundError):  # `verify` reports them
            counts[_device(read_head(manifest.record_path(name, shard)).get("made_on"))] += 1
    return dict(counts)


def _device(made_on: Any) -> str:
    """The device in a record and what else decides the bytes, such as `H100, batch 4, cuDNN 91002`."""
    if not isinstance(made_on, dict) or "device" not in made_on:
        return "cpu"
    parts = [str(made_on["device"])]
    if "batch_size" in made_on:
        parts.append(f"batch {made_on['batch_size']}")
    if made_on.get("tf32"):
        parts.append("TF32")
    if made_on.get("cudnn"):
        parts.append(f"cuDNN {made_on['cudnn']}")
    return ", ".join(parts)


def _array(spec: ArraySpec) -> ArrayInfo:
    codec = get_codec(spec.codec)
    return ArrayInfo(spec.name, spec.channels, spec.codec, float(spec.resolution**2 * codec.pixel_bytes(spec.channels)))


def _rebuilt(manifest: Manifest, name: str) -> int | None:
    if not (source_dir(manifest.root, name, rebuild=True) / EXPERT_FILE).exists():
        return None
    return len(manifest.recorded_shards(name, rebuild=True))


def _sizes(folder: Path) -> Iterator[int]:
    for where, _, names in os.walk(folder):
        for name in names:
            yield os.stat(os.path.join(where, name)).st_size
