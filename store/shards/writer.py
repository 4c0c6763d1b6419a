"""A shard appears whole or not at all: written beside its name, synced, renamed, and recorded last."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.codecs import get_codec
from championship_sr.store.containers import hdf5 as hdf5_shard
from championship_sr.store.containers import zarr as zarr_shard
from championship_sr.store.containers.chunks import parsed_chunk
from championship_sr.store.disk import files, leases, locks
from championship_sr.store.disk.leases import Lease
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import ArraySpec, Image, different_experts, listed, read_expert
from championship_sr.store.format.layout import PAIRS, array_key, lock_path, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import variant_size
from championship_sr.store.shards import encoding
from championship_sr.store.shards.encoding import Encoded, check_range, extremes
from championship_sr.store.shards.record import encoded, sealed

SPARE_BYTES = 16 << 20  # left free for records, metadata and what other programs do meanwhile
_WRITERS: dict[str, Callable[[Path], zarr_shard.ZarrShardWriter | hdf5_shard.Hdf5ShardWriter]] = {
    "zarr": zarr_shard.ZarrShardWriter,
    "hdf5": hdf5_shard.Hdf5ShardWriter,
}


@contextmanager
def write_shard(
    manifest: Manifest, source: str, shard: int, *, rebuild: bool = False, chunks: str = "default", watch: bool = False
) -> Iterator["ShardWriter"]:
    """The shard's writer, alone with it until the block ends; an exception leaves no trace of it.

    rebuild  beside the shards that there are, see `Manifest.swap_rebuilt`
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


@dataclass(frozen=True)
class Claim:
    """The right to publish one shard; everything before that has names of its own."""

    final: Path
    record: Path
    lease: Lease

    @property
    def unfinished(self) -> Path:
        """Where to write the shard."""
        return self._beside(self.final)

    def publish(self, record: bytes) -> None:
        """Gives the shard its name, then the record.

        raises  ShardBusy if another process has taken the shard over meanwhile
        """
        unrecorded = self._beside(self.record)
        files.sync_tree(self.unfinished)
        unrecorded.write_bytes(record)
        files.sync(unrecorded)
        self.lease.beat()  # from here on, a process that takes over finds and removes what is not yet renamed
        for unfinished, final in ((self.unfinished, self.final), (unrecorded, self.record)):
            unfinished.rename(final)
            files.sync(final.parent)

    def abandon(self) -> None:
        """Removes what was not published."""
        files.remove(self.unfinished)
        files.remove(self._beside(self.record))

    def _beside(self, path: Path) -> Path:
        return path.with_name(f"{path.stem}.{self.lease.token}{path.suffix}{files.TMP}")


@contextmanager
def claimed(manifest: Manifest, source: str, shard: int, rebuild: bool = False, watch: bool = False) -> Iterator[Claim]:
    """The claim to a shard that is not there yet, held by this process alone until the block ends.

    watch   see `leases.held`
    raises  ShardBusy if another process has it or has published the shard; StoreError if it is of another expert by now
    """
    final, record = manifest.shard_path(source, shard, rebuild), manifest.record_path(source, shard, rebuild)
    if source == PAIRS:
        final.parent.mkdir(exist_ok=True)
    _check_current(manifest, source, rebuild)
    with leases.held(lock_path(manifest.root, source, shard, rebuild), watch=watch) as lease:
        _check_current(manifest, source, rebuild)  # who begins the expert anew from now on sees the lock
        if manifest.is_recorded(source, shard, rebuild):
            raise locks.ShardBusy(f"{final}: written by another process meanwhile")
        files.remove(final)  # without a record it is nobody's
        claim = Claim(final, record, lease)
        try:
            yield claim
        finally:
            claim.abandon()


def _check_current(manifest: Manifest, source: str, rebuild: bool) -> None:
    """Refuse to add to an expert that another process has begun with other settings, swapped in or removed."""
    if source == PAIRS:
        return
    mine, folder = manifest.expert(source, rebuild), source_dir(manifest.root, source, rebuild)
    if not folder.is_dir():
        raise locks.ShardBusy(f"{folder}: swapped in or removed by another process meanwhile")
    there = read_expert(manifest.root, source, rebuild)
    if there.fingerprint != mine.fingerprint:
        different = listed(different_experts(there, mine)) or "it is fitted to different samples"
        raise StoreError(f"{folder}: begun anew by another process, which makes it differently: {different}")


def take_away(
    manifest: Manifest,
    source: str,
    shard: int,
    rebuild: bool = False,
    away: Callable[[Path], object] = files.remove,
) -> None:
    """Remove a shard, by whoever holds its lock; the record first: without it the shard is nobody's.

    away  what to do instead with each of the two
    """
    for path in (manifest.record_path(source, shard, rebuild), manifest.shard_path(source, shard, rebuild)):
        if files.is_there(path):
            away(path)


@contextmanager
def unless_done(manifest: Manifest, source: str, shard: int) -> Iterator[None]:
    """Leaves the block where another process that does the same has published the shard meanwhile.

    raises  StoreError if it is still at it
    """
    try:
        yield
    except locks.ShardBusy as busy:
        if not manifest.is_recorded(source, shard):
            raise StoreError(f"{busy}: it does the same. Wait for it; this command then goes on") from None


class Ready(NamedTuple):
    """One array as it goes into the shard, and what the record says of it."""

    key: str
    raw: np.ndarray
    params: Mapping[str, Any]
    smallest: float
    largest: float
    sha256: str


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
        self.made_on: dict[str, Any] = {}  # the device that made the arrays, where it was not the CPU
        _check_space(self._final.parent, self.expected_bytes(), self._final.name)
        self._writer = _WRITERS[manifest.container](claim.unfinished)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays that each image must get, in each of `variants`."""
        return tuple(self._specs)

    def expected_bytes(self) -> int:
        """Bytes of the shard's uncompressed arrays."""
        return sum(
            prod(self._shape(image, spec, variant)[:2]) * codec.raw_channels(spec.channels) * codec.raw_dtype.itemsize
            for image in self._images.values()
            for spec in self._specs.values()
            for variant in self.variants
            for codec in [get_codec(spec.codec)]
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
        """Let go of the files; what was written is nothing yet."""
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
        found = tuple(encoded.raw.shape if encoded else values.shape)
        expected = (*shape[:2], get_codec(spec.codec).raw_channels(shape[2])) if encoded else shape
        if found != expected:
            raise StoreError(f"{what}: shape {found}, expected {expected}")
        raw, own, smallest, largest = encoded or self._encoded(spec, values, what)
        if encoded:
            check_range(float(smallest), float(largest), get_codec(spec.codec), what)
        params = {part: value.tolist() for part, value in own.items()}
        raw = raw if isinstance(raw, np.ndarray) else raw.numpy()
        return Ready(key, raw, params, float(smallest), float(largest), _sha256(raw))

    def _encoded(self, spec: ArraySpec, values: Any, what: str) -> Encoded:
        if self._source == PAIRS:
            if values.dtype not in (np.uint8, np.uint16):
                raise StoreError(f"{what}: {values.dtype}, expected uint8 or uint16")
            return Encoded(np.ascontiguousarray(values), {}, *extremes(values))
        codec = get_codec(spec.codec)
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values, np.float32)
        smallest, largest = map(float, extremes(values))
        check_range(smallest, largest, codec, what)
        return encoding.encode(values, codec, self._basis.get(spec.name, {}))

    def _write(self, array: Ready) -> None:
        image_id, _, name = array.key.partition("/")
        name, _, variant = name.partition("@")
        raw = array.raw
        codec = get_codec(raw.dtype.name if self._source == PAIRS else self._specs[name].codec)
        chunk = parsed_chunk(self._chunks, raw.shape, codec.compression is not None, self._manifest.container)
        image_name = self._images[image_id].name
        attributes = {"codec": codec.name, "image": image_name, "variant": variant or "identity", **array.params}
        place = self._writer.put(array.key, raw, chunk, codec.compression, attributes)
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


def _sha256(raw: np.ndarray) -> str:
    return hashlib.sha256(raw.data).hexdigest()


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        wanted, spare, there = (f"{n / 2**20:,.1f} MiB" for n in (needed, SPARE_BYTES, free))
        raise StoreError(f"{folder / what}: needs {wanted} and {spare} to spare, and {there} are free")
