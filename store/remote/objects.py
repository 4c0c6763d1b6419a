"""A feature store as objects in a bucket: the small files, the records, and the files of each shard.

docs/format.md, "In object storage", says what each object is and in which order they are put. A shard's files have
the checksum of them all in their name: two machines that make the same shard can never mix their files, an
interrupted upload continues where it stopped, and the record, created once, says whose files count.
"""

import json
import re
import secrets
import tempfile
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from championship_sr.store.disk import files, leases
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import StoreError
from championship_sr.store.format.differences import different_experts, different_stores
from championship_sr.store.format.entries import IMAGES_FILE, STORE_FILE
from championship_sr.store.format.expert_files import BASIS_FILE, EXPERT_FILE, name_experts, read_expert
from championship_sr.store.format.layout import CONTAINERS, LOCK_FILE, PAIRS, shard_stem, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import listed
from championship_sr.store.progress import BytesDone, silent
from championship_sr.store.remote.bucket import Bucket
from championship_sr.store.remote.parts import DIGEST_DIGITS, ShardFile, keep_only, parts_of
from championship_sr.store.shards.claims import claimed
from championship_sr.store.shards.record import (
    OBJECTS,
    check_arrays,
    check_place,
    encoded,
    parsed,
    unchanged,
    wanted_arrays,
)

FOLDER = b"folder: "  # begins the last line of an expert.yaml whose shards lie in another folder: it was rebuilt
UNFINISHED = "pull" + files.TMP  # the folder of unfinished downloads; the next pull continues them


class RemoteStore:
    """The store at a URL. Threads may share it; an expert stays what it was when it was first seen."""

    def __init__(self, url: str):
        self.bucket = Bucket(url)
        self.url = self.bucket.url
        self._folders: dict[tuple[str, bool], str] = {}

    # ---- the small files

    def exists(self) -> bool:
        """True if the store has been begun."""
        return self.bucket.get(STORE_FILE) is not None

    def describe(self, root: Path, experts: Iterable[str] | None = None) -> Manifest:
        """Write the small files into a folder that is to be the store's copy; its manifest.

        experts  only these; None for all
        raises   StoreError if there is no store, its format is unknown, or the folder is another store's
        """
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        content = {name: self.bucket.get(name) for name in (STORE_FILE, IMAGES_FILE)}
        if content[STORE_FILE] is None:
            raise StoreError(f"{self.url}: not a feature store (it has no {STORE_FILE})")
        try:
            with leases.held(root / LOCK_FILE, wait=True):
                if not (root / STORE_FILE).exists():
                    for name in (IMAGES_FILE, STORE_FILE):
                        files.write_atomic(root / name, content[name] or b"")
                elif (root / STORE_FILE).read_bytes() != content[STORE_FILE]:
                    raise StoreError(f"{root}: not a copy of {self.url} but of another store; choose another folder")
                known = self.expert_names()
                missing = sorted(set(experts or ()) - set(known))
                if missing:
                    raise StoreError(
                        f"{self.url}: no features for {', '.join(missing)} (has: {', '.join(known) or 'none'}). "
                        f"Run: pipeline.py extract --expert {missing[0]}"
                    )
                for name in known if experts is None else experts:
                    self.write_expert(root, name)
                name_experts(root, added=known if experts is None else experts)
            return Manifest.load(root)
        except StoreError as error:  # the copy was just made, so any fault is one of its origin
            if (root / STORE_FILE).exists() and (root / STORE_FILE).read_bytes() == content[STORE_FILE]:
                raise StoreError(str(error).replace(str(root), self.url)) from None
            raise

    def begin(self, manifest: Manifest) -> None:
        """Put the store's own small files, if they do not exist.

        raises  StoreError naming what differs in those that are
        """
        for name in (IMAGES_FILE, STORE_FILE):
            content = (manifest.root / name).read_bytes()
            if not self.bucket.create(name, content) and self.bucket.get(name) != content:
                raise StoreError(f"{self.url}: holds a different store: {self._difference(manifest, name)}")

    def _difference(self, manifest: Manifest, name: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            try:
                there = self.describe(Path(folder), ())
            except StoreError:
                return f"its {name} is another one. Choose another place for this store"
            differing = different_stores(there, manifest.scale, manifest.container, manifest.images)
        return f"{listed(differing) or name}. Choose another place for this one"

    def expert_names(self) -> list[str]:
        """The experts that have an entry."""
        _, folders = self.bucket.names("experts")
        plain = sorted(name for name in folders if not name.endswith(".rebuild"))
        return [name for name in plain if self.bucket.get(f"experts/{name}/{EXPERT_FILE}") is not None]

    def create_expert(self, manifest: Manifest, name: str, rebuild: bool = False) -> bool:
        """Put an expert's entry, and its basis before; False if there is an entry already."""
        here = source_dir(manifest.root, name, rebuild)
        content = (here / EXPERT_FILE).read_bytes()
        folder = f"{name}.{secrets.token_hex(4)}" if rebuild else name
        expert = manifest.expert(name, rebuild)
        if expert.basis_sha256:
            self.bucket.put(f"experts/{folder}/{_basis_name(expert.basis_sha256)}", (here / BASIS_FILE).read_bytes())
        if folder != name:
            content += FOLDER + folder.encode() + b"\n"
        self._folders.pop((name, rebuild), None)
        return self.bucket.create(_expert_key(name, rebuild), content)

    def add_expert(self, manifest: Manifest, name: str) -> None:
        """Put the entry of an expert, or continue if it exists already.

        raises  StoreError naming what differs in the one that is there
        """
        if self.create_expert(manifest, name):
            return
        with tempfile.TemporaryDirectory() as folder:
            self.write_expert(Path(folder), name)
            there, here = read_expert(Path(folder), name), manifest.expert(name)
        differing = different_experts(there, here)
        if not differing and there.fingerprint != here.fingerprint:
            differing = [f"fitted to different samples ({BASIS_FILE})"]
        if differing:
            raise StoreError(f"{self.url}: its expert {name} was made differently: {listed(differing)}")

    def write_expert(self, root: Path, name: str, rebuild: bool = False) -> bool:
        """Make the copy's folder the expert's: its entry and basis; shards of an expert made differently go. False if
        there is none."""
        content, folder = self._entry(name, rebuild)
        if content is None:
            return False
        here = source_dir(root, name, rebuild)
        if (here / EXPERT_FILE).exists() and (here / EXPERT_FILE).read_bytes() != content:
            files.remove(here)
        here.mkdir(parents=True, exist_ok=True)
        match = re.search(rb"^basis_sha256: '?([0-9a-f]{64})'?$", content, re.MULTILINE)
        if match and not (here / BASIS_FILE).exists():
            key = f"experts/{folder}/{_basis_name(match[1].decode())}"
            files.write_atomic(here / BASIS_FILE, self.bucket.get(key) or b"")
        files.write_atomic(here / EXPERT_FILE, content)
        return True

    def forget_rebuilt(self, name: str) -> None:
        """Remove an expert that was being rebuilt."""
        _, folder = self._entry(name, rebuild=True)
        self.bucket.remove([_expert_key(name, rebuild=True)])
        self.bucket.remove([f"experts/{folder}/{key}" for key in self._below(f"experts/{folder}")])
        self._folders.pop((name, True), None)

    def swap_rebuilt(self, name: str) -> None:
        """Make the rebuilt expert the one that readers see, in one put; then remove the old one's objects."""
        new = self.bucket.get(_expert_key(name, rebuild=True))
        if new is None:  # another process that rebuilt the last shard has swapped it in already
            return
        _, old = self._entry(name, rebuild=False)
        self.bucket.put(_expert_key(name, rebuild=False), new)
        self.bucket.remove([_expert_key(name, rebuild=True)])
        doomed = [key for key in self._below(f"experts/{old}") if key != EXPERT_FILE]
        self.bucket.remove([f"experts/{old}/{key}" for key in doomed])
        self._folders.clear()

    def _entry(self, name: str, rebuild: bool) -> tuple[bytes | None, str]:
        """The expert's entry as it lies in a folder, and in which folder its shards are."""
        content = self.bucket.get(_expert_key(name, rebuild))
        if content is None:
            return None, name
        *lines, last = content.splitlines(keepends=True)
        if last.startswith(FOLDER):
            return b"".join(lines), last[len(FOLDER) :].decode().strip()
        return content, name

    def _below(self, folder: str) -> list[str]:
        return [key.removeprefix(f"{folder}/") for key in self.bucket.sizes(folder)]

    # ---- shards

    def folder(self, source: str, rebuild: bool = False) -> str:
        """Where the source's records and shards are."""
        if source == PAIRS:
            return PAIRS
        key = source, rebuild
        if key not in self._folders:
            content, folder = self._entry(source, rebuild)
            if content is None:
                raise StoreError(f"{self.url}: no expert {source}{' is being rebuilt' if rebuild else ''}")
            self._folders[key] = f"experts/{folder}"
        return self._folders[key]

    def recorded(self, source: str, rebuild: bool = False) -> set[int]:
        """The shards that a record says are done."""
        names, _ = self.bucket.names(self.folder(source, rebuild))
        numbers = (_number(name) for name in names if name.endswith(".json"))
        return {number for number in numbers if number is not None}

    def is_recorded(self, source: str, shard: int, rebuild: bool = False) -> bool:
        """True if the shard's record is there."""
        return self.bucket.exists(f"{self.folder(source, rebuild)}/{shard_stem(shard)}.json")

    def n_bytes(self, source: str, shards: Iterable[int]) -> int:
        """Bytes of these shards, from the list of objects: a progress bar's total."""
        wanted = set(shards)
        sizes = self.bucket.sizes(folder := self.folder(source))
        files_of_shards = ((key.removeprefix(f"{folder}/"), size) for key, size in sizes.items())
        return sum(size for key, size in files_of_shards if "-" in key[6:] and _number(key) in wanted)

    def record(self, manifest: Manifest, source: str, shard: int) -> tuple[dict[str, Any], list[ShardFile]]:
        """A shard's record as it lies in a folder, and its files.

        raises  StoreError if it is missing, or not of this store as `manifest` has it
        """
        key = f"{self.folder(source)}/{shard_stem(shard)}.json"
        content = self.bucket.get(key)
        where = f"{self.url}/{key}"
        if content is None:
            raise StoreError(f"{where}: missing, so its shard is incomplete")
        try:
            record = parse_json(content)
            parts = [ShardFile(name, name.partition("/")[2], *place) for name, place in record.pop(OBJECTS).items()]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StoreError(f"{where}: does not list the shard's files; upload the shard with store push") from None
        record = parsed(json.dumps(record).encode(), where)
        check_place(record, manifest, source, shard, where)
        check_arrays(record, wanted_arrays(manifest, source, shard), where)
        return record, parts

    def shard_bytes(self, manifest: Manifest, source: str, shard: int) -> int:
        """Bytes of a recorded shard's files."""
        return sum(part.n_bytes for part in self.record(manifest, source, shard)[1])

    def put_shard(
        self,
        manifest: Manifest,
        source: str,
        shard: int,
        pool: Executor,
        *,
        rebuild: bool = False,
        progress: BytesDone = silent,
    ) -> bool:
        """Put a recorded shard's files, those that are not there yet, and then its record.

        pool     in which files are read and sent
        returns  False if another writer's record was first; its files then count
        """
        with unchanged(manifest.record_path(source, shard, rebuild)):
            parts, record = self._sent(manifest, source, shard, pool, rebuild, progress)
        folder = self.folder(source, rebuild)
        content = json.dumps(record, indent=1).encode()
        key = f"{folder}/{shard_stem(shard)}.json"
        if self.bucket.create(key, content):
            return True
        winner = parse_json(self.bucket.get(key) or b"{}").get(OBJECTS, {})
        if winner.keys() == record[OBJECTS].keys():
            return True
        self.bucket.remove([f"{folder}/{part.name}" for part in parts])
        return False

    def _sent(
        self, manifest: Manifest, source: str, shard: int, pool: Executor, rebuild: bool, progress: BytesDone
    ) -> tuple[list[ShardFile], dict[str, Any]]:
        """A shard's files, which are in the bucket now, and its record, which is not."""
        path = manifest.shard_path(source, shard, rebuild)
        folder = self.folder(source, rebuild)
        parts = parts_of(path, shard, CONTAINERS[manifest.container], pool)
        there = self.bucket.sizes(f"{folder}/{parts[0].name.partition('/')[0]}") if parts[0].below else {}

        def send(part: ShardFile) -> None:
            if there.get(f"{folder}/{part.name}") == part.n_bytes:
                progress(part.n_bytes)
            else:
                self.bucket.upload(f"{folder}/{part.name}", path / part.below if part.below else path, progress)

        for _ in pool.map(send, parts):
            pass
        record = parse_json(read_small(manifest.record_path(source, shard, rebuild)))
        record[OBJECTS] = {part.name: [part.n_bytes, part.sha256] for part in parts}
        return parts, record

    def get_shard(
        self, manifest: Manifest, source: str, shard: int, pool: Executor, progress: BytesDone = silent
    ) -> None:
        """Bring a shard into the copy, where it appears whole and verified or not at all.

        raises  ShardBusy if another process is doing so, or has done so
        """
        record, parts = self.record(manifest, source, shard)
        folder = self.folder(source)
        unfinished = manifest.root / UNFINISHED / source / manifest.shard_path(source, shard).name

        def fetch(part: ShardFile) -> None:
            path = unfinished / part.below if part.below else unfinished
            path.parent.mkdir(parents=True, exist_ok=True)
            self.bucket.download(f"{folder}/{part.name}", path, part.n_bytes, part.sha256, progress)

        with claimed(manifest, source, shard) as claim:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            keep_only(unfinished, {part.below for part in parts})
            for _ in pool.map(fetch, parts):
                pass
            unfinished.rename(claim.unfinished)
            claim.publish(encoded(record))


def _number(name: str) -> int | None:
    match = re.match(r"shard-(\d{5,})[-.]", name)
    return int(match[1]) if match else None


def _expert_key(name: str, rebuild: bool) -> str:
    return f"experts/{name}{'.rebuild' if rebuild else ''}/{EXPERT_FILE}"


def _basis_name(sha256: str) -> str:
    stem, _, suffix = BASIS_FILE.partition(".")
    return f"{stem}-{sha256[:DIGEST_DIGITS]}.{suffix}"
