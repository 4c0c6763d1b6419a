"""What `store verify --repair` does: small files are restored first, damaged shards moved away; nothing is removed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from championship_sr.store.disk import files, leases, locks
from championship_sr.store.format.layout import LOCK_FILE, lock_path, shard_number, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.faults import Fault
from championship_sr.store.operations.survey import survey
from championship_sr.store.operations.verify import SourceCheck, strays
from championship_sr.store.shards.claims import take_away

DAMAGED = "damaged"  # the store's folder for what was moved away


def planned(root: Path, faults: Sequence[Fault]) -> list[str]:
    """What `repair` would do about these faults, a line each."""
    restored = [f"restore {fault.path} as its records say" for fault in faults if fault.content is not None]
    moved = [f"move shard {shard} of {source} to {root / DAMAGED}" for source, shard in _shards(faults)]
    return restored + moved + [f"move {path} to {root / DAMAGED}" for path in _strays(faults)]


def repair(root: Path, faults: Sequence[Fault]) -> list[str]:
    """Repairs those of these faults that can be, checking each again under the lock; returns what was done.

    raises  StoreError, Unreadable, OSError; the same call continues the repair
    """
    root = Path(root)
    with leases.held(root / LOCK_FILE, wait=True):  # no rebuild is swapped in meanwhile
        done = list(_restored(root))
        manifest = survey(root).manifest
        with ThreadPoolExecutor() as pool:
            for source, shard in _shards(faults):
                done += _if_free(manifest, source, shard, partial(_moved_shard, manifest, source, shard, pool))
        for path in map(Path, _strays(faults)):
            done += _moved_stray(manifest, path, faults)
    return done


def damaged_bytes(root: Path) -> int:
    """Bytes of what was moved away."""
    below = (root / DAMAGED).rglob("*") if (root / DAMAGED).is_dir() else ()
    return sum(path.lstat().st_size for path in below if path.is_file())


def remove_damaged(root: Path) -> None:
    """Remove what was moved away."""
    with leases.held(root / LOCK_FILE, wait=True):
        files.remove(root / DAMAGED)


def _shards(faults: Sequence[Fault]) -> list[tuple[str, int]]:
    return sorted({(fault.source, fault.shard) for fault in faults if fault.source and fault.shard is not None})


def _strays(faults: Sequence[Fault]) -> list[str]:
    return [fault.path for fault in faults if fault.path and fault.content is None]


def _restored(root: Path) -> Iterator[str]:
    for fault in survey(root).faults:
        if fault.path and fault.content is not None:
            path = Path(fault.path)
            if path.is_dir():
                _move(root, path)
            files.write_atomic(path, fault.content.encode(errors="surrogatepass"))
            yield f"restored {path}"


def _if_free(manifest: Manifest, source: str, shard: int, act: Callable[[], list[str]]) -> list[str]:
    if source not in manifest.sources or not source_dir(manifest.root, source).is_dir():
        return [f"left shard {shard} of {source}: it has been removed meanwhile"]
    try:
        with leases.held(lock_path(manifest.root, source, shard), watch=True):
            return act()
    except locks.ShardBusy as busy:
        return [f"left shard {shard} of {source}: {busy}"]


def _moved_shard(manifest: Manifest, source: str, shard: int, pool: ThreadPoolExecutor) -> list[str]:
    if not manifest.is_recorded(source, shard):
        return [f"left shard {shard} of {source}: it is not recorded any more"]
    if not any(fault.shard is not None for fault in SourceCheck(manifest, source, pool).shard(shard)):
        return [f"left shard {shard} of {source}: it is whole now, or cannot be read"]
    take_away(manifest, source, shard, away=lambda path: _move(manifest.root, path))
    return [f"moved {manifest.shard_path(source, shard)} to {manifest.root / DAMAGED}"]


def _moved_stray(manifest: Manifest, path: Path, faults: Sequence[Fault]) -> list[str]:
    source = next(fault.source for fault in faults if fault.path == str(path))
    shard = shard_number(path.name)
    if source is None or shard is None:
        return []

    def act() -> list[str]:
        if not files.is_there(path):  # an unfinished file: the next process that takes its lock removes it
            return [f"removed {path}"]
        _move(manifest.root, path)
        return [f"moved {path} to {manifest.root / DAMAGED}"]

    still = any(fault.path == str(path) for fault in strays(manifest, source))
    return _if_free(manifest, source, shard, act) if still else []


def _move(root: Path, path: Path) -> None:
    """Move a file or folder into `damaged/`, to the same place below it, beside anything already there."""
    folder = root / DAMAGED / path.parent.relative_to(root)
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}.{number}" if number else path.name for number in range(1 << 30))
    target = next(folder / name for name in names if not files.is_there(folder / name))
    path.rename(target)
    files.sync(folder)
    files.sync(path.parent)
