"""Reads a store whose small files may be wrong: the records tell which of them are, and what they held."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from championship_sr.store.config import dump_yaml
from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError, Unreadable
from championship_sr.store.format.differences import differences
from championship_sr.store.format.entries import (
    IMAGES_FILE,
    STORE_FILE,
    Expert,
    Image,
    image_of,
    images_bytes,
    read_images,
    read_store,
)
from championship_sr.store.format.expert_files import (
    EXPERT_FILE,
    EXPERTS_FILE,
    expert_folders,
    expert_of,
    named_experts,
    read_expert,
)
from championship_sr.store.format.layout import CONTAINERS, PAIRS, SEALED_VERSION, shard_number, shard_stem, source_dir
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import listed
from championship_sr.store.format.schema import StoreFile, StoreKind
from championship_sr.store.operations.faults import Fault
from championship_sr.store.shards.record import read

T = TypeVar("T")
Record = Mapping[str, Any]
TOLD = "{} is {}, its records say {}"


@dataclass(frozen=True)
class Survey:
    """The store as it should be, and the faults of its small files."""

    manifest: Manifest
    faults: tuple[Fault, ...]


def survey(root: Path) -> Survey:
    """The store in this folder, as far as its small files and its records tell.

    raises  StoreError if it is not a store, or neither tells which images it has; Unreadable
    """
    root, faults = Path(root), list[Fault]()
    about, images = _described(root, faults)
    manifest = Manifest(root, about, images, {})
    for name in expert_folders(root):
        expert, made_as = _expert(manifest, name, faults)
        if expert:
            manifest.experts[name] = expert
        if made_as:
            manifest.made_as[name] = made_as
    faults += _lost_experts(root) + _lost_pairs(manifest)
    return Survey(manifest, tuple(faults))


def _lost_experts(root: Path) -> list[Fault]:
    """The experts that experts.txt names and whose folders are not there."""
    try:
        lost = sorted(named_experts(root) - set(expert_folders(root)))
    except StoreError as error:
        return [Fault(str(error), unread=isinstance(error, Unreadable))]
    return [
        Fault(
            f"{source_dir(root, name)}: missing, although {EXPERTS_FILE} names it. Put it back, or run: "
            f"pipeline.py extract --expert {name}; to remove it: pipeline.py store rm --expert {name}",
            name,
        )
        for name in lost
    ]


def _lost_pairs(manifest: Manifest) -> list[Fault]:
    """The pairs, where experts have shards and the folder of the pairs is not there."""
    folder = source_dir(manifest.root, PAIRS)
    with suppress(Unreadable):  # told when it comes to the source's shards
        if not files.is_there(folder) and any(manifest.recorded_shards(name) for name in manifest.experts):
            return [
                Fault(
                    f"{folder}: missing, although experts have shards. Put it back, or run: pipeline.py extract", PAIRS
                )
            ]
    return []


def _described(root: Path, faults: list[Fault]) -> tuple[Mapping[str, Any], tuple[Image, ...]]:
    """What store.yaml must say, and the images."""
    path, images_path = root / STORE_FILE, root / IMAGES_FILE
    said, why = _said(lambda: read_store(root))
    kind = _agreed(_kind(said) if said else None, _kinds(root))
    if kind is None:
        raise StoreError(why)
    about = {**said, **kind} if said else None
    images, why_images = _said(partial(read_images, images_path, about)) if about else (None, why)
    if about is None or images is None:
        images = _listed_images(root)
        lines = images_bytes(images or ())
        proven = {**kind, "images": len(images or ()), "images_sha256": hashlib.sha256(lines).hexdigest()}
        is_same = _bytes_of(images_path) == lines
        if images is None or not (is_same or proven == about):  # a list that ends before the images do proves nothing
            raise StoreError(why or why_images)
        about = proven
        if not is_same:
            faults.append(Fault(why_images, path=str(images_path), content=lines.decode(errors="surrogatepass")))
    if about != said:
        told = why or f"{path}: damaged: {listed(differences(said or {}, about, told=TOLD))}"
        faults.append(
            Fault(told, path=str(path), content=dump_yaml({key: about[key] for key in StoreFile.model_fields}))
        )
    return about, images


def _kind(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in StoreKind.model_fields}


def _kinds(root: Path) -> Iterator[dict[str, Any]]:
    """What each record says about its store."""
    for source in (PAIRS, *expert_folders(root)):
        for record in _records(root, source):
            kind = record["store"] if record["format_version"] >= SEALED_VERSION else _deduced_kind(root, record)
            if kind:
                yield kind


def _deduced_kind(root: Path, record: Record) -> dict[str, Any] | None:
    """What the arrays of a record of version 1 tell, and the shard beside it."""
    first, folder = next(iter(record["images"]), ""), root / PAIRS
    rows = [record["arrays"].get(f"{first}/{name}", {"shape": [0]})["shape"][0] for name in ("lr", "hr")]
    containers = [name for name, end in CONTAINERS.items() if (folder / (shard_stem(record["shard"]) + end)).exists()]
    if record["source"] != PAIRS or not all(rows) or len(containers) != 1:
        return None
    return {"format_version": record["format_version"], "scale": rows[1] // rows[0], "container": containers[0]}


def _listed_images(root: Path) -> tuple[Image, ...] | None:
    """The images as the pairs' records list them, if none is missing between the first and the last."""
    lines: dict[str, Any] = {}
    for record in _records(root, PAIRS):
        lines |= record.get("listing") or {}
    if not lines or not all(str(i) in lines for i in range(len(lines))):
        return None
    return tuple(image_of(lines[str(i)]) for i in range(len(lines)))


def _bytes_of(path: Path) -> bytes | None:
    try:
        return files.read_bytes(path)
    except Unreadable:
        raise
    except (FileNotFoundError, StoreError):
        return None


def _expert(manifest: Manifest, name: str, faults: list[Fault]) -> tuple[Expert | None, str | None]:
    """What expert.yaml must say; and the fingerprint of its records, where it is known to be wrong and nothing more."""
    path = source_dir(manifest.root, name) / EXPERT_FILE
    try:
        said, why = _said(lambda: read_expert(manifest.root, name))
        own = list(_own_records(manifest, name, until=said.fingerprint if said else None))
    except Unreadable as error:
        faults.append(Fault(str(error), name, unread=True))
        return None, None
    prints = {record["fingerprint"] for record in own}
    if said and (not prints or said.fingerprint in prints):
        return said, None
    claims = [record["expert"] for record in own if record.get("expert") and record["store"] == manifest.kind]
    if claims and len(prints) == 1:
        proven = expert_of(claims[0], name, path)
        told = f"{path}: damaged: {_changed(said, proven)}" if said else why
        faults.append(Fault(told, name, path=str(path), content=dump_yaml(asdict(proven))))
        return proven, None
    if said is None:
        if own or _holds_shards(path.parent):
            faults.append(Fault(f"{why}; its shards cannot be checked without it", name))
        return None, None
    if len(prints) == 1:
        told = f"{path}: damaged or exchanged: all records of {name} were made with other settings than it says"
        faults.append(Fault(f"{told}; put its contents back, or run: pipeline.py extract --rebuild {name}", name))
        return said, prints.pop()
    return said, None


def _changed(said: Expert, proven: Expert) -> str:
    old, new = ({**asdict(expert), "notes": None} for expert in (said, proven))
    return listed(differences(old, new, told=TOLD))


def _said(read: Callable[[], T]) -> tuple[T | None, str]:
    """What a small file says, or why it cannot be read."""
    try:
        return read(), ""
    except Unreadable:
        raise
    except StoreError as error:
        return None, str(error)


def _agreed(said: T | None, claims: Iterable[T]) -> T | None:
    """What all the claims say, unless one of them confirms what was said, or they differ among themselves."""
    agreed: T | None = None
    for claim in claims:
        if claim == said or (agreed is not None and claim != agreed):
            return said
        agreed = claim
    return said if agreed is None else agreed


def _own_records(manifest: Manifest, name: str, until: str | None) -> Iterator[Record]:
    """The expert's records of this store's images, up to one of the fingerprint `until`; others prove nothing here."""
    lr = {image.id: image.lr_sha256 for image in manifest.images}
    for record in _records(manifest.root, name):
        if record["source"] == name and record["images"] and record["images"].items() <= lr.items():
            yield record
            if record["fingerprint"] == until:
                return


def _records(root: Path, source: str) -> Iterator[Record]:
    """The records in a source's folder that are as they were written."""
    folder = source_dir(root, source)
    for name in files.names_in(folder):
        if shard_number(name) is None or not name.endswith(".json"):
            continue
        try:
            record = read(folder / name)
        except (StoreError, FileNotFoundError):  # `verify` says so when it comes to the shard
            continue
        yield record


def _holds_shards(folder: Path) -> bool:
    return any(shard_number(name) is not None for name in os.listdir(folder))
