"""An expert's files, expert.yaml and basis.safetensors, and experts.txt, which names the experts of a store."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from championship_sr.store.codecs import Params, get_codec
from championship_sr.store.config import dump_yaml
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import read_small
from championship_sr.store.errors import ConfigError, StoreError, Unreadable
from championship_sr.store.format import schema
from championship_sr.store.format.canonical import canonical
from championship_sr.store.format.entries import Expert, check_expert, read_yaml
from championship_sr.store.format.layout import is_name, shard_number, source_dir

EXPERT_FILE, BASIS_FILE = "expert.yaml", "basis.safetensors"
EXPERTS_FILE = "experts.txt"  # the experts' names, so that the loss of a whole folder is noticed
_EXPERT = TypeAdapter(Expert)


def write_expert(folder: Path, expert: Expert, basis: Mapping[str, Params]) -> Expert:
    """Creates an expert's folder, its file last, and returns the expert as that file describes it.

    raises  StoreError if the folder holds shards: their entry is lost, but they must not be
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

        # contiguous: safetensors would write a transposed array's memory as it lies
        content = save(
            {f"{name}.{key}": np.ascontiguousarray(basis[name][key]) for name in basis for key in basis[name]}
        )
        files.write_atomic(folder / BASIS_FILE, content)
        expert = replace(expert, basis_sha256=hashlib.sha256(content).hexdigest())
    files.write_atomic(folder / EXPERT_FILE, dump_yaml(asdict(expert)).encode())
    files.sync(folder.parent)
    return expert


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
    if not (isinstance(variants, list) and all(isinstance(variant, str) for variant in variants)):
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
    """The names of the experts' folders, whatever they hold."""
    folder = root / "experts"
    return [name for name in files.names_in(folder) if is_name(name) and _is_folder(folder / name)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() or path.is_symlink()  # a dangling link: its disk may not be mounted


def named_experts(root: Path) -> set[str]:
    """The experts that experts.txt names; none if the file does not exist.

    raises  StoreError if it holds anything but names; Unreadable
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
    """Change experts.txt; the caller holds the store's lock."""
    try:
        there = named_experts(root) if files.is_there(root / EXPERTS_FILE) else None
    except Unreadable:
        raise
    except StoreError:
        there = None
    known = set(expert_names(root)) if there is None else there  # a lost or damaged list is written again
    names = (known | set(added)) - set(removed)
    if names != there:
        files.write_atomic(root / EXPERTS_FILE, "".join(f"{name}\n" for name in sorted(names)).encode())


def read_basis(folder: Path, sha256: str) -> dict[str, Params]:
    """Array name -> basis.

    raises  StoreError if the file does not have this sha256
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
