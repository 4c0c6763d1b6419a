"""What each small file of a store may hold, key by key: docs/format.md as types."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from championship_sr.store.errors import StoreError

Count = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(gt=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Shape = Annotated[list[Side], Field(min_length=3, max_length=3)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Model(BaseModel):
    """Keys that are not named here are left to later programs."""

    model_config = ConfigDict(strict=True, extra="ignore")


class StoreFile(_Model):
    """store.yaml."""

    format_version: int
    scale: Side
    container: Literal["zarr", "hdf5"]
    images: Count
    images_sha256: Sha256


class ImageLine(_Model):
    """One line of images.jsonl."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str
    name: str
    lr_size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    lr_sha256: str
    hr_sha256: str | None
    shard: Index
    lr_source: str


class ArrayEntry(_Model):
    """One of an expert's arrays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    channels: Side
    resolution: Side
    codec: str


class ExpertFile(_Model):
    """expert.yaml."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    arrays: Annotated[list[ArrayEntry], Field(min_length=1)]
    identity: dict[str, Any]
    notes: dict[str, Any] = {}
    basis_sha256: Sha256 | None = None


class StoredEntry(_Model):
    """One array in a record."""

    shape: Shape
    dtype: Literal["uint8", "int8", "uint16", "float16", "float32"]
    sha256: Sha256
    min: Finite
    max: Finite
    finite: Literal[True]
    chunk: Shape | None
    offset: Index | None
    file_bytes: Count
    params: dict[str, list[Finite]]


class RecordFile(_Model):
    """shard-NNNNN.json, of version 1."""

    format_version: int
    source: str
    shard: Index
    fingerprint: str
    images: dict[str, str]
    files: dict[str, str] = {}
    made_on: dict[str, str | int | bool | None] = {}
    arrays: dict[str, StoredEntry]


class StoreKind(_Model):
    """What a record says about its store, which never changes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format_version: int
    scale: Side
    container: Literal["zarr", "hdf5"]


class SealedRecordFile(RecordFile):
    """shard-NNNNN.json, of version 2."""

    store: StoreKind
    expert: ExpertFile | None
    listing: dict[str, ImageLine] | None
    checksum: Sha256


def check(model: type[_Model], content: Any, where: object) -> None:
    """Refuse what a file must not hold.

    raises  StoreError naming the first key that is missing or of a wrong type or value
    """
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{where}: damaged: {f'{key}: ' if key else ''}{first['msg']}") from None
    except RecursionError:
        raise StoreError(f"{where}: damaged: nested too deeply") from None
