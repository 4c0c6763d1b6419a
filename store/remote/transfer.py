"""`store push` and `store pull`: whole shards between a folder and object storage; both resume."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from championship_sr.store.disk import files
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.progress import BytesDone, silent
from championship_sr.store.remote.objects import UNFINISHED, RemoteStore
from championship_sr.store.shards.metadata import check_metadata
from championship_sr.store.shards.record import read_record

JOBS = 8  # files at a time
SHARDS = 3  # shards at a time, so that files of the next one move while those of one are waited for

Total = Callable[[int], None]  # called with the bytes that will be moved, once they are known


@dataclass(frozen=True)
class Moved:
    """What a push or pull did."""

    shards: int  # moved by this call
    missing: dict[str, int] = field(default_factory=dict)  # source -> shards that the origin doesn't have either


def pull(
    url: str,
    root: Path,
    experts: Sequence[str] = (),
    *,
    jobs: int = JOBS,
    progress: BytesDone = silent,
    total: Total = silent,
) -> Moved:
    """Bring a store, or the pairs and only these of its experts, into a folder.

    raises  StoreError if there is no such store or expert, the folder is another store's, or bytes are damaged
    """
    remote = RemoteStore(url)
    manifest = remote.describe(root, experts or None)
    sources = [PAIRS, *(experts or manifest.experts)]
    places, missing = [], {}
    for source in sources:
        there = remote.recorded(source)
        wanted = [shard for shard in manifest.missing_shards(source) if shard in there]
        places += [(source, shard) for shard in wanted]
        missing[source] = manifest.n_shards - len(there)
    total(
        sum(remote.n_bytes(source, [shard for name, shard in places if name == source]) for source in sources if places)
    )

    progress = _one_at_a_time(progress)

    def move(place: tuple[str, int], pool: Executor) -> None:
        with suppress(ShardBusy):  # another pull of this machine has it
            remote.get_shard(manifest, *place, pool, progress)

    _move(places, move, jobs)
    files.remove(root / UNFINISHED)
    return Moved(len(places), missing)


def push(
    root: Path,
    url: str,
    experts: Sequence[str] = (),
    *,
    jobs: int = JOBS,
    progress: BytesDone = silent,
    total: Total = silent,
) -> Moved:
    """Put a store, or the pairs and only these of its experts, into object storage.

    raises  StoreError naming all that differs there, such as shards with other bytes, before a shard is put
    """
    manifest, remote = Manifest.load(root), RemoteStore(url)
    sources = [PAIRS, *(experts or manifest.experts)]
    for name in sources[1:]:
        manifest.expert(name)
    remote.begin(manifest)
    for name in sources[1:]:
        remote.add_expert(manifest, name)
    places: list[tuple[str, int]] = []
    both: list[tuple[str, int]] = []
    for source in sources:
        there = remote.recorded(source)
        for shard in manifest.recorded_shards(source):
            (both if shard in there else places).append((source, shard))
    _check_same(manifest, remote, both, jobs)
    total(sum(tree_bytes(manifest.shard_path(*place)) for place in places))

    progress = _one_at_a_time(progress)

    def move(place: tuple[str, int], pool: Executor) -> None:
        check_metadata(manifest, *place)  # the shard must be whole and of this store, or its damage would be copied
        remote.put_shard(manifest, *place, pool, progress=progress)

    _move(places, move, jobs)
    return Moved(len(places), {source: len(manifest.missing_shards(source)) for source in sources})


def _one_at_a_time(progress: BytesDone) -> BytesDone:
    lock = threading.Lock()

    def counted(n_bytes: int) -> None:
        with lock:
            progress(n_bytes)

    return counted


def _move(places: Sequence[tuple[str, int]], move: Callable, jobs: int) -> None:
    with _stopping(SHARDS) as shards, _stopping(jobs) as pool:
        for done in as_completed([shards.submit(move, place, pool) for place in places]):
            done.result()


@contextmanager
def _stopping(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that starts nothing more once a task has failed."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _check_same(manifest: Manifest, remote: RemoteStore, places: Sequence[tuple[str, int]], jobs: int) -> None:
    def differs(place: tuple[str, int]) -> str | None:
        there, _ = remote.record(manifest, *place)
        here = read_record(manifest, *place)
        sums = [{key: entry["sha256"] for key, entry in record["arrays"].items()} for record in (here, there)]
        return None if sums[0] == sums[1] else f"shard {place[1]} of {place[0]}"

    with ThreadPoolExecutor(jobs) as pool:
        differing = [difference for difference in pool.map(differs, places) if difference]
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise StoreError(f"{remote.url}: differs from {manifest.root} in {shown}; nothing was uploaded")


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    below = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in below if file.is_file())
