"""Writes shards atomically: under a temporary name, then synced, renamed, and recorded last."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.codecs import get_codec
from championship_sr.store.containers.chunks import ArrayToWrite, parsed_chunk
from championship_sr.store.containers.registry import CONTAINER_WRITERS
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import ArraySpec, Image
from championship_sr.store.format.layout import PAIRS, array_key
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import variant_size
from championship_sr.store.shards import encoding
from championship_sr.store.shards.claims import Claim, claimed
from championship_sr.store.shards.encoding import Encoded, check_range, extremes
from championship_sr.store.shards.record import encoded, sealed

SPARE_BYTES = 16 << 20  # left free for records, metadata and what other programs do meanwhile


@contextmanager
def write_shard(
    manifest: Manifest, source: str, shard: int, *, rebuild: bool = False, chunks: str = "default", watch: bool = False
) -> Iterator["ShardWriter"]:
    """The shard's only writer until the block ends; an exception leaves no trace of the shard.

    rebuild  write beside the existing shards, see `Manifest.swap_rebuilt`
    chunks   `default`, `rows` or `tiles:ROWSxCOLUMNS`
    watch    see `leases.held`
    raises   ShardBusy if another process writes it or has just done so; StoreError if the disk is too full, if an
             image is missing at the end, or for values that cannot be stored
    """
    with claimed(manifest, source, shard, rebuild, watch) as claim:
        out = ShardWriter(manifest, source, shard, rebuild, chunks, claim)
        try:
            yield out
            out.finish()
        except BaseException:
            out.close()
            raise
    manifest.published(source, shard, rebuild)


class Ready(NamedTuple):
    """One array as it goes into the shard, and what the record says of it."""

    key: str
    raw: np.ndarray
    params: Mapping[str, Any]
    smallest: float
    largest: float
    sha256: str
    piece: np.ndarray | None = None  # of the writer's memory, in which `raw` lies


class ShardWriter:
    """Takes the arrays of one shard's images, in any order."""

    def __init__(self, manifest: Manifest, source: str, shard: int, rebuild: bool, chunks: str, claim: Claim):
        self._manifest, self._source, self._shard, self._chunks = manifest, source, shard, chunks
        self._images = {image.id: image for image in manifest.images_of(shard)}
        self._specs = {spec.name: spec for spec in manifest.specs(source, rebuild)}
        self.variants = manifest.variants(source, rebuild)
        self._rebuild = rebuild
        self._fingerprint = manifest.fingerprint(source, rebuild)
        self._basis = {} if source == PAIRS else manifest.basis(source, rebuild)
        self._claim, self._final = claim, claim.final
        self._arrays: dict[str, dict[str, Any]] = {}
        self.files: dict[str, str] = {}  # image id -> sha256 of the file that its arrays were read from, if they were
        self.memory = encoding.Memory()  # for arrays that are encoded here
        self.made_on: dict[str, Any] = {}  # the device that made the arrays, if it was not the CPU
        _check_space(self._final.parent, self.expected_bytes(), self._final.name)
        self._writer = CONTAINER_WRITERS[manifest.container](claim.unfinished)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays that each image must get, in each of `variants`."""
        return tuple(self._specs)

    def expected_bytes(self) -> int:
        """Bytes of the shard's uncompressed arrays."""
        return sum(
            prod(self._shape(image, spec, variant)[:2]) * get_codec(spec.codec).pixel_bytes(spec.channels)
            for image in self._images.values()
            for spec in self._specs.values()
            for variant in self.variants
        )

    def add(self, image_id: str, arrays: Mapping[str, np.ndarray], variant: str = "identity") -> None:
        """Encode and write one image's arrays; see `encode`."""
        self.write(self.encode(image_id, arrays, variant))

    def encode(self, image_id: str, arrays: Mapping[str, Any], variant: str = "identity") -> list[Ready]:
        """One image's arrays, encoded and hashed, for `write`; in any number of threads at once.

        arrays  name -> (rows, cols, C): float32 array or tensor, or what `encoding.encode` has made of it; integers for
                the pairs
        raises  StoreError for values that are not finite or beyond the codec's range, and for arrays that do not fit
        """
        image = self._images.get(image_id)
        if image is None:
            raise StoreError(f"{self._final}: image {image_id} belongs to another shard or store")
        if variant not in self.variants or arrays.keys() != self._specs.keys():
            raise StoreError(
                f"{self._source}: image {image_id} came with {', '.join(sorted(arrays))} of variant {variant}; "
                f"expected {', '.join(sorted(self._specs))} of {', '.join(self.variants)}"
            )
        return [self._ready(image_id, name, arrays[name], variant) for name in self._specs]

    def write(self, ready: Sequence[Ready]) -> None:
        """Write what is ready; in one thread at a time."""
        for array in ready:
            self._write(array)

    def add_array(self, image_id: str, name: str, values: np.ndarray, variant: str = "identity") -> None:
        """Encode and write one array."""
        self._write(self._ready(image_id, name, values, variant))

    def add_raw(self, key: str, raw: np.ndarray, entry: Mapping[str, Any]) -> None:
        """Write an array that is encoded already; `entry` is its record in the store that it comes from."""
        self._write(Ready(key, raw, entry["params"], entry["min"], entry["max"], _sha256(raw)))

    def finish(self) -> None:
        """Publish the shard and record it.

        raises  StoreError if arrays are missing
        """
        wanted = {array_key(i, name, v) for i in self._images for name in self._specs for v in self.variants}
        missing = sorted(wanted - self._arrays.keys())
        if missing:
            raise StoreError(f"{self._final}: {len(missing)} arrays were never added, such as {missing[0]}")
        self._writer.close()
        if self._manifest.container == "hdf5":
            size = self._claim.unfinished.stat().st_size
            for entry in self._arrays.values():
                entry["file_bytes"] = size
        self._claim.publish(encoded(self._content()))

    def close(self) -> None:
        """Close the files; what was written does not count yet."""
        self._writer.close()

    def _content(self) -> dict[str, Any]:
        content = {
            "format_version": self._manifest.format_version,
            "source": self._source,
            "shard": self._shard,
            "fingerprint": self._fingerprint,
            "images": self._manifest.lr_identity(self._shard),
            **({"made_on": self.made_on} if self.made_on else {}),
            **({"files": self.files} if self.files else {}),
            "arrays": dict(sorted(self._arrays.items())),
        }
        return sealed(content, self._manifest, self._rebuild)

    def _shape(self, image: Image, spec: ArraySpec, variant: str) -> tuple[int, int, int]:
        rows, cols = variant_size(image.lr_size, variant)
        return rows * spec.resolution, cols * spec.resolution, spec.channels

    def _ready(self, image_id: str, name: str, values: Any, variant: str) -> Ready:
        spec, key = self._specs[name], array_key(image_id, name, variant)
        what = f"{self._source}: image {image_id}, {key.partition('/')[2]}"
        shape = self._shape(self._images[image_id], spec, variant)
        encoded = values if isinstance(values, Encoded) else None
        there = tuple(encoded.raw.shape if encoded else values.shape)
        expected = (*shape[:2], get_codec(spec.codec).raw_channels(shape[2])) if encoded else shape
        if there != expected:
            raise StoreError(f"{what}: shape {there}, expected {expected}")
        raw, own, smallest, largest, piece = encoded or self._encoded(spec, values, what)
        if encoded:
            check_range(float(smallest), float(largest), get_codec(spec.codec), what)
        params = {part: value.tolist() for part, value in own.items()}
        raw = raw if isinstance(raw, np.ndarray) else raw.numpy()
        return Ready(key, raw, params, float(smallest), float(largest), _sha256(raw), piece)

    def _encoded(self, spec: ArraySpec, values: Any, what: str) -> Encoded:
        if self._source == PAIRS:
            if values.dtype not in (np.uint8, np.uint16):
                raise StoreError(f"{what}: has type {values.dtype}, expected uint8 or uint16")
            return Encoded(np.ascontiguousarray(values), {}, *extremes(values))
        codec = get_codec(spec.codec)
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values, np.float32)
        smallest, largest = map(float, extremes(values))
        check_range(smallest, largest, codec, what)
        return encoding.encode(values, codec, self._basis.get(spec.name, {}), (smallest, largest), self.memory)

    def _write(self, array: Ready) -> None:
        image_id, _, name = array.key.partition("/")
        name, _, variant = name.partition("@")
        raw = array.raw
        codec = get_codec(raw.dtype.name if self._source == PAIRS else self._specs[name].codec)
        chunk = parsed_chunk(self._chunks, raw.shape, codec.compression is not None, self._manifest.container)
        image_name = self._images[image_id].name
        attributes = {"codec": codec.name, "image": image_name, "variant": variant or "identity", **array.params}
        place = self._writer.put(ArrayToWrite(array.key, raw, chunk, codec.compression, attributes))
        self._arrays[array.key] = {
            "shape": list(raw.shape),
            "dtype": raw.dtype.name,
            "sha256": array.sha256,
            "min": array.smallest,
            "max": array.largest,
            "finite": True,
            "chunk": list(chunk) if chunk else None,
            "params": array.params,
            **place,
        }
        if array.piece is not None:
            self.memory.give_back(array.piece)


def _sha256(raw: np.ndarray) -> str:
    return hashlib.sha256(raw.data).hexdigest()


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        wanted, spare, there = (f"{n / 2**20:,.1f} MiB" for n in (needed, SPARE_BYTES, free))
        raise StoreError(f"{folder / what}: needs {wanted} plus {spare} in reserve, but only {there} are free")
