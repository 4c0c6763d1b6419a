"""The files of a shard as objects, whose names contain the checksum of all of them."""

import hashlib
import json
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from championship_sr.store.disk import files
from championship_sr.store.format.layout import shard_stem
from championship_sr.store.remote.bucket import READ_BYTES

DIGEST_DIGITS = 16


class ShardFile(NamedTuple):
    """One file of a shard; `name` is relative to the record's folder, `below` to the shard."""

    name: str
    below: str
    n_bytes: int
    sha256: str


def parts_of(path: Path, shard: int, suffix: str, pool: Executor) -> list[ShardFile]:
    """The shard's files with their checksums; their names hold the checksum of them all."""
    paths = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    below = ["" if file == path else file.relative_to(path).as_posix() for file in paths]
    sums = list(pool.map(_sha256, paths))
    sizes = [file.stat().st_size for file in paths]
    digest = hashlib.sha256(json.dumps([below, sums]).encode()).hexdigest()[:DIGEST_DIGITS]
    name = f"{shard_stem(shard)}-{digest}{suffix}"
    return [
        ShardFile(f"{name}/{rest}" if rest else name, rest, size, sha256)
        for rest, size, sha256 in zip(below, sizes, sums, strict=True)
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def keep_only(unfinished: Path, wanted: set[str]) -> None:
    """Remove what an earlier, different upload left in an unfinished shard."""
    if unfinished.is_dir() == (wanted == {""}):
        files.remove(unfinished)
    for path in [file for file in unfinished.rglob("*") if file.is_file()]:
        if path.relative_to(unfinished).as_posix() not in wanted:
            path.unlink()
