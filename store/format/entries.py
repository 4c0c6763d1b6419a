"""The entries of a store's description, each as it lies in its file: images, experts, bases; and how two differ."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from championship_sr.store.codecs import Params, get_codec
from championship_sr.store.config import dump_yaml
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, parse_yaml, read_as, read_small
from championship_sr.store.errors import ConfigError, StoreError, Unreadable
from championship_sr.store.format import schema
from championship_sr.store.format.layout import (
    CONTAINERS,
    KNOWN_VERSIONS,
    checked_name,
    is_name,
    shard_number,
    source_dir,
)
from championship_sr.store.format.variants import VARIANTS

STORE_FILE, IMAGES_FILE, EXPERT_FILE, BASIS_FILE = "store.yaml", "images.jsonl", "expert.yaml", "basis.safetensors"
EXPERTS_FILE = "experts.txt"  # their names, so that a folder that is lost as a whole is noticed
SHOWN_DIFFERENCES = 5
TEACHER = "teacher"  # the role, in its identity, of images to learn from: no expert whose images are fused


@dataclass(frozen=True, slots=True)
class Image:
    """One photograph; the LR image that the experts saw has `lr_size` rows and columns."""

    id: str
    name: str
    lr_size: tuple[int, int]
    lr_sha256: str
    hr_sha256: str | None  # None: there is no HR image, in the whole store
    shard: int
    lr_source: str  # "file", or "bicubic": made from the HR image


@dataclass(frozen=True)
class ArraySpec:
    """One array of every image; `channels` as decoded, `resolution` 1 for the LR grid, the scale for the HR grid."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    arrays: tuple[ArraySpec, ...]
    identity: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    basis_sha256: str | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.identity.get("variants") or ("identity",))

    @property
    def is_teacher(self) -> bool:
        """Whether these are images to learn from (docs/training.md); only who names them gets them."""
        return self.identity.get("role") == TEACHER

    @property
    def made_from(self) -> str | None:
        """sha256 of the weights, or of the images that another program made; None for random weights."""
        return self.identity.get("weights_sha256") or (self.identity.get("images") or {}).get("sha256")

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the bytes; every record of the expert's shards repeats it."""
        decides = {
            "arrays": [asdict(spec) for spec in self.arrays],
            "identity": self.identity,
            "basis": self.basis_sha256,
        }
        return hashlib.sha256(canonical(decides)).hexdigest()


_EXPERT = TypeAdapter(Expert)


def check_expert(expert: Expert) -> None:
    """Refuse what cannot be stored.

    raises  ConfigError for a name that is no name, an unknown variant or an unknown codec
    """
    checked_name(expert.name, "expert")
    for spec in expert.arrays:
        checked_name(spec.name, f"expert {expert.name}, array")
        get_codec(spec.codec)
    if len({spec.name for spec in expert.arrays}) < len(expert.arrays):
        raise ConfigError(f"expert {expert.name}: two arrays have the same name")
    unknown = set(expert.variants) - set(VARIANTS)
    if unknown:
        raise ConfigError(f"expert {expert.name}: no such variant: {', '.join(sorted(unknown))}")


def check_images(images: tuple[Image, ...], container: str) -> None:
    """Refuse what no store can hold.

    raises  StoreError for an unknown container, no images or two of one id; ConfigError for an id that is none
    """
    if container not in CONTAINERS:
        raise StoreError(f"container {container!r}: expected one of {', '.join(CONTAINERS)}")
    if not images:
        raise StoreError("a store needs at least one image")
    if len({image.hr_sha256 is None for image in images}) > 1:
        raise StoreError("a store holds HR for all of its images or for none; make two stores")
    seen: set[str] = set()
    for image in images:
        checked_name(image.id, "image id")
        if image.id in seen:
            raise StoreError(f"two images have the id {image.id}")
        seen.add(image.id)


def images_bytes(images: Sequence[Image]) -> bytes:
    """images.jsonl."""
    # not asdict, which takes four times as long: a store may have a million images
    entries = ({key: getattr(image, key) for key in Image.__slots__} for image in images)
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode(errors="surrogatepass")


def read_images(path: Path, about: Mapping[str, Any]) -> tuple[Image, ...]:
    """The images of images.jsonl: as many of its lines as store.yaml says; a store that is just growing has more.

    raises  StoreError if these lines are not those of its sha256, or hold what no store can; Unreadable
    """
    try:
        lines = files.read_bytes(path).splitlines(keepends=True)[: about["images"]]
    except FileNotFoundError:
        lines = []
    if hashlib.sha256(b"".join(lines)).hexdigest() != about["images_sha256"] or len(lines) != about["images"]:
        raise StoreError(f"{path}: missing, damaged or from another store ({STORE_FILE} names another sha256)")
    number = 0
    try:
        images = []
        for number, line in enumerate(lines, 1):  # noqa: B007 (told below)
            images.append(image_of(parse_json(line)))
        check_images(tuple(images), about["container"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path}: line {number} is not an image: {' '.join(str(error).split())}") from None
    return tuple(images)


def image_of(entry: Mapping[str, Any]) -> Image:
    """The image that a line of images.jsonl describes.

    raises  KeyError, TypeError, ValueError, AttributeError for what is none
    """
    rows, cols = entry["lr_size"]
    image = Image(**{**entry, "lr_size": (rows, cols)})
    checked_name(image.id, "image id")  # it becomes a part of paths
    for key, value, least in (("lr_size", rows, 1), ("lr_size", cols, 1), ("shard", image.shard, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is {value!r}")
    return image


def write_expert(folder: Path, expert: Expert, basis: Mapping[str, Params]) -> Expert:
    """Begin an expert's folder; the expert as its file, written last of all, now has it.

    raises  StoreError if the folder holds shards: their entry is lost, and they are not to be lost with it
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = sorted(name for name in os.listdir(folder) if shard_number(name) is not None)
    if shards:
        raise StoreError(f"{folder}: holds {shards[0]} but no {EXPERT_FILE}; put that back, or remove the folder")
    unfitted = [spec.name for spec in expert.arrays if get_codec(spec.codec).components and spec.name not in basis]
    if unfitted:
        raise StoreError(f"expert {expert.name}: the codec of {', '.join(unfitted)} needs a basis (fit_pca)")
    if basis:
        from safetensors.numpy import save

        # contiguous: safetensors writes a transposed array's memory as if it were not
        content = save(
            {f"{name}.{key}": np.ascontiguousarray(basis[name][key]) for name in basis for key in basis[name]}
        )
        files.write_atomic(folder / BASIS_FILE, content)
        expert = replace(expert, basis_sha256=hashlib.sha256(content).hexdigest())
    files.write_atomic(folder / EXPERT_FILE, dump_yaml(asdict(expert)).encode())
    files.sync(folder.parent)
    return expert


def read_store(root: Path) -> dict[str, Any]:
    """What store.yaml says.

    raises  StoreError if there is no store, its file is damaged or its format unknown; Unreadable
    """
    path = root / STORE_FILE
    content = read_yaml(path, f"{root}: not a feature store (it has no {STORE_FILE})")
    version = content.get("format_version")
    if type(version) is not int or version not in KNOWN_VERSIONS:
        raise StoreError(
            f"{root}: format version {version!r}, but this program only reads {known_versions()}; update it"
        )
    schema.check(schema.StoreFile, content, path)
    return {key: content[key] for key in schema.StoreFile.model_fields}


def known_versions() -> str:
    """The versions of the format that can be read, for messages."""
    return " and ".join(map(str, KNOWN_VERSIONS))


def read_expert(root: Path, name: str, rebuild: bool = False) -> Expert:
    """The expert of this folder.

    raises  StoreError if its file is missing, damaged or of another expert; Unreadable
    """
    path = source_dir(root, name, rebuild) / EXPERT_FILE
    return expert_of(read_yaml(path, f"{path}: missing"), name, path)


def expert_of(content: Mapping[str, Any], name: str, where: object) -> Expert:
    """The expert of this name that the mapping of an expert.yaml describes.

    raises  StoreError naming what cannot be, or another expert than the folder's
    """
    schema.check(schema.ExpertFile, content, where)
    variants = content["identity"].get("variants") or []
    if not (isinstance(variants, list) and all(isinstance(each, str) for each in variants)):
        raise StoreError(f"{where}: damaged: identity.variants: expected a list of names")
    expert = parse_expert(content, str(where))
    try:
        canonical({"identity": expert.identity, "notes": expert.notes})
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{where}: damaged: {error}") from None
    if expert.name != name:
        raise StoreError(f"{where}: the folder of expert {name} holds expert {expert.name}")
    return expert


def parse_expert(content: Mapping[str, Any], where: str) -> Expert:
    """The expert that plain values describe: a store's expert.yaml, or an entry of a run's experts.yaml.

    raises  StoreError naming `where` if they describe none
    """
    try:
        expert = _EXPERT.validate_python(content)
        check_expert(expert)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise StoreError(f"{where}: damaged: {key}: {fault['msg']}") from None
    except ConfigError as error:
        raise StoreError(f"{where}: damaged: {error}") from None
    return expert


def expert_names(root: Path) -> list[str]:
    """The experts whose folders have an entry."""
    return [name for name in expert_folders(root) if os.path.lexists(source_dir(root, name) / EXPERT_FILE)]


def expert_folders(root: Path) -> list[str]:
    """The names of the folders that are an expert's, whatever they hold."""
    folder = root / "experts"
    return [name for name in files.names_in(folder) if is_name(name) and _is_folder(folder / name)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() or path.is_symlink()  # a link to nowhere: a disk that is not there now


def named_experts(root: Path) -> set[str]:
    """The experts that the store has by experts.txt; none where there is no such file.

    raises  StoreError if it holds something else than names; Unreadable
    """
    path = root / EXPERTS_FILE
    try:
        with files.reading(path):
            names = read_small(path).decode(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return set()
    wrong = [name for name in names if not is_name(name)]
    if wrong:
        raise StoreError(f"{path}: damaged: {wrong[0][:24]!r} is not an expert name")
    return set(names)


def name_experts(root: Path, added: Iterable[str] = (), removed: Iterable[str] = ()) -> None:
    """Change experts.txt; by whoever holds the store's lock."""
    try:
        there = named_experts(root) if files.is_there(root / EXPERTS_FILE) else None
    except Unreadable:
        raise
    except StoreError:
        there = None
    known = set(expert_names(root)) if there is None else there  # a list that is lost or damaged is made anew
    names = (known | set(added)) - set(removed)
    if names != there:
        files.write_atomic(root / EXPERTS_FILE, "".join(f"{name}\n" for name in sorted(names)).encode())


def read_basis(folder: Path, sha256: str) -> dict[str, Params]:
    """Array name -> basis.

    raises  StoreError if the file is not the one of this sha256
    """
    from safetensors.numpy import load

    path = folder / BASIS_FILE
    try:
        content = files.read_bytes(path)
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(f"{path}: missing or damaged; nothing encoded with it can be read, so rebuild the expert")
    result: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load(content).items():
        name, _, part = key.rpartition(".")
        result.setdefault(name, {})[part] = value
    return {**result}


def read_yaml(path: Path, absent: str) -> dict[str, Any]:
    """The mapping in a file; `absent` is the message where there is none."""
    try:
        with files.reading(path):
            return read_as(parse_yaml, path)
    except FileNotFoundError:
        raise StoreError(absent) from None


def plain_expert(expert: Expert) -> Expert:
    """The expert as it is after being written and read: no tuples, no numpy scalars."""
    identity, notes = (json.loads(canonical(part)) for part in (expert.identity, expert.notes))
    return replace(expert, identity=identity, notes=notes)


def different_experts(there: Expert, wanted: Expert) -> list[str]:
    """Each key that decides the bytes and differs."""
    return differences(_comparable(there), _comparable(plain_expert(wanted)))


def _comparable(expert: Expert) -> dict[str, Any]:
    arrays = {spec.name: asdict(spec) for spec in expert.arrays}
    return {**expert.identity, "arrays": arrays}


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "", told: str = "{} is {} there, {} now"
) -> list[str]:
    """One phrase for each key whose values differ."""
    result = []
    for key in sorted({*old, *new}, key=str):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            result += differences(one, other, f"{prefix}{key}.", told)
        elif one != other and canonical(one) != canonical(other):
            result.append(told.format(f"{prefix}{key}", _short(one), _short(other)))
    return result


def different_stores(found: Any, scale: int, container: str, images: tuple[Image, ...]) -> list[str]:
    """One phrase for each thing in which the store `found` (a Manifest) is not one of these images."""
    different = differences(
        {"scale": found.scale, "container": found.container}, {"scale": scale, "container": container}
    )
    if found.images == images:
        return different
    old, new = ({image.id: asdict(image) for image in each} for each in (found.images, images))
    for what, ids in (("without", new.keys() - old.keys()), ("with the extra", old.keys() - new.keys())):
        if ids:
            different.append(f"{what} {listed(sorted(ids), 3)}")
    for name in old.keys() & new.keys():
        different += [f"image {name}: {each}" for each in differences(old[name], new[name])]
    if not different and [*old] != [*new]:
        different.append("the images are in another order")
    return different


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "..."


def counted(count: int, what: str) -> str:
    """A number of things: `1 shard`, `2 shards`."""
    return f"{count} {what}{'s' * (count != 1)}"


def listed(items: Sequence[str], shown: int = SHOWN_DIFFERENCES) -> str:
    """The first few, and how many more."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def canonical(content: Any) -> bytes:
    """The one JSON text of plain values, for checksums; a name that is no UTF-8 keeps its own bytes."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=_scalar).encode(errors="surrogatepass")


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
