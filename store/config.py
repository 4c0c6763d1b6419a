"""YAML and `--set key=value` into frozen dataclasses; whatever does not fit fails with its full path."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from championship_sr.store.disk.small_files import YAML_MIB, parse_yaml, read_small
from championship_sr.store.errors import ConfigError, StoreError

T = TypeVar("T")

SECTIONS = ("extract", "train", "evaluate")

config_dataclass = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    raises  ConfigError if the file is missing, is not YAML or holds something else
    """
    try:
        content = parse_yaml(read_small(path, YAML_MIB))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such configuration file") from None
    except StoreError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    return content


def override(content: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The mapping with each `a.b=value` put in its place; the value is read as YAML."""
    result = dict(content)
    for assignment in assignments:
        path, sign, value = assignment.partition("=")
        if not sign or not path:
            raise ConfigError(f"--set {assignment}: expected key=value, such as train.batch_size=8")
        *parents, last = path.split(".")
        place = result
        for key in parents:
            child = place.get(key) or {}
            if not isinstance(child, Mapping):
                raise ConfigError(f"--set {assignment}: {key} is {child!r}, not a group of keys")
            place[key] = dict(child)
            place = place[key]
        try:
            place[last] = parse_yaml(value)
        except ValueError:
            raise ConfigError(f"--set {assignment}: {value!r} is not a YAML value") from None
    return result


def build(cls: type[T], content: Mapping[str, Any], where: str, section: str = "") -> T:
    """A `cls` from plain values; `section` is put in front of every key that a message names.

    raises  ConfigError naming every key that is unknown, missing or of a wrong type or value
    """
    try:
        return TypeAdapter(cls).validate_python(content)
    except ValidationError as error:
        faults = "; ".join(_fault(item, section) for item in error.errors())
        raise ConfigError(f"{where}: {faults}") from None


def _fault(item: Mapping[str, Any], section: str) -> str:
    key = ".".join(str(part) for part in (section, *item["loc"]) if part != "")
    if item["type"] == "unexpected_keyword_argument":
        return f"{key}: no such key"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(item["input"], Mapping) else f" (found {item['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def load_section(cls: type[T], path: Path | None, section: str, assignments: Sequence[str] = ()) -> T:
    """One section of a configuration file, with overrides such as `train.batch_size=8`, as a `cls`.

    path     None: the defaults of `cls` and the overrides alone
    raises   ConfigError also for sections that no command reads, so that a misspelt one is not ignored
    """
    content = override(read_yaml(path) if path else {}, assignments)
    where = " and ".join([*([str(path)] if path else []), *(["--set"] if assignments or not path else [])])
    unknown = sorted(set(content) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"{where}: {', '.join(unknown)}: no such section (there are {', '.join(SECTIONS)})")
    values = content.get(section) or {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {section}: expected a group of keys, found {values!r}")
    return build(cls, values, where, section)


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration as plain mappings, lists and scalars, for YAML and JSON."""
    if not is_dataclass(config):
        raise TypeError(f"{config!r} is not a configuration")
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(content: Mapping[str, Any]) -> str:
    """YAML text with the keys in their own order."""
    return yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True)
