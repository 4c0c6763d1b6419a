"""What a store holds and how it came about: store.yaml, images.jsonl, expert.yaml and the shards' records."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from store import files
from store.codecs import Params, get_codec
from store.config import dump_yaml
from store.errors import StoreError
from store.layout import CONTAINERS, FORMAT_VERSION, PAIRS, checked_name, shard_number, shard_stem, source_dir

STORE_FILE, IMAGES_FILE, EXPERT_FILE, BASIS_FILE = "store.yaml", "images.jsonl", "expert.yaml", "basis.safetensors"
LOCK_FILE = "store.lock"
SHOWN_DIFFERENCES = 5


@dataclass(frozen=True, slots=True)
class Image:
    """One photograph; the LR image that the experts saw has `lr_size` rows and columns."""

    id: str
    name: str
    lr_size: tuple[int, int]
    lr_sha256: str
    hr_sha256: str
    shard: int
    lr_source: str  # "file", or "bicubic": made from the HR image


@dataclass(frozen=True)
class ArraySpec:
    """One array of every image; `channels` as decoded, `resolution` 1 for the LR grid, the scale for the HR grid."""

    name: str
    channels: int
    resolution: int
    codec: str


@dataclass(frozen=True)
class Expert:
    """One expert's folder.

    identity      everything that decides the bytes; `identity["variants"]` lists the variants, if there are several
    notes         what is worth knowing and decides nothing
    basis_sha256  of basis.safetensors, where a codec has one
    """

    name: str
    arrays: tuple[ArraySpec, ...]
    identity: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    basis_sha256: str | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.identity.get("variants") or ("identity",))

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the bytes; every record of the expert's shards repeats it."""
        decides = {
            "arrays": [asdict(spec) for spec in self.arrays],
            "identity": self.identity,
            "basis": self.basis_sha256,
        }
        return hashlib.sha256(_canonical(decides)).hexdigest()


class Manifest:
    """A store's description, as it was when it was read; writers change the files and this object together."""

    def __init__(self, root: Path, scale: int, container: str, images: tuple[Image, ...], experts: dict[str, Expert]):
        self.root, self.scale, self.container, self.images, self.experts = root, scale, container, images, experts
        self._by_shard: dict[int, list[Image]] = {}
        for image in images:
            self._by_shard.setdefault(image.shard, []).append(image)

    @classmethod
    def create(cls, root: Path, *, scale: int, container: str, images: Sequence[Image]) -> "Manifest":
        """A new store, or the one that is there if it is of the same images.

        raises  StoreError naming what differs, or if the folder is something else
        """
        root, images = Path(root), tuple(images)
        _check(images, container)
        if not (root / STORE_FILE).exists():
            _begin(root, scale, container, images)
        found = cls.load(root)
        different = _different_stores(found, scale, container, images)
        if different:
            raise StoreError(
                f"{root}: a store of something else: {_listed(different)}. Choose another folder for this one"
            )
        return found

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """The store in this folder.

        raises  StoreError if there is none, it is damaged, or its format is unknown
        """
        root = Path(root)
        content = _read_yaml(root / STORE_FILE, f"{root}: not a feature store (it has no {STORE_FILE})")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise StoreError(f"{root}: format version {version!r}; this program knows {FORMAT_VERSION}: update it")
        if content.get("container") not in CONTAINERS or not isinstance(content.get("scale"), int):
            raise StoreError(f"{root / STORE_FILE}: damaged: container or scale is missing or impossible")
        images = _read_images(root / IMAGES_FILE, content.get("images_sha256"))
        experts = {name: _read_expert(root, name) for name in _expert_names(root)}
        return cls(root, content["scale"], content["container"], images, experts)

    @property
    def n_shards(self) -> int:
        return len(self._by_shard)

    @property
    def sources(self) -> list[str]:
        """The pairs and every expert."""
        return [PAIRS, *self.experts]

    def images_of(self, shard: int) -> list[Image]:
        """The shard's images, in their order."""
        return self._by_shard[shard]

    def specs(self, source: str, rebuild: bool = False) -> tuple[ArraySpec, ...]:
        """The arrays that each image has in this source; hr may also be uint16."""
        if source == PAIRS:
            return ArraySpec("lr", 3, 1, "uint8"), ArraySpec("hr", 3, self.scale, "uint8")
        return self.expert(source, rebuild).arrays

    def variants(self, source: str, rebuild: bool = False) -> tuple[str, ...]:
        """The variants of each image in this source."""
        return ("identity",) if source == PAIRS else self.expert(source, rebuild).variants

    def fingerprint(self, source: str, rebuild: bool = False) -> str:
        """What a record of the source's shards must repeat."""
        return PAIRS if source == PAIRS else self.expert(source, rebuild).fingerprint

    def expert(self, name: str, rebuild: bool = False) -> Expert:
        """The expert of this name.

        raises  StoreError naming those that there are
        """
        if rebuild:
            return _read_expert(self.root, name, rebuild=True)
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
        path = source_dir(self.root, name, rebuild) / BASIS_FILE
        return _split_basis(path, expert.basis_sha256)

    def needs_basis(self, expert: Expert, rebuild: bool = False) -> tuple[ArraySpec, ...]:
        """The arrays for which `add_expert` must be given a basis: their codec has one and the store hasn't it yet."""
        fitted = tuple(spec for spec in expert.arrays if get_codec(spec.codec).components)
        if fitted and (source_dir(self.root, expert.name, rebuild) / EXPERT_FILE).exists():
            there = _read_expert(self.root, expert.name, rebuild)
            return () if not _different_experts(there, expert) else fitted
        return fitted

    def add_expert(self, expert: Expert, rebuild: bool = False, basis: Mapping[str, Params] | None = None) -> Expert:
        """Make room for an expert, or go on with it if it is there with the same identity and arrays.

        rebuild  make room beside the shards that there are, for `swap_rebuilt`
        basis    array name -> `fit_pca`'s result, for each of `needs_basis`
        raises   StoreError naming the keys that differ
        """
        checked_name(expert.name, "expert")
        expert = _plain_expert(expert)
        folder = source_dir(self.root, expert.name, rebuild)
        with files.locked(self.root / LOCK_FILE, wait=True):
            there = _read_expert(self.root, expert.name, rebuild) if (folder / EXPERT_FILE).exists() else None
            different = _different_experts(there, expert) if there else []
            if different and not rebuild:
                raise StoreError(
                    f"{self.root}: expert {expert.name} was made differently: {_listed(different)}. "
                    f"To make it anew: pipeline.py extract --rebuild {expert.name}"
                )
            if there is None or different:
                there = _write_expert(folder, expert, basis or {})
        if not rebuild:
            self.experts[expert.name] = there
        return there

    def swap_rebuilt(self, name: str) -> None:
        """Put the rebuilt expert in the old one's place, in one step where the file system has one.

        raises  StoreError while shards are missing
        """
        missing = self.missing_shards(name, rebuild=True)
        if missing:
            raise StoreError(f"{self.root}: the rebuilt {name} still lacks {len(missing)} of {self.n_shards} shards")
        old, new = source_dir(self.root, name), source_dir(self.root, name, rebuild=True)
        with files.locked(self.root / LOCK_FILE, wait=True):
            if not old.exists():
                new.rename(old)
            elif files.exchange(new, old):
                files.remove(new)
            else:
                files.remove(old)
                new.rename(old)
            files.sync(old.parent)
        self.experts[name] = _read_expert(self.root, name)

    def remove_expert(self, name: str) -> None:
        """Remove an expert's shards and its entry; no trace of it stays.

        raises  StoreError if there is no such expert
        """
        self.expert(name)
        folder = source_dir(self.root, name)
        doomed = folder.with_name(name + files.TMP)
        with files.locked(self.root / LOCK_FILE, wait=True):
            files.remove(doomed)
            folder.rename(doomed)  # gone in one step, whatever happens while its files are removed
            files.sync(folder.parent)
            files.remove(doomed)
        del self.experts[name]

    def missing_shards(self, source: str, rebuild: bool = False) -> list[int]:
        """The shards that no record says are done."""
        folder = source_dir(self.root, source, rebuild)
        names = os.listdir(folder) if folder.is_dir() else []
        done = {shard_number(name) for name in names if name.endswith(".json")}
        return [shard for shard in sorted(self._by_shard) if shard not in done]

    def shard_path(self, source: str, shard: int, rebuild: bool = False) -> Path:
        """The shard's file or folder."""
        return source_dir(self.root, source, rebuild) / (shard_stem(shard) + CONTAINERS[self.container])

    def record_path(self, source: str, shard: int, rebuild: bool = False) -> Path:
        """The shard's record, which is written last."""
        return source_dir(self.root, source, rebuild) / f"{shard_stem(shard)}.json"

    def lr_identity(self, shard: int) -> dict[str, str]:
        """Image id -> sha256 of LR: what a record says about the images that it was made from."""
        return {image.id: image.lr_sha256 for image in self.images_of(shard)}


def assign_shards(images: Iterable[Image], images_per_shard: int) -> tuple[Image, ...]:
    """The images with shard numbers in their order."""
    return tuple(replace(image, shard=i // images_per_shard) for i, image in enumerate(images))


def _check(images: tuple[Image, ...], container: str) -> None:
    if container not in CONTAINERS:
        raise StoreError(f"container {container!r}: expected one of {', '.join(CONTAINERS)}")
    if not images:
        raise StoreError("a store needs at least one image")
    seen: set[str] = set()
    for image in images:
        checked_name(image.id, "image id")
        if image.id in seen:
            raise StoreError(f"two images have the id {image.id}")
        seen.add(image.id)


def _begin(root: Path, scale: int, container: str, images: tuple[Image, ...]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with files.locked(root / LOCK_FILE, wait=True):
        if (root / STORE_FILE).exists():
            return
        known = {LOCK_FILE, IMAGES_FILE, IMAGES_FILE + files.TMP, STORE_FILE + files.TMP}
        foreign = sorted(set(os.listdir(root)) - known)
        if foreign:
            raise StoreError(
                f"{root}: not a feature store and not empty (it holds {foreign[0]}): choose another folder"
            )
        lines = "".join(json.dumps(asdict(image), ensure_ascii=False) + "\n" for image in images).encode()
        files.write_atomic(root / IMAGES_FILE, lines)
        content = {
            "format_version": FORMAT_VERSION,
            "scale": scale,
            "container": container,
            "images": len(images),
            "images_sha256": hashlib.sha256(lines).hexdigest(),
        }
        files.write_atomic(root / STORE_FILE, dump_yaml(content).encode())
        files.sync(root.parent)


def _write_expert(folder: Path, expert: Expert, basis: Mapping[str, Params]) -> Expert:
    files.remove(folder)
    folder.mkdir(parents=True)
    unfitted = [spec.name for spec in expert.arrays if get_codec(spec.codec).components and spec.name not in basis]
    if unfitted:
        raise StoreError(f"expert {expert.name}: the codec of {', '.join(unfitted)} needs a basis (fit_pca)")
    if basis:
        from safetensors.numpy import save

        tensors = {f"{name}.{key}": np.asarray(value) for name, part in basis.items() for key, value in part.items()}
        content = save(tensors)
        files.write_atomic(folder / BASIS_FILE, content)
        expert = replace(expert, basis_sha256=hashlib.sha256(content).hexdigest())
    files.write_atomic(folder / EXPERT_FILE, dump_yaml(asdict(expert)).encode())
    files.sync(folder.parent)
    return expert


def _split_basis(path: Path, sha256: str) -> dict[str, Params]:
    from safetensors.numpy import load

    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(f"{path}: missing or damaged, and nothing coded with it can be read; rebuild the expert")
    result: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load(content).items():
        name, _, part = key.rpartition(".")
        result.setdefault(name, {})[part] = value
    return result


def _expert_names(root: Path) -> list[str]:
    folder = root / "experts"
    names = os.listdir(folder) if folder.is_dir() else []
    unfinished = (files.TMP, ".rebuild")
    return sorted(name for name in names if not name.endswith(unfinished) and (folder / name / EXPERT_FILE).exists())


def _read_expert(root: Path, name: str, rebuild: bool = False) -> Expert:
    path = source_dir(root, name, rebuild) / EXPERT_FILE
    content = _read_yaml(path, f"{path}: missing")
    try:
        arrays = tuple(ArraySpec(**spec) for spec in content.pop("arrays"))
        expert = Expert(arrays=arrays, **content)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    if expert.name != name:
        raise StoreError(f"{path}: the folder of {name} holds the expert {expert.name}")
    return expert


def _read_images(path: Path, sha256: str | None) -> tuple[Image, ...]:
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(f"{path}: missing, damaged or of another store ({STORE_FILE} names another sha256)")
    entries = (json.loads(line) for line in content.splitlines())
    return tuple(Image(**{**entry, "lr_size": tuple(entry["lr_size"])}) for entry in entries)


def _read_yaml(path: Path, absent: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(absent) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: damaged: expected a mapping of keys")
    return content


def _different_stores(found: Manifest, scale: int, container: str, images: tuple[Image, ...]) -> list[str]:
    different = _differences(
        {"scale": found.scale, "container": found.container}, {"scale": scale, "container": container}
    )
    old, new = ({image.id: asdict(image) for image in each} for each in (found.images, images))
    for what, ids in (("without", new.keys() - old.keys()), ("with the extra", old.keys() - new.keys())):
        if ids:
            different.append(f"{what} {_listed(sorted(ids), 3)}")
    for name in old.keys() & new.keys():
        different += [f"image {name}: {each}" for each in _differences(old[name], new[name])]
    if not different and [*old] != [*new]:
        different.append("the images are in another order")
    return different


def _different_experts(there: Expert, wanted: Expert) -> list[str]:
    return _differences(_comparable(there), _comparable(_plain_expert(wanted)))


def _comparable(expert: Expert) -> dict[str, Any]:
    arrays = {spec.name: asdict(spec) for spec in expert.arrays}
    return {**expert.identity, "arrays": arrays}


def _plain_expert(expert: Expert) -> Expert:
    """The expert as it is after being written and read: no tuples, no numpy scalars."""
    identity, notes = (json.loads(_canonical(part)) for part in (expert.identity, expert.notes))
    return replace(expert, identity=identity, notes=notes)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    result = []
    for key in sorted({*old, *new}, key=str):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            result += _differences(one, other, f"{prefix}{key}.")
        elif one != other and _canonical(one) != _canonical(other):
            result.append(f"{prefix}{key} is {_short(one)} there, {_short(other)} now")
    return result


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "..."


def _listed(items: Sequence[str], shown: int = SHOWN_DIFFERENCES) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=_scalar).encode()


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
