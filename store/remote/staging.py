"""Writes a store in object storage through a local folder: shards are uploaded whole, then removed from the folder."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from championship_sr.store.codecs import Params
from championship_sr.store.disk import files, leases
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.differences import different_experts
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.expert_files import read_expert
from championship_sr.store.format.layout import PAIRS, SOURCES_FILE, lock_path, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.remote.bucket import cache_folder
from championship_sr.store.remote.objects import RemoteStore
from championship_sr.store.shards.claims import take_away

log = logging.getLogger(__name__)

WAITING = 2  # shards that may wait for their upload; the writer of the next one waits as well
KEPT = 3  # uploaded shards that stay in the folder, since other processes may need them next
JOBS = 8  # files at a time


class Staging:
    """A `with` block around writing into object storage; several processes of one machine may share the folder.

    url     of the store
    folder  that its shards pass through; None for one below the user's cache folder
    """

    def __init__(self, url: str, folder: Path | None = None):
        self.url, self.root = url, folder or cache_folder(url, "staging")
        self._remote = RemoteStore(url)
        self._uploads: ShardUploads | None = None

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._uploads:
            self._uploads.close()

    def describe(self) -> None:
        """Bring the store's small files into the folder, if the store has been begun."""
        if not self._remote.exists():
            return
        self._remote.describe(self.root)
        known = None if (self.root / SOURCES_FILE).exists() else self._remote.bucket.get(SOURCES_FILE)
        if known:
            files.write_atomic(self.root / SOURCES_FILE, known)

    def adopt(self, manifest: Manifest) -> "StagedManifest":
        """The folder's manifest as that of the store; shards that an earlier process left in the folder are uploaded.

        raises  StoreError if the store is of other images or settings
        """
        self._remote.begin(manifest)
        if (self.root / SOURCES_FILE).exists():
            self._remote.bucket.create(SOURCES_FILE, (self.root / SOURCES_FILE).read_bytes())
        self._uploads = ShardUploads(manifest, self._remote)
        self._uploads.resume()
        return StagedManifest(manifest, self._remote, self._uploads)


class StagedManifest(Manifest):
    """The store as its writers see it: shards recorded in the bucket are done, shards written here are uploaded.

    here  the folder's own manifest
    """

    def __init__(self, here: Manifest, remote: RemoteStore, uploads: "ShardUploads"):
        super().__init__(here.root, here.about, here.images, here.experts)
        self._here, self._remote, self._uploads = here, remote, uploads

    def missing_shards(self, source: str, rebuild: bool = False) -> list[int]:
        missing = super().missing_shards(source, rebuild)  # first: a shard leaves the folder after it is recorded there
        there = self._remote.recorded(source, rebuild)
        return [shard for shard in missing if shard not in there]

    def is_recorded(self, source: str, shard: int, rebuild: bool = False) -> bool:
        return super().is_recorded(source, shard, rebuild) or self._remote.is_recorded(source, shard, rebuild)

    def published(self, source: str, shard: int, rebuild: bool = False) -> None:
        self._uploads.add(source, shard, rebuild)

    def flush(self) -> None:
        self._uploads.flush()

    @contextmanager
    def needed(self, source: str, shard: int) -> Iterator[None]:
        while True:
            if not self._here.is_recorded(source, shard):
                with suppress(ShardBusy):
                    self._uploads.fetch(source, shard)
            with leases.held(lock_path(self._here.root, source, shard), wait=True):
                if self._here.is_recorded(source, shard):
                    yield
                    break
        self._uploads.keep(source, shard)

    def add_expert(self, expert: Expert, rebuild: bool = False, basis: Mapping[str, Params] | None = None) -> Expert:
        try:
            if rebuild and self._remote.write_expert(self.root, expert.name, rebuild):
                there = read_expert(self.root, expert.name, rebuild)
                if different_experts(there, expert):  # a rebuild with other settings was begun and is abandoned
                    self._remote.forget_rebuilt(expert.name)
            added = super().add_expert(expert, rebuild, basis)
            if not self._remote.create_expert(self, expert.name, rebuild):
                self._remote.write_expert(self.root, expert.name, rebuild)
                added = super().add_expert(expert, rebuild, basis)
            return added
        except StoreError as error:
            raise StoreError(str(error).replace(str(self.root), self._remote.url)) from None

    def swap_rebuilt(self, name: str) -> None:
        self.flush()
        missing = sorted(set(range(self.n_shards)) - self._remote.recorded(name, rebuild=True))
        if missing:
            raise StoreError(
                f"{self._remote.url}: the rebuilt {name} still lacks {len(missing)} of {self.n_shards} shards"
            )
        self._remote.swap_rebuilt(name)
        for rebuild in (True, False):
            files.remove(source_dir(self.root, name, rebuild))
        self._remote.write_expert(self.root, name)
        self.take_swapped(name)


class ShardUploads:
    """One thread that uploads shards, at most a few behind their writer, and clears the folder."""

    def __init__(self, here: Manifest, remote: RemoteStore):
        self._here, self._remote = here, remote
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._files = ThreadPoolExecutor(JOBS, thread_name_prefix="upload-file")
        self._waiting: deque[Future] = deque()
        self._kept: deque[tuple[str, int, bool]] = deque()
        self._lock = threading.Lock()

    def add(self, source: str, shard: int, rebuild: bool = False) -> None:
        """Begins a shard's upload; the error of an earlier one is raised here."""
        self._waiting.append(self._thread.submit(self._upload, source, shard, rebuild, wait=False))
        self._drain(WAITING)

    def resume(self) -> None:
        """Begins the upload of shards that other processes left, and removes uploaded ones from the folder."""
        for place, is_up in self._found():
            self.keep(*place) if is_up else self.add(*place)

    def flush(self) -> None:
        """Waits until every shard in the folder is in the bucket, including those of processes that died."""
        self._drain(0)
        for place, is_up in self._found():
            if not is_up:
                self._upload(*place, wait=True)

    def close(self) -> None:
        """Ends the threads; uploads that have not begun are left to the next extraction."""
        self._thread.shutdown(cancel_futures=True)
        self._files.shutdown()

    def fetch(self, source: str, shard: int) -> None:
        """Brings a shard into the folder."""
        self._remote.get_shard(self._here, source, shard, self._files)

    def keep(self, source: str, shard: int, rebuild: bool = False) -> None:
        """Lets a shard that is in the bucket stay for a while, in place of the least recently used one."""
        with self._lock:
            place = source, shard, rebuild
            self._kept = deque(kept for kept in self._kept if kept != place)
            self._kept.append(place)
            for _ in range(len(self._kept) - KEPT):
                oldest = self._kept.popleft()
                try:
                    self._drop(*oldest)
                except ShardBusy:
                    self._kept.append(oldest)

    def _drain(self, left: int) -> None:
        while len(self._waiting) > left:
            self._waiting.popleft().result()

    def _upload(self, source: str, shard: int, rebuild: bool, wait: bool) -> None:
        with suppress(ShardBusy), leases.held(lock_path(self._here.root, source, shard, rebuild), wait):
            if self._here.is_recorded(source, shard, rebuild):
                first = self._remote.put_shard(self._here, source, shard, self._files, rebuild=rebuild)
                if not first:
                    log.warning("%s: shard %d of %s has already been uploaded", self._remote.url, shard, source)
                    take_away(self._here, source, shard, rebuild)
        self.keep(source, shard, rebuild)

    def _drop(self, source: str, shard: int, rebuild: bool) -> None:
        with leases.held(lock_path(self._here.root, source, shard, rebuild)):
            take_away(self._here, source, shard, rebuild)

    def _found(self) -> list[tuple[tuple[str, int, bool], bool]]:
        """The shards of the folder, and whether they are in the bucket; those of another store than now are removed."""
        places = []
        for source in self._here.sources:
            for rebuild in (False, True) if source != PAIRS else (False,):
                here = source_dir(self._here.root, source, rebuild)
                if not any(here.glob("shard-*.json")):
                    continue
                if source != PAIRS and not self._remote.write_expert(self._here.root, source, rebuild):
                    files.remove(here)  # another machine has swapped it in
                    continue
                there = self._remote.recorded(source, rebuild)
                shards = self._here.recorded_shards(source, rebuild)
                places += [((source, shard, rebuild), shard in there) for shard in shards]
        return places
