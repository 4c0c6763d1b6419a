"""A shard's record: what it must hold, and the checksum of its own contents."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.codecs import Codec, get_codec
from championship_sr.store.containers.chunks import padded_bytes
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import StoreError
from championship_sr.store.format import schema
from championship_sr.store.format.canonical import canonical
from championship_sr.store.format.entries import known_versions
from championship_sr.store.format.layout import KNOWN_VERSIONS, PAIRS, SEALED_VERSION, array_key
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import variant_size

CHECKSUM = "checksum"
ARRAYS = b'\n "arrays":'  # where the long part of a record begins, as `encoded` writes it
HEAD_BYTES = 1 << 16
OBJECTS = "data"  # the key that a record has in object storage alone; its checksum is that of the record in a folder


class WantedArray(NamedTuple):
    """What an array of a shard must be."""

    image: int
    name: str
    variant: str
    codec: Codec | None  # None for the pairs, which are stored as they are
    channels: int
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """As stored."""
        return *self.size, self.codec.raw_channels(self.channels) if self.codec else self.channels

    def codec_of(self, dtype: str) -> Codec:
        return self.codec or get_codec(dtype)


def wanted_arrays(manifest: Manifest, source: str, shard: int) -> dict[str, WantedArray]:
    """Array key -> what the shard must hold under it."""
    specs, variants = manifest.specs(source), manifest.variants(source)
    result = {}
    for image in manifest.images_of(shard):
        for spec in specs:
            codec = None if source == PAIRS else get_codec(spec.codec)
            for variant in variants:
                rows, cols = variant_size(image.lr_size, variant)
                size = rows * spec.resolution, cols * spec.resolution
                index, key = manifest.index_of(image.id), array_key(image.id, spec.name, variant)
                result[key] = WantedArray(index, spec.name, variant, codec, spec.channels, size)
    return result


# ---- writing


def sealed(content: Mapping[str, Any], manifest: Manifest, rebuild: bool = False) -> dict[str, Any]:
    """The record for this store: from version 2 on with what the small files say, and a checksum of it all."""
    added = {CHECKSUM, *schema.SealedRecordFile.model_fields} - schema.RecordFile.model_fields.keys()
    record = {key: value for key, value in content.items() if key not in added}
    record["format_version"] = manifest.format_version
    if manifest.format_version < SEALED_VERSION:
        return record
    source = record["source"]
    images = {str(manifest.index_of(image.id)): asdict(image) for image in manifest.images_of(record["shard"])}
    record["store"] = manifest.kind
    record["expert"] = None if source == PAIRS else asdict(manifest.expert(source, rebuild))
    record["listing"] = images if source == PAIRS else None
    record = json.loads(json.dumps(record))  # without tuples, because the checksum covers the record as it is read
    return {**record, CHECKSUM: checksum(record)}


def encoded(record: Mapping[str, Any]) -> bytes:
    """The record's file."""
    return json.dumps(record, indent=1).encode()


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of the record without its checksum."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k not in (CHECKSUM, OBJECTS)})).hexdigest()


# ---- reading


def read(path: Path) -> dict[str, Any]:
    """A record that is unchanged since it was written; where it belongs is not checked.

    raises  FileNotFoundError; StoreError if it is damaged or of an unknown format; Unreadable
    """
    with files.reading(path):
        content = read_small(path)
    return parsed(content, path)


def read_head(path: Path) -> dict[str, Any]:
    """The part of a record before its arrays, unchecked, which is cheap to read for every shard.

    raises  as `read`, which takes a record whose keys are in another order
    """
    with files.open_file(path) as file:
        head, separator, _ = file.read(HEAD_BYTES).partition(ARRAYS)
    if not separator:
        return read(path)
    try:
        return parse_json(head.rstrip(b", \n") + b"}")
    except ValueError as error:
        raise StoreError(f"{path}: damaged: {error}") from None


def parsed(content: bytes, where: object) -> dict[str, Any]:
    """The record of these bytes.

    raises  StoreError if it is damaged or of an unknown format
    """
    try:
        record = parse_json(content)
    except ValueError as error:
        raise StoreError(f"{where}: damaged: {error}") from None
    version = record.get("format_version") if isinstance(record, dict) else 1
    if version not in KNOWN_VERSIONS:
        raise StoreError(f"{where}: format version {version!r}, but this program only reads {known_versions()}")
    is_sealed = version >= SEALED_VERSION
    schema.check(schema.SealedRecordFile if is_sealed else schema.RecordFile, record, where)
    if is_sealed and checksum(record) != record[CHECKSUM]:
        raise StoreError(f"{where}: damaged: its contents are not what was written (checksum)")
    return record


def check_place(record: Mapping[str, Any], manifest: Manifest, source: str, shard: int, where: object) -> None:
    """Refuse a record that does not belong where it lies.

    raises  StoreError
    """
    if (record["source"], record["shard"]) != (source, shard):
        raise StoreError(f"{where}: records shard {record['shard']} of {record['source']}, not this one")
    if record["fingerprint"] != manifest.fingerprint(source):
        raise StoreError(f"{where}: a shard of another {source}: its weights or settings are not those in expert.yaml")
    if record["images"] != manifest.lr_identity(shard):
        raise StoreError(f"{where}: from another store: its images are not those of {manifest.root}")
    if record["format_version"] != manifest.format_version:
        versions = f"format version {record['format_version']} in a store of version {manifest.format_version}"
        raise StoreError(f"{where}: from another store: {versions}")
    if record["format_version"] >= SEALED_VERSION and record["store"] != manifest.kind:
        raise StoreError(f"{where}: from another store: that store's description differs from {manifest.root}'s")


def check_arrays(record: Mapping[str, Any], wanted: Mapping[str, WantedArray], where: object) -> None:
    """Refuse a record of other arrays than these, or of impossible ones.

    raises  StoreError naming the first
    """
    entries = record["arrays"]
    if entries.keys() != wanted.keys():
        raise StoreError(f"{where}: does not record the expected arrays: {_different_keys(entries, wanted)}")
    for key, entry in entries.items():
        for fault in _entry_faults(entry, wanted[key]):
            raise StoreError(f"{where}: damaged: {key}: {fault}")


def _different_keys(recorded: Mapping, wanted: Mapping) -> str:
    extra, lacking = sorted(recorded.keys() - wanted.keys()), sorted(wanted.keys() - recorded.keys())
    return ", ".join([f"no {key}" for key in lacking[:3]] + [f"an unexpected {key}" for key in extra[:3]])


def _entry_faults(entry: Mapping[str, Any], wanted: WantedArray) -> Iterator[str]:
    if tuple(entry["shape"]) != wanted.shape:
        yield f"the shape is {tuple(entry['shape'])}, expected {wanted.shape}"
    kinds = (wanted.codec.raw_dtype.name,) if wanted.codec else ("uint8", "uint16")
    if entry["dtype"] not in kinds:
        yield f"the type is {entry['dtype']}, expected {' or '.join(kinds)}"
    chunk = entry["chunk"]
    if chunk and (chunk[2] != wanted.shape[2] or any(a > b for a, b in zip(chunk, wanted.shape, strict=True))):
        yield f"chunks of {tuple(chunk)} in an array of {wanted.shape}"
    compressed = wanted.codec is not None and wanted.codec.compression is not None
    if entry["offset"] is not None:
        end = entry["offset"] + padded_bytes(wanted.shape, chunk, np.dtype(entry["dtype"]).itemsize)
        if compressed or end > entry["file_bytes"]:
            yield f"it cannot lie at {entry['offset']} of a file of {entry['file_bytes']} bytes"
    elif chunk is None:
        yield "neither chunks nor an offset"
    yield from _param_faults(entry["params"], wanted)


def _param_faults(params: Mapping[str, list[float]], wanted: WantedArray) -> Iterator[str]:
    expected = wanted.codec.own_params(wanted.channels) if wanted.codec else {}
    if {name: len(numbers) for name, numbers in params.items()} != expected:
        told = ", ".join(f"{count} of {name}" for name, count in expected.items()) or "none"
        yield f"params: not the codec's parameters ({told})"
    elif any(min(numbers) < 0 for numbers in params.values()):
        yield "params: a scale below 0"


def read_record(manifest: Manifest, source: str, shard: int) -> dict[str, Any]:
    """A shard's record, if it is of this store's images and of the source as it is now.

    raises  StoreError if it is missing, damaged or of another store; Unreadable
    """
    path = manifest.record_path(source, shard)
    try:
        record = read(path)
        check_place(record, manifest, source, shard, path)
        check_arrays(record, wanted_arrays(manifest, source, shard), path)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing, so its shard is incomplete. Run: {remedy(source)}") from None
    return record


def state_of(path: Path) -> tuple[int, ...] | None:
    """A state that differs once a record's file is replaced, for instance by a rebuild; None if there is no file."""
    try:
        there = os.stat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Runs a block that reads a record and its shard, which must belong together.

    raises  StoreError if the record has been replaced meanwhile
    """
    before = state_of(path)
    try:
        yield
    except (StoreError, OSError):
        if state_of(path) == before:
            raise
    if state_of(path) != before:  # also the cause if the block failed
        raise replaced(path)


def replaced(path: Path) -> StoreError:
    """The error for a reader whose record has been replaced since it was read."""
    return StoreError(
        f"{path}: has been replaced since it was read (by a rebuild or a repair), so earlier and later reads "
        "would not match. Start again"
    )


def remedy(source: str) -> str:
    """The command that makes what is missing of a source."""
    return "pipeline.py extract" + ("" if source == PAIRS else f" --expert {source}")
