"""Shards of a store in object storage on a local disk of bounded size, fetched before the sampler's order reaches them.

The order is known in advance, so nothing is guessed: a thread goes through the steps ahead of the training, fetches
what they read and, to make room, removes what only finished steps read. One process of each machine does this for all
of them; the others wait for the step's number in a file.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from championship_sr.store.disk import files, leases
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS, lock_path
from championship_sr.store.progress import progress
from championship_sr.store.remote.objects import UNFINISHED, RemoteStore
from championship_sr.store.remote.transfer import tree_bytes
from championship_sr.store.shards.claims import take_away
from championship_sr.store.shards.reader import Store, StoredArray

log = logging.getLogger(__name__)

GB = 10**9
JOBS = 16  # files at a time
POLL_SECONDS = 0.02
BEHIND_STEPS = 2  # by which the processes of a machine may differ
STEP_FILE, LOCK_FILE = "cache.step", "cache.lock"
EVERYTHING = 2**62  # a step that is never reached


class RemoteStoreReader(Store):
    """A store in object storage that is whole for these experts; its arrays can be read once `ShardCache` has them.

    root  the cache's folder
    """

    def __init__(self, remote: RemoteStore, root: Path, experts: Sequence[str] | None = None):
        described = remote.describe(root, experts)
        super().__init__(root, described.answering if experts is None else experts, whole=False)
        self.remote = remote
        for source in (PAIRS, *self.experts):
            there = remote.recorded(source)
            missing = sorted({image.shard for image in self.images} - there)
            if missing:
                raise StoreError(
                    f"{remote.url}: {source} lacks {len(missing)} of {self.manifest.n_shards} shards, "
                    f"the first is {missing[0]}. Run: pipeline.py extract"
                )

    def record(self, source: str, shard: int) -> dict[str, Any]:
        if self.manifest.is_recorded(source, shard):
            return super().record(source, shard)
        return self.remote.record(self.manifest, source, shard)[0]

    def record_state(self, source: str, shard: int) -> None:
        """Nothing: shards come and go here, always the same; in the bucket their names have their checksum."""


class CachedStore(RemoteStoreReader, AbstractContextManager):
    """The same for who reads image after image: a shard is fetched when the first of its arrays is asked for.

    limit_gb  GB that the shards may take in the cache's folder
    raises    StoreError if another run has the folder
    """

    def __init__(self, remote: RemoteStore, root: Path, experts: Sequence[str] | None, limit_gb: float):
        super().__init__(remote, root, experts)
        self.cache = ShardCache(self, limit_gb)

    def __exit__(self, *_exception: object) -> None:
        self.cache.close()

    def array(self, image: int, source: str, name: str, variant: str = "identity") -> StoredArray:
        self.cache.hold(self.images[image].shard)
        return super().array(image, source, name, variant)


class ShardCache:
    """Keeps the shards that the coming steps read in the store's folder; safe in threads.

    limit_gb  GB that the shards may take, pinned ones included
    fetches   whether this process does it for all of its machine; `alone` if there is no other
    raises    StoreError if another run has the folder
    """

    def __init__(self, store: RemoteStoreReader, limit_gb: float, *, fetches: bool = True, alone: bool = True):
        self._store, self._limit, self._fetches = store, limit_gb * GB, fetches
        self._behind = 0 if alone else BEHIND_STEPS
        self._sources = (PAIRS, *store.experts)
        self._step_file = store.root / STEP_FILE
        self._changed = threading.Condition()
        self._bytes: dict[int, int] = {}  # of each shard that is there, in all sources
        self._last_use: dict[int, int] = {}  # the last step known to read it
        self._pinned: set[int] = set()
        self._current = self._planned = 0  # every step before is over; is there
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._seen: set[int] = set()
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(JOBS, thread_name_prefix="fetch"))
        if fetches:
            self._take_folder()

    def close(self) -> None:
        self._stack.close()

    def pin(self, shards: Sequence[int]) -> None:
        """Waits until these shards are there; they stay."""
        self._pinned |= set(shards)
        if self._fetches:
            for shard in progress(sorted(self._pinned - self._bytes.keys()), desc="validation", unit="shard"):
                self._fetch(shard, self._make_room(shard, step=0))
        while not all(self._is_there(shard) for shard in shards):
            time.sleep(POLL_SECONDS)

    def hold(self, shard: int) -> None:
        """Waits until this shard is there; it stays until shards that are requested later need its room.

        raises  StoreError if it cannot be fetched, or if the limit is too small for it
        """
        self._current += 1
        self._last_use[shard] = self._current
        if shard in self._bytes:
            return
        n_bytes = self._bytes_of(shard)
        if n_bytes > self._limit:
            raise StoreError(
                f"{self._store.root}: {self._limit / GB:g} GB are too small for a shard of {n_bytes / GB:.3g} GB: "
                "raise --cache-gb"
            )
        self._fetch(shard, self._make_room(shard, self._current))

    @contextmanager
    def fetching(self, shards_of: Callable[[int], set[int]], every: set[int], start: int) -> Iterator[None]:
        """While the block runs, fetches what the steps from `start` on read.

        every  the shards that any step reads
        """
        self._current, self._last_use, self._stopped = start, {}, threading.Event()
        self._shards_of = shards_of
        self._announce(start)
        thread = threading.Thread(target=self._run, args=(shards_of, every, start), daemon=True, name="cache")
        if self._fetches:
            thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._stopped.set()
                self._changed.notify_all()
            if self._fetches:
                thread.join()

    def need(self, step: int) -> None:
        """Waits until the step's shards are there.

        raises  StoreError if they cannot be fetched, or if the limit is too small for them
        """
        if self._fetches:
            with self._changed:
                self._changed.wait_for(lambda: self._planned > step or self._failure or self._stopped.is_set())
            if self._failure:
                raise self._failure
        else:
            while not self.has(step) and not self._stopped.is_set():
                time.sleep(POLL_SECONDS)

    def has(self, step: int) -> bool:
        """Whether the step's shards are there."""
        return (self._planned if self._fetches else int(self._step_file.read_text())) > step

    def done(self, step: int) -> None:
        """Records that the step's windows have been copied: shards that no later step reads may be removed."""
        with self._changed:
            self._current = step + 1
            self._changed.notify_all()
        if not self._fetches:
            self._seen |= self._shards_of(step)
            for shard in [shard for shard in self._seen if not self._is_there(shard)]:
                self._forget(shard)
                self._seen.discard(shard)

    def _run(self, shards_of: Callable[[int], set[int]], every: set[int], start: int) -> None:
        try:
            for step in count(start):
                shards = shards_of(step)
                with self._changed:
                    self._last_use |= dict.fromkeys(shards, step)
                for shard in sorted(shards - self._bytes.keys()):
                    self._fetch(shard, self._make_room(shard, step))
                    if self._stopped.is_set():
                        return
                if every <= self._bytes.keys():
                    self._announce(EVERYTHING)
                    return
                self._announce(step + 1)
                if self._stopped.is_set():
                    return
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _announce(self, step: int) -> None:
        if self._fetches and self._behind:
            unfinished = self._step_file.with_suffix(files.TMP)
            unfinished.write_text(str(step))
            unfinished.replace(self._step_file)
        with self._changed:
            self._planned = step
            self._changed.notify_all()

    def _make_room(self, shard: int, step: int) -> int:
        """Makes room for the shard and returns its bytes; the least recently used shards are removed first."""
        n_bytes = self._bytes_of(shard)
        while True:
            with self._changed:
                if self._stopped.is_set() or sum(self._bytes.values()) + n_bytes <= self._limit:
                    return n_bytes
                over = [
                    candidate
                    for candidate in self._bytes.keys() - self._pinned
                    if self._last_use.get(candidate, -1) < self._current - self._behind
                ]
                if not over:
                    if step <= self._current:
                        raise StoreError(self._too_small(step, n_bytes))
                    self._changed.wait()
                    continue
            self._evict(min(over, key=lambda candidate: self._last_use.get(candidate, -1)))

    def _bytes_of(self, shard: int) -> int:
        return sum(self._store.remote.shard_bytes(self._store.manifest, source, shard) for source in self._sources)

    def _fetch(self, shard: int, n_bytes: int) -> None:
        if self._stopped.is_set():
            return
        manifest = self._store.manifest
        for source in self._sources:
            if not manifest.is_recorded(source, shard):
                self._store.remote.get_shard(manifest, source, shard, self._pool)
        with self._changed:
            self._bytes[shard] = n_bytes

    def _evict(self, shard: int) -> None:
        manifest = self._store.manifest
        with self._changed:
            del self._bytes[shard]
        for source in manifest.sources:
            if manifest.is_recorded(source, shard):
                with leases.held(lock_path(manifest.root, source, shard), wait=True):
                    take_away(manifest, source, shard)
        self._forget(shard)

    def _forget(self, shard: int) -> None:
        for source in self._sources:
            self._store.forget(source, shard)

    def _is_there(self, shard: int) -> bool:
        return all(self._store.manifest.is_recorded(source, shard) for source in self._sources)

    def _take_folder(self) -> None:
        """Locks the folder against other runs, and lists the shards in it."""
        manifest = self._store.manifest
        try:
            self._stack.enter_context(leases.held(manifest.root / LOCK_FILE, watch=True))
        except ShardBusy as busy:
            self._stack.close()
            raise StoreError(f"{busy}: another run is using this cache; choose another one with --cache") from None
        files.remove(manifest.root / UNFINISHED)
        for shard in range(manifest.n_shards):
            paths = [manifest.shard_path(s, shard) for s in manifest.sources if manifest.is_recorded(s, shard)]
            if paths:
                self._bytes[shard] = sum(map(tree_bytes, paths))
                if not self._is_there(shard):
                    self._evict(shard)
        self._announce(0)

    def _too_small(self, step: int, n_bytes: int) -> str:
        shards = {shard for shard, use in self._last_use.items() if use >= self._current - self._behind}
        return (
            f"{self._store.root}: {self._limit / GB:g} GB are too small for step {step}, which reads from "
            f"{len(shards | self._pinned)} shards of about {n_bytes / GB:.3g} GB, {len(self._pinned)} of them for "
            "validation: raise --cache-gb, or set train.data.shards_at_once"
        )
