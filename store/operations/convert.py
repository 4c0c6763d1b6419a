"""Copies a store with another container, codecs, chunks or images per shard."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from championship_sr.store.codecs import Params, fit_pca, get_codec
from championship_sr.store.containers.chunks import parsed_chunk
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.description import assign_shards
from championship_sr.store.format.entries import ArraySpec, Expert
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.claims import unless_done
from championship_sr.store.shards.metadata import check_metadata
from championship_sr.store.shards.reader import Store, StoredArray
from championship_sr.store.shards.record import read_record
from championship_sr.store.shards.writer import ShardWriter, write_shard

SAMPLE_IMAGES = 32  # that a basis is fitted to, spread over the store
SAMPLE_PX = 64  # side of the tile taken from the middle of each


def convert(
    root: Path,
    output: Path,
    *,
    container: str | None = None,
    codecs: Mapping[str, str] | None = None,
    chunks: str = "default",
    images_per_shard: int | None = None,
    progress: Callable[[int], Any] = lambda n_bytes: None,
) -> Manifest:
    """Write a copy of a store in another form; what is not named stays as it is.

    If killed at any moment, the same call continues. An array whose codec stays keeps its numbers bit for bit; one
    whose codec changes is decoded and encoded again, which the expert's identity then records.

    codecs    array name -> codec, such as {"features": "pca64-int8"}
    chunks    `default`, `rows` or `tiles:ROWSxCOLUMNS`
    progress  called with the number of raw bytes that were read since
    raises    ConfigError for codecs that no array can have and for invalid chunks; StoreError if the store is not
              whole or is the output itself. Nothing is written then
    """
    store = Store(root, list(Manifest.load(root).experts))
    codecs = dict(codecs or {})
    if Path(output).resolve() == store.root.resolve():
        raise StoreError(f"{output}: this is the store itself; choose another folder for the result")
    _check_codecs(store, codecs)
    parsed_chunk(chunks, (1, 1, 1), False, store.manifest.container)
    images = store.images if images_per_shard is None else assign_shards(store.images, images_per_shard)
    manifest = Manifest.create(
        output, scale=store.scale, container=container or store.manifest.container, images=images
    )
    for source in (PAIRS, *store.experts):
        changed = set() if source == PAIRS else _add_expert(manifest, store, source, codecs)
        reader = _Reader(store, source)
        for shard in manifest.missing_shards(source):
            with (
                unless_done(manifest, source, shard),
                write_shard(manifest, source, shard, chunks=chunks, watch=True) as out,
            ):
                ids = [image.id for image in manifest.images_of(shard)]
                out.files, out.made_on = reader.files(ids), reader.made_on(ids)
                for n_bytes in _copy_shard(manifest, reader, changed, shard, out):
                    progress(n_bytes)
    return manifest


def _check_codecs(store: Store, codecs: Mapping[str, str]) -> None:
    specs = [(name, spec) for name, expert in store.experts.items() for spec in expert.arrays]
    known = {spec.name for _, spec in specs}
    unknown = sorted(codecs.keys() - known)
    if unknown:
        raise ConfigError(f"--codec {unknown[0]}: no expert has such an array (has: {', '.join(sorted(known))})")
    for name, spec in specs:
        codec = get_codec(codecs.get(spec.name, spec.codec))
        if codec.components > spec.channels:
            raise ConfigError(f"--codec {spec.name}={codec.name}: {name} has {spec.channels} channels there")


def _add_expert(manifest: Manifest, store: Store, name: str, codecs: Mapping[str, str]) -> set[str]:
    """Make room for the expert; the names of the arrays whose numbers change."""
    old = store.experts[name]
    arrays = tuple(replace(spec, codec=codecs.get(spec.name, spec.codec)) for spec in old.arrays)
    recoded = {
        spec.name: [*old.identity.get("recoded", {}).get(spec.name, [spec.codec]), new.codec]
        for spec, new in zip(old.arrays, arrays, strict=True)
        if not _same_numbers(spec, new)
    }
    identity = {**old.identity, **({"recoded": {**old.identity.get("recoded", {}), **recoded}} if recoded else {})}
    expert = Expert(name, arrays, identity, old.notes)
    kept = store.manifest.basis(name)
    basis = {
        spec.name: kept[spec.name] if spec.name in kept and spec.name not in recoded else _fit(store, name, spec)
        for spec in manifest.needs_basis(expert)
    }
    manifest.add_expert(expert, basis=basis)
    return set(recoded)


def _same_numbers(old: ArraySpec, new: ArraySpec) -> bool:
    return old.codec.partition("+")[0] == new.codec.partition("+")[0]


def _fit(store: Store, name: str, spec: ArraySpec) -> Params:
    chosen = np.unique(np.linspace(0, len(store.images) - 1, min(SAMPLE_IMAGES, len(store.images))).astype(int))
    arrays = (store.array(int(i), name, spec.name) for i in chosen)
    return fit_pca((_middle(array) for array in arrays), get_codec(spec.codec).components)


def _middle(array: StoredArray) -> np.ndarray:
    rows, cols = (min(side, SAMPLE_PX) for side in array.shape[:2])
    return array.load((array.shape[0] - rows) // 2, (array.shape[1] - cols) // 2, rows, cols)


class _Reader:
    """The old store's arrays of one source, each checked against its record: damage must not get a new checksum."""

    def __init__(self, store: Store, source: str):
        self._store, self._source = store, source
        self._index = {image.id: i for i, image in enumerate(store.images)}
        self._records = lru_cache(maxsize=4)(partial(_sound_record, store.manifest, source))

    def files(self, image_ids: Iterable[str]) -> dict[str, str]:
        """What the records say of the files that these images' arrays were read from."""
        shards = {name: self._store.images[self._index[name]].shard for name in image_ids}
        known = {name: self._records(shard).get("files", {}).get(name) for name, shard in shards.items()}
        return {name: sha256 for name, sha256 in known.items() if sha256}

    def made_on(self, image_ids: Iterable[str]) -> dict[str, Any]:
        """What the records say of the device that made these images' arrays; only the names if there are several."""
        shards = sorted({self._store.images[self._index[name]].shard for name in image_ids})
        first, *others = (self._records(shard).get("made_on", {}) for shard in shards)
        if all(other == first for other in others):
            return first
        return {"device": " and ".join(sorted({made.get("device", "cpu") for made in (first, *others)}))}

    def read(self, image_id: str, name: str, variant: str) -> tuple[StoredArray, np.ndarray, dict[str, Any]]:
        """The array, its raw numbers and its entry in the record."""
        array = self._store.array(self._index[image_id], self._source, name, variant)
        array.read_through()
        raw, entry = array.read(), self._records(array.shard)["arrays"][array.key]
        if hashlib.sha256(raw.data).hexdigest() != entry["sha256"]:
            raise StoreError(f"{self._store.root}: {self._source}: {array.key} is damaged; run store verify --repair")
        return array, raw, entry


def _sound_record(manifest: Manifest, source: str, shard: int) -> dict[str, Any]:
    check_metadata(manifest, source, shard)
    return read_record(manifest, source, shard)


def _copy_shard(manifest: Manifest, reader: _Reader, changed: set[str], shard: int, out: ShardWriter) -> Iterator[int]:
    for image in manifest.images_of(shard):
        for variant in out.variants:
            for name in out.names:
                array, raw, entry = reader.read(image.id, name, variant)
                if name in changed:
                    out.add_array(image.id, name, array.codec.decode(raw, array.params), variant)
                else:
                    out.add_raw(array.key, raw, entry)
                yield raw.nbytes
