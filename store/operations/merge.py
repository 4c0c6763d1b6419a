"""Merges stores of the same images that hold different experts or different parts."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from championship_sr.store.disk import leases
from championship_sr.store.errors import StoreError
from championship_sr.store.format.differences import different_experts, different_stores
from championship_sr.store.format.entries import STORE_FILE
from championship_sr.store.format.expert_files import BASIS_FILE
from championship_sr.store.format.layout import LOCK_FILE, PAIRS, lock_path
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import counted, listed
from championship_sr.store.shards.claims import claimed, take_away, unless_done
from championship_sr.store.shards.metadata import check_metadata
from championship_sr.store.shards.record import encoded, read_record, sealed, unchanged


@dataclass(frozen=True)
class Merged:
    """What `merge` did."""

    shards: int  # put into the output by this call
    missing: dict[str, list[int]]  # source -> shards that none of the stores has

    @property
    def lacking(self) -> str:
        """What the output lacks, on one line; empty if it is whole."""
        return _lacking(self.missing)


def merge(
    inputs: Sequence[Path], output: Path, *, move: bool = False, copy: bool = False, complete: bool = False
) -> Merged:
    """Put every shard of the inputs into one store, by hard links where the file system has them.

    If killed at any moment, the same call continues. The inputs stay as they are.

    move      remove each shard from its input once the output has it
    copy      copy even if links are possible
    complete  refuse stores that do not add up to a whole one
    raises    StoreError naming every conflict, before anything is written
    """
    manifests = [Manifest.load(root) for root in inputs]
    if not manifests:
        raise StoreError("merge needs at least one store")
    if any(output.resolve() == manifest.root.resolve() for manifest in manifests):
        raise StoreError(f"{output}: this is one of the stores to be merged; choose another folder for the result")
    there = [Manifest.load(output)] if (output / STORE_FILE).exists() else []
    conflicts = _conflicts([*manifests, *there])
    if conflicts:
        raise StoreError(f"these stores cannot be merged: {listed(conflicts)}")
    missing = _missing([*manifests, *there])
    if complete and any(missing.values()):
        raise StoreError(f"the merged store would be incomplete: {_lacking(missing)}. Nothing was written")
    first = manifests[0]
    merged = Manifest.create(output, scale=first.scale, container=first.container, images=first.images)
    done = 0
    for manifest in manifests:
        for source in manifest.sources:
            if source != PAIRS:
                _add_expert(merged, manifest, source)
            for shard in sorted(set(manifest.recorded_shards(source)) & set(merged.missing_shards(source))):
                with unless_done(merged, source, shard):
                    _take(merged, manifest, source, shard, copy)
                    done += 1
            if move:
                _remove_taken(merged, manifest, source)
    return Merged(done, {source: merged.missing_shards(source) for source in merged.sources})


def _missing(manifests: Sequence[Manifest]) -> dict[str, list[int]]:
    """Source -> shards that none of the stores has, for the sources of all of them."""
    sources = dict.fromkeys(source for manifest in manifests for source in manifest.sources)
    return {source: sorted(set.intersection(*(set(m.missing_shards(source)) for m in manifests))) for source in sources}


def _lacking(missing: dict[str, list[int]]) -> str:
    return ", ".join(
        f"{source} lacks {counted(len(shards), 'shard')} ({_ranges(shards)})"
        for source, shards in missing.items()
        if shards
    )


def _ranges(shards: Sequence[int]) -> str:
    """Such as 0-3, 7."""
    those = set(shards)
    starts, ends = ([shard for shard in shards if shard + step not in those] for step in (-1, 1))
    return listed([f"{a}-{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True)])


def _conflicts(manifests: Sequence[Manifest]) -> list[str]:
    first = manifests[0]
    conflicts = []
    for other in manifests[1:]:
        different = different_stores(first, other.scale, other.container, other.images)
        conflicts += [f"{first.root} and {other.root}: {difference}" for difference in different]
    return conflicts or [
        conflict
        for i, one in enumerate(manifests)
        for other in manifests[i + 1 :]
        for source in one.sources
        if source in other.sources
        for conflict in _source_conflicts(one, other, source)
    ]


def _source_conflicts(one: Manifest, other: Manifest, source: str) -> list[str]:
    where = f"{source} in {one.root} and {other.root}"
    if source != PAIRS:
        different = different_experts(one.experts[source], other.experts[source])
        if different:
            return [f"{where}: {difference}" for difference in different]
        if one.fingerprint(source) != other.fingerprint(source):
            return [f"{where}: fitted to different samples ({BASIS_FILE})"]
    both = set(one.recorded_shards(source)) & set(other.recorded_shards(source))
    return [
        f"{where}: shard {shard} has different bytes in {key}"
        for shard in sorted(both)
        for key in _different_arrays(read_record(one, source, shard), read_record(other, source, shard))[:1]
    ]


def _different_arrays(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    old, new = (
        {key: (entry["sha256"], entry["params"]) for key, entry in record["arrays"].items()} for record in (one, other)
    )
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _add_expert(merged: Manifest, origin: Manifest, name: str) -> None:
    expert = origin.experts[name]
    if name not in merged.experts:
        merged.add_expert(expert, basis=origin.basis(name))
    if merged.fingerprint(name) != origin.fingerprint(name):
        raise StoreError(f"{merged.root}: already has {name}, fitted to another sample than the one in {origin.root}")
    merged.add_expert(expert)


def _take(merged: Manifest, origin: Manifest, source: str, shard: int, copy: bool) -> None:
    with claimed(merged, source, shard, watch=True) as claim:
        with unchanged(origin.record_path(source, shard)):
            record = read_record(
                origin, source, shard
            )  # the shard must be whole and of this store, or its damage would be copied
            check_metadata(origin, source, shard)
            _duplicate(origin.shard_path(source, shard), claim.unfinished, copy)
        claim.publish(encoded(sealed(record, merged)))


def _duplicate(there: Path, here: Path, copy: bool) -> None:
    put = shutil.copyfile if copy else _link
    if there.is_dir():
        shutil.copytree(there, here, copy_function=put)
    else:
        put(there, here)


def _link(there: str | Path, here: str | Path) -> None:
    try:
        os.link(there, here)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(there, here)


def _remove_taken(merged: Manifest, origin: Manifest, source: str) -> None:
    with leases.held(origin.root / LOCK_FILE, wait=True):  # so that no rebuild is swapped in meanwhile
        for shard in sorted(set(origin.recorded_shards(source)) & set(merged.recorded_shards(source))):
            with leases.held(lock_path(origin.root, source, shard), watch=True):
                if origin.is_recorded(source, shard) and _is_same(merged, origin, source, shard):
                    take_away(origin, source, shard)


def _is_same(merged: Manifest, origin: Manifest, source: str, shard: int) -> bool:
    """Whether the output has these very numbers, not those of an expert that was rebuilt since.

    raises  StoreError if it was rebuilt with other settings
    """
    return not _different_arrays(*(read_record(manifest, source, shard) for manifest in (merged, origin)))
