"""The entries of a store's description: images and experts; store.yaml and images.jsonl as they lie in the folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from championship_sr.store.codecs import get_codec
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, parse_yaml, read_as
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format import schema
from championship_sr.store.format.canonical import canonical
from championship_sr.store.format.layout import (
    CONTAINERS,
    KNOWN_VERSIONS,
    checked_name,
)
from championship_sr.store.format.variants import VARIANTS

STORE_FILE, IMAGES_FILE = "store.yaml", "images.jsonl"
TEACHER = "teacher"  # the role, in an expert's identity, of images to learn from; they are not fused


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
    notes         for information; decides nothing
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
        """Whether these are images to learn from (docs/training.md), which are only used when asked for by name."""
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


def check_expert(expert: Expert) -> None:
    """Refuse what cannot be stored.

    raises  ConfigError for an invalid name, an unknown variant or an unknown codec
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

    raises  StoreError for an unknown container, no images or a repeated id; ConfigError for an invalid id
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
    """The images of images.jsonl: as many lines as store.yaml says; there are more while the store is growing.

    raises  StoreError if these lines do not match their sha256 or hold what no store can; Unreadable
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

    raises  KeyError, TypeError, ValueError, AttributeError for anything else
    """
    rows, cols = entry["lr_size"]
    image = Image(**{**entry, "lr_size": (rows, cols)})
    checked_name(image.id, "image id")  # the id becomes a part of paths
    for key, value, least in (("lr_size", rows, 1), ("lr_size", cols, 1), ("shard", image.shard, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is {value!r}")
    return image


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


def read_yaml(path: Path, absent: str) -> dict[str, Any]:
    """The mapping in a file; `absent` is the message if the file does not exist."""
    try:
        with files.reading(path):
            return read_as(parse_yaml, path)
    except FileNotFoundError:
        raise StoreError(absent) from None
