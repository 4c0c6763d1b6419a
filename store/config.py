"""Builds frozen dataclasses from YAML and `--set key=value`; whatever does not fit fails with its full path."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from championship_sr.store.disk.small_files import YAML_MIB, parse_yaml, read_small
from championship_sr.store.errors import ConfigError, StoreError

T = TypeVar("T")

SECTIONS = ("extract", "train", "evaluate")


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def config_dataclass(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are checked and whose unknown keys are refused, when it is built."""
    # a number is accepted where a text is expected, such as the image id 101085
    checked = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))
    return checked(cls)  # type: ignore[return-value]  # the same class, with another __init__


PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # a path of the user's, or a URL
UserPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]


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
            raise ConfigError(f"--set {assignment}: expected key=value, for example train.batch_size=8")
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
        faults = "; ".join(_fault(item, section, cls) for item in error.errors())
        raise ConfigError(f"{where}: {faults}") from None


def _fault(item: Mapping[str, Any], section: str, cls: type) -> str:
    key = ".".join(str(part) for part in (section, *item["loc"]) if part != "")
    if item["type"] == "unexpected_keyword_argument":
        return f"{key}: no such key{_meant(key, key_paths(cls, section))}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(item["input"], Mapping) else f" (found {item['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def key_paths(cls: type, prefix: str = "") -> list[str]:
    """The full path of each key of a configuration, such as `train.data.crop_px`."""
    result = []
    for name, kind in get_type_hints(cls).items():
        if name in {field.name for field in fields(cls)}:
            path = f"{prefix}.{name}" if prefix else name
            result += [path, *(inner for part in _groups(kind) for inner in key_paths(part, path))]
    return result


def _groups(kind: Any) -> list[type]:
    """The groups of keys within a type."""
    if isinstance(kind, type) and is_dataclass(kind):
        return [kind]
    return [group for part in get_args(kind) for group in _groups(part)]


def _meant(key: str, paths: Sequence[str]) -> str:
    """A hint at the key that was probably meant: a similar one in the same group, or the same name elsewhere."""
    key = ".".join(part for part in key.split(".") if not part.isdigit())
    parent, _, last = key.rpartition(".")
    beside = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == parent}
    anywhere = {path.rpartition(".")[2]: path for path in paths}
    same_name = [path for end in (key, last) for path in paths if path.endswith(f".{end}")]
    likely = [
        *_close(last, beside, 0.8),
        *same_name[:1],
        *_close(last, beside, 0.6),
        *_close(last, anywhere, 0.8),
    ]
    return f"; did you mean {likely[0]}?" if likely else ""


def _close(name: str, paths: Mapping[str, str], likeness: float) -> list[str]:
    """The path of the most similar name, if one is similar enough."""
    return [paths[close] for close in get_close_matches(name, paths, 1, likeness)]


def load_section(
    cls: type[T], path: Path | None, section: str, assignments: Sequence[str] = (), options: Sequence[str] = ()
) -> T:
    """One section of a configuration file, with overrides such as `train.batch_size=8`, as a `cls`.

    path     None: only the defaults of `cls` and the overrides
    options  overrides that come from options of the command line other than --set
    raises   ConfigError also for sections that no command reads, so that a misspelt one is not ignored
    """
    content = override(read_yaml(path) if path else {}, (*assignments, *options))
    where = " and ".join([*([str(path)] if path else []), *(["--set"] if assignments else [])]) or "the given options"
    unknown = sorted(set(content) - set(SECTIONS))
    if unknown:
        meant = _meant(_first_path(content, unknown[0]), [*SECTIONS, *key_paths(cls, section)])
        raise ConfigError(
            f"{where}: {', '.join(unknown)}: no such section (expected one of {', '.join(SECTIONS)}){meant}"
        )
    values = content.get(section) or {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {section}: expected a group of keys, found {values!r}")
    return build(cls, values, where, section)


def _first_path(content: Mapping[str, Any], key: str) -> str:
    """The path of the first value below a key, as it would be set."""
    value = content[key]
    return f"{key}.{_first_path(value, next(iter(value)))}" if isinstance(value, Mapping) and value else key


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration as plain mappings, lists and scalars, for YAML and JSON."""
    if not is_dataclass(config) or isinstance(config, type):
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
