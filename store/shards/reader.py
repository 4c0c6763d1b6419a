"""Reads windows of images straight from mapped files; zarr and h5py are only used for chunk tables."""

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from championship_sr.store.codecs import Codec, Params
from championship_sr.store.containers.chunks import grid
from championship_sr.store.containers.registry import CONTAINER_MODULES
from championship_sr.store.disk import maps
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.layout import PAIRS, array_key
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.metadata import check_metadata
from championship_sr.store.shards.record import WantedArray, read_record, remedy, replaced, state_of, wanted_arrays
from championship_sr.store.shards.windows import Chunks, Entry, Rows, Tiles

MAX_VIEWS = 8192  # arrays kept mapped; the kernel allows a process 65,530 maps
MAX_RECORDS = 4096  # shards whose records are kept
BAND_BYTES = 4 << 20  # read at a time when a whole array is read
DECODED_MIB = 128  # of compressed chunks kept decoded


class Store:
    """A store that is whole for these experts; it can be pickled, forked and used from threads.

    root     the store's folder
    experts  their names, in the order in which `experts` then has them; None for all but teachers
    whole    False: shards may be missing, which is only found when one of them is read
    check    True: before its first use, an array is read in full and compared with its checksum
    manifest the description, if it has been read already
    raises   StoreError naming what is missing and the command that makes it
    """

    def __init__(
        self,
        root: Path | str,
        experts: Sequence[str] | None = None,
        whole: bool = True,
        check: bool = False,
        manifest: Manifest | None = None,
    ):
        self.manifest = manifest or Manifest.load(Path(root))
        self.root, self.scale, self.images = self.manifest.root, self.manifest.scale, self.manifest.images
        names = self.manifest.answering if experts is None else list(experts)
        self._whole, self._check = whole, check
        self._checked: set[tuple[str, str]] = set()
        self.experts = _known_experts(self.manifest, names)
        if whole:
            _check_whole(self.manifest, names)
        self._bases = {name: self.basis(name) for name in names}
        self._records = maps.Cache(MAX_RECORDS)
        self._views = maps.Cache(MAX_VIEWS)
        self._chunks = maps.Cache(DECODED_MIB << 20)
        self._files: weakref.WeakValueDictionary[Path, maps.FileMap] = weakref.WeakValueDictionary()

    def __reduce__(self) -> tuple:
        made = {name: expert.fingerprint for name, expert in self.experts.items()}
        return _reopened, (self.root, made, self._whole, self._check)

    def array(self, image: int, source: str, name: str, variant: str = "identity") -> "StoredArray":
        """An array of the image with this index; nothing of it is read yet.

        raises  StoreError if the store has no such array
        """
        where = self.images[image]
        key = array_key(where.id, name, variant)
        entry = self._shard(source, where.shard).entries.get(key)
        if entry is None:
            there = ", ".join(_of_image(self._shard(source, where.shard).entries, where.id))
            raise StoreError(f"{self.root}: {source} has no {key} (has: {there})")
        array = StoredArray(self, source, where.shard, key, entry)
        if self._check and (source, key) not in self._checked:
            array.check()
            self._checked.add((source, key))
        return array

    def check_hr(self, purpose: str) -> None:
        """Raises StoreError if the store has no HR images, which the purpose needs."""
        if not self.manifest.has_hr:
            raise StoreError(
                f"{self.root}: was made from LR images alone, but {purpose} needs HR images. Extract with both "
                "--hr and --lr into another store"
            )

    def forget(self, source: str, shard: int) -> None:
        """Close the maps of a shard whose files are removed, once no reader uses them any more."""
        ids = {image.id for image in self.manifest.images_of(shard)}
        self._views.forget(lambda key: key[0] == source and key[1].partition("/")[0] in ids)

    def view(self, array: "StoredArray") -> Rows | Tiles | Chunks:
        """The array in its file, which is mapped if it was not yet."""
        return self._views.get((array.source, array.key), partial(self._open, array))

    def basis(self, name: str) -> dict[str, Params]:
        """What the codecs of an expert's arrays have in common: array -> what `decode` takes."""
        return self.manifest.basis(name)

    def record(self, source: str, shard: int) -> dict[str, Any]:
        """The record of a shard, read now."""
        return read_record(self.manifest, source, shard)

    def record_state(self, source: str, shard: int) -> tuple[int, ...] | None:
        """The state of a record's file, by which a replaced record is recognised; None: it is never replaced."""
        return state_of(self.manifest.record_path(source, shard))

    def _shard(self, source: str, shard: int) -> "_RecordedShard":
        return self._records.get((source, shard), partial(self._read_shard, source, shard))

    def _read_shard(self, source: str, shard: int) -> "_RecordedShard":
        state = self.record_state(source, shard)  # first: a record that is replaced meanwhile is noticed later
        record = self.record(source, shard)
        wanted = wanted_arrays(self.manifest, source, shard)
        entries = {key: self._entry(source, wanted[key], content) for key, content in record["arrays"].items()}
        return _RecordedShard(entries, state)

    def _entry(self, source: str, wanted: WantedArray, content: dict[str, Any]) -> "Entry":
        codec, params = wanted.codec_of(content["dtype"]), {}
        if source != PAIRS:
            own = {part: np.asarray(value, np.float32) for part, value in content["params"].items()}
            params = {**self._bases[source].get(wanted.name, {}), **own}
        chunk = tuple(content["chunk"] or wanted.shape)
        shape = (*wanted.size, wanted.channels)
        place = content["offset"], content["file_bytes"], content["sha256"]
        return Entry(shape, wanted.shape, np.dtype(content["dtype"]), codec, params, chunk, *place)

    def _open(self, array: "StoredArray") -> Rows | Tiles | Chunks:
        try:
            view = self._opened(array)
        except StoreError:
            self._check_same(array.source, array.shard)
            raise
        self._check_same(
            array.source, array.shard
        )  # now that the file is open, check that it is the one that the record describes
        return view

    def _check_same(self, source: str, shard: int) -> None:
        before = self._shard(source, shard).state
        if before and self.record_state(source, shard) != before:
            raise replaced(self.manifest.record_path(source, shard))

    def _opened(self, array: "StoredArray") -> Rows | Tiles | Chunks:
        entry = array.entry
        shard = self.manifest.shard_path(array.source, array.shard)
        container = CONTAINER_MODULES[self.manifest.container]
        path = container.data_file(shard, array.key)
        mapped = self._files.get(path)
        if mapped is None:
            mapped = self._files[path] = _mapped(path, entry.file_bytes)
        if entry.offset is None:
            counts = grid(entry.raw_shape, entry.chunk)
            table = container.chunk_table(shard, array.key, int(np.prod(counts)))
            if table.min() < 0 or table.max() > entry.file_bytes or table.sum(1).max() > entry.file_bytes:
                raise StoreError(f"{path}: the chunks of {array.key} extend past the end of the file")
            return Chunks(mapped, table, entry, self._chunks, f"{path}: {array.key}")
        if entry.chunk[1] == entry.raw_shape[1]:
            return Rows(mapped, entry, entry.offset)
        return Tiles(mapped, entry, entry.offset)


class _RecordedShard(NamedTuple):
    entries: dict[str, Entry]  # array key -> what the record says about it
    state: tuple[int, ...] | None  # of the record's file when it was read


class StoredArray:
    """One array on disk: windows of it, raw or decoded."""

    __slots__ = ("_store", "entry", "key", "shard", "source")

    def __init__(self, store: Store, source: str, shard: int, key: str, entry: Entry):
        self._store, self.source, self.shard, self.key, self.entry = store, source, shard, key, entry

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels as decoded."""
        return self.entry.shape

    @property
    def raw_dtype(self) -> np.dtype:
        return self.entry.dtype

    @property
    def raw_channels(self) -> int:
        return self.entry.raw_shape[2]

    @property
    def codec(self) -> Codec:
        return self.entry.codec

    @property
    def params(self) -> Params:
        """What the codec's `decode` takes beside raw numbers."""
        return self.entry.params

    def read_into(self, out: np.ndarray, y: int, x: int) -> None:
        """Copy the raw window at (y, x) of out's rows and columns into out (rows, cols, raw channels).

        out  its rows may lie apart; the numbers of each lie side by side
        """
        self._inside(y, x, *out.shape[:2])
        self._store.view(self).read_into(out, y, x)

    @property
    def strip_cols(self) -> int | None:
        """The columns of a strip, if the array is stored in strips that span its rows and can be mapped."""
        entry = self.entry
        in_strips = entry.offset is not None and entry.chunk[0] == entry.raw_shape[0]
        return entry.chunk[1] if in_strips and entry.chunk[1] < entry.raw_shape[1] else None

    def read_strips(self, out: np.ndarray, y: int, x: int, cols: int) -> None:
        """Copy the window's rows of the strips that hold its columns, in the layout of the file.

        out  (strips, rows, strip_cols * raw channels); anything beyond the last strip is left unchanged
        """
        self._inside(y, x, out.shape[1], cols)
        view = self._store.view(self)
        if not isinstance(view, Tiles):
            raise ValueError(f"{self.source}: {self.key}: not stored in strips")
        view.read_strips(out, y, x, cols)

    def read(self, y: int = 0, x: int = 0, rows: int | None = None, cols: int | None = None) -> np.ndarray:
        """The raw window, to the array's end where rows or cols are not given."""
        height, width, channels = self.entry.raw_shape
        shape = (height - y if rows is None else rows, width - x if cols is None else cols, channels)
        out = np.empty(shape, self.entry.dtype)
        self.read_into(out, y, x)
        return out

    def load(self, y: int = 0, x: int = 0, rows: int | None = None, cols: int | None = None) -> np.ndarray:
        """The decoded window, float32; lr and hr as the integers that they are."""
        raw = self.read(y, x, rows, cols)
        return raw if self.source == PAIRS else self.entry.codec.decode(raw, self.entry.params)

    def prefetch(self, y: int, x: int, rows: int, cols: int) -> bool:
        """Start reading exactly the window's pages from disk, for windows needed soon; False if they are in memory."""
        self._inside(y, x, rows, cols)
        return self._store.view(self).prefetch(y, x, rows, cols)

    def bands(self) -> Iterator[np.ndarray]:
        """The whole raw array, a few MiB of rows at a time, always with the next ones requested already.

        Rows that lie in the file in this form are not copied, and cannot be written to.
        """
        rows, cols, channels = self.entry.raw_shape
        step = max(1, BAND_BYTES // (cols * channels * self.entry.dtype.itemsize))
        for y in range(0, rows, step):
            for ahead in (y, y + step) if y == 0 else (y + step,):
                if ahead < rows:
                    self.prefetch(ahead, 0, min(step, rows - ahead), cols)
            view, n_rows = self._store.view(self), min(step, rows - y)
            yield view.band(y, n_rows) if isinstance(view, Rows) else self.read(y, 0, n_rows)

    def read_through(self) -> None:
        """Read the array's bytes once with read(2), where a disk failure is an error; in a map it kills the process.

        raises  StoreError if the file is not as long as its record says; Unreadable
        """
        self._store.view(self).read_through()

    def check(self) -> None:
        """Read everything and compare it with what was written, and the shard's own metadata with the record.

        raises  StoreError if it differs; Unreadable
        """
        store = self._store
        check_metadata(store.manifest, self.source, self.shard, [self.key])
        self.read_through()
        digest = hashlib.sha256()
        for band in self.bands():
            digest.update(band.data)
        if digest.hexdigest() != self.entry.sha256:
            raise StoreError(
                f"{store.root}: {self.source}: {self.key} is damaged: its bytes are not those that were written "
                "(sha256). Run: pipeline.py store verify --repair"
            )

    def _inside(self, y: int, x: int, rows: int, cols: int) -> None:
        height, width, _ = self.entry.raw_shape
        if min(y, x) < 0 or min(rows, cols) < 1 or y + rows > height or x + cols > width:
            raise ValueError(
                f"{self.source}: {self.key}: window {rows}x{cols} at ({y}, {x}) is not inside {height}x{width}"
            )


def _reopened(root: Path, made: dict[str, str], whole: bool, check: bool) -> Store:
    """The same store in another process.

    raises  StoreError if an expert has been rebuilt since: two processes would read different versions
    """
    store = Store(root, list(made), whole, check)
    replaced = [name for name, fingerprint in made.items() if store.experts[name].fingerprint != fingerprint]
    if replaced:
        raise StoreError(f"{root}: {', '.join(replaced)} has been replaced since it was read. Start again")
    return store


def _mapped(path: Path, n_bytes: int) -> maps.FileMap:
    try:
        return maps.FileMap(path, n_bytes)
    except FileNotFoundError:
        raise StoreError(
            f"{path}: missing, although its shard is recorded as whole; run store verify --repair"
        ) from None


def _known_experts(manifest: Manifest, names: list[str]) -> dict[str, Expert]:
    unknown = [name for name in names if name not in manifest.experts]
    if unknown:
        raise StoreError(
            f"{manifest.root}: no features for {', '.join(unknown)} (has: {', '.join(manifest.experts) or 'none'}). "
            f"Run: {remedy(unknown[0])}"
        )
    return {name: manifest.experts[name] for name in names}


def _check_whole(manifest: Manifest, names: list[str]) -> None:
    for source in (PAIRS, *names):
        missing = manifest.missing_shards(source)
        if missing:
            raise StoreError(
                f"{manifest.root}: {source} lacks {len(missing)} of {manifest.n_shards} shards, "
                f"the first is {missing[0]}. Run: {remedy(source)}"
            )


def _of_image(entries: dict[str, Entry], image_id: str) -> list[str]:
    return [key.partition("/")[2] for key in entries if key.partition("/")[0] == image_id]
