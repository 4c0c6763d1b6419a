"""What a store holds and how it was made: store.yaml, images.jsonl, expert.yaml and the shards' records."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from championship_sr.store.codecs import Params, get_codec
from championship_sr.store.disk import files, leases
from championship_sr.store.errors import StoreError
from championship_sr.store.format import schema
from championship_sr.store.format.description import begin_store, describe_store
from championship_sr.store.format.differences import different_experts, different_stores, plain_expert
from championship_sr.store.format.entries import (
    IMAGES_FILE,
    STORE_FILE,
    ArraySpec,
    Expert,
    Image,
    check_expert,
    check_images,
    read_images,
    read_store,
)
from championship_sr.store.format.expert_files import (
    EXPERT_FILE,
    expert_names,
    name_experts,
    named_experts,
    read_basis,
    read_expert,
    write_expert,
)
from championship_sr.store.format.layout import (
    CONTAINERS,
    LOCK_FILE,
    PAIRS,
    checked_name,
    shard_number,
    shard_stem,
    source_dir,
)
from championship_sr.store.format.phrases import listed


class Manifest:
    """A store's description, as it was when it was read; writers change the files and this object together."""

    def __init__(self, root: Path, about: Mapping[str, Any], images: tuple[Image, ...], experts: dict[str, Expert]):
        self.root, self.about, self.images, self.experts = root, about, images, experts
        self.scale, self.container, self.format_version = (about[k] for k in ("scale", "container", "format_version"))
        self.kind = {key: about[key] for key in schema.StoreKind.model_fields}
        self.made_as: dict[str, str] = {}  # expert -> what its records repeat, where expert.yaml is wrong
        self._rebuilt: dict[str, Expert] = {}  # experts being rebuilt, as this process knows them
        self._by_shard: dict[int, list[Image]] = {}
        self._index = {image.id: i for i, image in enumerate(images)}
        for image in images:
            self._by_shard.setdefault(image.shard, []).append(image)

    @classmethod
    def create(
        cls, root: Path, *, scale: int, container: str, images: Sequence[Image], grow: bool = False
    ) -> "Manifest":
        """A new store, or the existing one if it is of the same images.

        grow    add the other images to a store of the first of these images
        raises  StoreError naming what differs, or if the folder is not a store
        """
        root, images = Path(root), tuple(images)
        check_images(images, container)
        if not (root / STORE_FILE).exists():
            begin_store(root, scale, container, images)
        manifest = cls.load(root)
        if grow and images[: len(manifest.images)] == manifest.images != images:
            manifest.grow(images)
            manifest = cls.load(root)
        different = different_stores(manifest, scale, container, images)
        if different:
            raise StoreError(f"{root}: holds a different store: {listed(different)}. Choose another folder")
        return manifest

    def grow(self, images: tuple[Image, ...]) -> None:
        """Append images to the store; if killed at any moment, it has either its old images or all."""
        root, there = self.root, {image.shard for image in self.images}
        if there & {image.shard for image in images[len(self.images) :]}:
            raise StoreError(f"{root}: new images must go into shards of their own")
        with leases.held(root / LOCK_FILE, wait=True):
            if Manifest.load(root).images == self.images:  # else another process has been faster
                describe_store(root, self.scale, self.container, images, self.format_version)

    @classmethod
    def load(cls, root: Path, damaged: list[str] | None = None) -> "Manifest":
        """The store in this folder.

        damaged  collects the faults of experts whose entries cannot be read, instead of raising the first
        raises   StoreError if there is none, it is damaged, or its format is unknown; Unreadable
        """
        root = Path(root)
        about = read_store(root)
        images = read_images(root / IMAGES_FILE, about)
        return cls(root, about, images, _read_experts(root, damaged))

    @property
    def has_hr(self) -> bool:
        """Whether the photographs have HR images; all of them, or none."""
        return self.images[0].hr_sha256 is not None

    @property
    def n_shards(self) -> int:
        return len(self._by_shard)

    @property
    def sources(self) -> list[str]:
        """The pairs and every expert."""
        return [PAIRS, *self.experts]

    @property
    def answering(self) -> list[str]:
        """The experts whose images are fused: all except the teachers."""
        return [name for name, expert in self.experts.items() if not expert.is_teacher]

    def images_of(self, shard: int) -> list[Image]:
        """The shard's images, in their order."""
        return self._by_shard[shard]

    def index_of(self, image_id: str) -> int:
        """The image's index."""
        return self._index[image_id]

    def specs(self, source: str, rebuild: bool = False) -> tuple[ArraySpec, ...]:
        """The arrays that each image has in this source; hr may also be uint16."""
        if source == PAIRS:
            hr = (ArraySpec("hr", 3, self.scale, "uint8"),) if self.has_hr else ()
            return ArraySpec("lr", 3, 1, "uint8"), *hr
        return self.expert(source, rebuild).arrays

    def variants(self, source: str, rebuild: bool = False) -> tuple[str, ...]:
        """The variants of each image in this source."""
        return ("identity",) if source == PAIRS else self.expert(source, rebuild).variants

    def fingerprint(self, source: str, rebuild: bool = False) -> str:
        """The fingerprint that each record of the source's shards must repeat."""
        if source in self.made_as and not rebuild:
            return self.made_as[source]
        return PAIRS if source == PAIRS else self.expert(source, rebuild).fingerprint

    def expert(self, name: str, rebuild: bool = False) -> Expert:
        """The expert of this name.

        raises  StoreError naming the existing ones
        """
        if rebuild:
            if name not in self._rebuilt:  # kept: a rebuild that another process starts again is not this process's
                self._rebuilt[name] = read_expert(self.root, name, rebuild=True)
            return self._rebuilt[name]
        if name not in self.experts:
            raise StoreError(f"{self.root}: no expert {name} (has: {', '.join(self.experts) or 'none'})")
        return self.experts[name]

    def basis(self, name: str, rebuild: bool = False) -> dict[str, Params]:
        """Array name -> basis, for the arrays whose codec has one.

        raises  StoreError if the file is not the one that expert.yaml names
        """
        expert = self.expert(name, rebuild)
        if expert.basis_sha256 is None:
            return {}
        return read_basis(source_dir(self.root, name, rebuild), expert.basis_sha256)

    def needs_basis(self, expert: Expert, rebuild: bool = False) -> tuple[ArraySpec, ...]:
        """The arrays for which `add_expert` needs a basis: their codec uses one, and the store does not have it yet."""
        fitted = tuple(spec for spec in expert.arrays if get_codec(spec.codec).components)
        if fitted and (source_dir(self.root, expert.name, rebuild) / EXPERT_FILE).exists():
            there = read_expert(self.root, expert.name, rebuild)
            return () if not different_experts(there, expert) else fitted
        return fitted

    def add_expert(self, expert: Expert, rebuild: bool = False, basis: Mapping[str, Params] | None = None) -> Expert:
        """Make room for an expert, or continue it if it exists with the same identity and arrays.

        rebuild  make room beside the existing shards, for `swap_rebuilt`
        basis    array name -> `fit_pca`'s result, for each of `needs_basis`
        raises   StoreError naming the keys that differ
        """
        check_expert(expert)
        expert = plain_expert(expert)
        folder = source_dir(self.root, expert.name, rebuild)
        with leases.held(self.root / LOCK_FILE, wait=True):
            for leftover in (self.root / "experts").glob("*" + files.TMP):
                files.remove(leftover)
            there = read_expert(self.root, expert.name, rebuild) if (folder / EXPERT_FILE).exists() else None
            different = different_experts(there, expert) if there else []
            if different and rebuild:
                _check_idle(folder, f"is rebuilding {expert.name} with other settings: {listed(different)}")
                files.remove(folder)
            if different and not rebuild:
                raise StoreError(
                    f"{self.root}: expert {expert.name} was made differently: {listed(different)}. "
                    f"To extract it again: pipeline.py extract --rebuild {expert.name}"
                )
            if there is None or different:
                there = write_expert(folder, expert, basis or {})
            if not rebuild:
                name_experts(self.root, added=[expert.name])
        (self._rebuilt if rebuild else self.experts)[expert.name] = there
        return there

    def swap_rebuilt(self, name: str) -> None:
        """Put the rebuilt expert in the old one's place, in one step if the file system can.

        raises  StoreError while shards are missing
        """
        old, new = source_dir(self.root, name), source_dir(self.root, name, rebuild=True)
        doomed = old.with_name(name + files.TMP)
        with leases.held(self.root / LOCK_FILE, wait=True):
            missing = self.missing_shards(
                name, rebuild=True
            )  # under the lock: no other process swaps or restarts the rebuild meanwhile
            if missing:
                told = f"still lacks {len(missing)} of {self.n_shards} shards"
                raise StoreError(f"{self.root}: the rebuilt {name} {told}")
            files.remove(doomed)
            if not self._is_in_place(
                name
            ):  # otherwise another process that rebuilt the last shard has swapped it in already
                _swap(old, new, doomed)
            name_experts(self.root, added=[name])
            files.remove(doomed)
        self.take_swapped(name)

    def take_swapped(self, name: str) -> None:
        """Reads the expert that is in the folder after a rebuild was swapped in."""
        self._rebuilt.pop(name, None)
        self.experts[name] = read_expert(self.root, name)

    def _is_in_place(self, name: str) -> bool:
        """Whether another process has swapped in the expert that this one was rebuilding."""
        mine = self._rebuilt.get(name)
        if mine is None:
            return False
        live, beside = (_fingerprint_in(self.root, name, rebuild) for rebuild in (False, True))
        return live == mine.fingerprint != beside

    def has_left(self, name: str) -> bool:
        """Whether anything is left of an expert: its folder, a rebuild, an interrupted removal, its name."""
        folder = source_dir(self.root, checked_name(name, "expert"))
        folders = (folder, folder.with_name(name + files.TMP), source_dir(self.root, name, rebuild=True))
        return any(map(files.is_there, folders)) or name in named_experts(self.root)

    def remove_expert(self, name: str) -> None:
        """Remove an expert's shards, those of its rebuild, and its entry, whatever their state.

        raises  StoreError if there is no such expert, or another process is rebuilding it
        """
        folder, rebuilt = (source_dir(self.root, checked_name(name, "expert"), rebuild) for rebuild in (False, True))
        doomed = folder.with_name(name + files.TMP)
        if not self.has_left(name):
            raise StoreError(f"{self.root}: no expert {name} (has: {', '.join(self.experts) or 'none'})")
        with leases.held(self.root / LOCK_FILE, wait=True):
            if rebuilt.is_dir():
                _check_idle(rebuilt, f"is rebuilding {name}")
            name_experts(self.root, removed=[name])  # first: a name without its folder would count as a lost expert
            files.remove(rebuilt)
            if files.is_there(folder):  # otherwise finish an interrupted removal
                files.remove(doomed)
                folder.rename(doomed)  # the expert disappears in one step, whatever happens while its files are removed
                files.sync(folder.parent)
            files.remove(doomed)
        self.experts.pop(name, None)

    def missing_shards(self, source: str, rebuild: bool = False) -> list[int]:
        """The shards without a record; none for a rebuild that another process has swapped in."""
        if rebuild and self._is_in_place(source):
            return []
        names = files.names_in(source_dir(self.root, source, rebuild))
        done = {shard_number(name) for name in names if name.endswith(".json")}
        return [shard for shard in sorted(self._by_shard) if shard not in done]

    def recorded_shards(self, source: str, rebuild: bool = False) -> list[int]:
        """The shards that have a record and are therefore done."""
        return sorted(self._by_shard.keys() - set(self.missing_shards(source, rebuild)))

    def is_recorded(self, source: str, shard: int, rebuild: bool = False) -> bool:
        """True if the shard has a record and is therefore done."""
        return files.is_there(self.record_path(source, shard, rebuild))

    # overridden for a store that only passes through a folder: store/remote/staging.py

    def published(self, source: str, shard: int, rebuild: bool = False) -> None:
        """Called when a shard and its record have been written into the folder."""

    def flush(self) -> None:
        """Waits until every shard that was written is where it belongs."""

    @contextmanager
    def needed(self, source: str, shard: int) -> Iterator[None]:
        """Keeps a recorded shard in the folder while the block runs."""
        yield

    def shard_path(self, source: str, shard: int, rebuild: bool = False) -> Path:
        """The shard's file or folder."""
        return source_dir(self.root, source, rebuild) / (shard_stem(shard) + CONTAINERS[self.container])

    def record_path(self, source: str, shard: int, rebuild: bool = False) -> Path:
        """The shard's record, which is written last."""
        return source_dir(self.root, source, rebuild) / f"{shard_stem(shard)}.json"

    def lr_identity(self, shard: int) -> dict[str, str]:
        """Image id -> sha256 of LR: the images from which a recorded shard was made."""
        return {image.id: image.lr_sha256 for image in self.images_of(shard)}


def _check_idle(folder: Path, what: str) -> None:
    """Refuse to remove a folder in which another process is writing a shard.

    raises  StoreError
    """
    stems = {name.partition(".")[0] for name in os.listdir(folder) if name.endswith((".lock", leases.SUFFIX))}
    if any(leases.is_held(folder / f"{stem}.lock") for stem in stems):
        raise StoreError(f"{folder}: another process {what}. Wait for it to end, or stop it")


def _fingerprint_in(root: Path, name: str, rebuild: bool) -> str | None:
    """Of the expert that lies there now; None if there is none."""
    if not files.is_there(source_dir(root, name, rebuild) / EXPERT_FILE):
        return None
    return read_expert(root, name, rebuild).fingerprint


def _swap(old: Path, new: Path, doomed: Path) -> None:
    if old.exists() and files.exchange(new, old):
        new.rename(doomed)
    else:
        if old.exists():
            old.rename(doomed)
        new.rename(old)  # if this is never reached, the rebuilt expert is complete and the next swap continues here
    files.sync(old.parent)


def _read_experts(root: Path, damaged: list[str] | None) -> dict[str, Expert]:
    experts = {}
    for name in expert_names(root):
        try:
            experts[name] = read_expert(root, name)
        except StoreError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return experts
