"""The right to write a shard, and how a shard is published: renamed when complete and synced, then recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from championship_sr.store.disk import files, leases, locks
from championship_sr.store.disk.leases import Lease
from championship_sr.store.errors import StoreError
from championship_sr.store.format.differences import different_experts
from championship_sr.store.format.expert_files import read_expert
from championship_sr.store.format.layout import PAIRS, lock_path, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import listed


@dataclass(frozen=True)
class Claim:
    """The right to publish one shard; until then, its files have temporary names."""

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
    raises  ShardBusy if another process has it or has published the shard; StoreError if the expert has changed
    """
    final, record = manifest.shard_path(source, shard, rebuild), manifest.record_path(source, shard, rebuild)
    if source == PAIRS:
        final.parent.mkdir(exist_ok=True)
    _check_current(manifest, source, rebuild)
    with leases.held(lock_path(manifest.root, source, shard, rebuild), watch=watch) as lease:
        _check_current(manifest, source, rebuild)  # a process that restarts the expert from now on sees the lock
        if manifest.is_recorded(source, shard, rebuild):
            raise locks.ShardBusy(f"{final}: another process has written it in the meantime")
        files.remove(final)  # without a record, it belongs to no writer
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
        raise locks.ShardBusy(f"{folder}: another process has swapped it in or removed it in the meantime")
    there = read_expert(manifest.root, source, rebuild)
    if there.fingerprint != mine.fingerprint:
        different = listed(different_experts(there, mine)) or "it is fitted to different samples"
        raise StoreError(f"{folder}: another process has restarted it with other settings: {different}")


def take_away(
    manifest: Manifest,
    source: str,
    shard: int,
    rebuild: bool = False,
    away: Callable[[Path], object] = files.remove,
) -> None:
    """Remove a shard whose lock the caller holds; the record first, since only a record makes a shard count.

    away  what to do with the record and the shard instead
    """
    for path in (manifest.record_path(source, shard, rebuild), manifest.shard_path(source, shard, rebuild)):
        if files.is_there(path):
            away(path)


@contextmanager
def unless_done(manifest: Manifest, source: str, shard: int) -> Iterator[None]:
    """Runs the block, and ignores that another process doing the same has published the shard meanwhile.

    raises  StoreError if that process is still at work
    """
    try:
        yield
    except locks.ShardBusy as busy:
        if not manifest.is_recorded(source, shard):
            raise StoreError(
                f"{busy}: it is doing the same work. Wait for it to end, then run this command again"
            ) from None
