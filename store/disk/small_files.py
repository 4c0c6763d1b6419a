"""Small YAML and JSON files from any source: read whole within bounds, or refused in one line.

A named pipe would block for ever, a gigabyte of YAML takes hours, nine lines of aliases stand for a billion values, and
a thousand brackets overflow the parser's stack; none of these describes a store or a run.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from championship_sr.store.errors import StoreError, Unreadable

YAML_MIB, JSON_MIB = 2, 64  # PyYAML reads a MiB in seconds
MAX_VALUES = 200_000  # in a YAML file, with its aliases expanded
MAX_NUMBER = 100  # characters; longer ones cost more than linear time


def read_small(path: Path, max_mib: int = JSON_MIB) -> bytes:
    """The bytes of a regular file of at most so many MiB.

    raises  FileNotFoundError, NotADirectoryError; StoreError if it is something else, or larger
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_mib << 20:
            raise StoreError(f"{path}: {size >> 20} MiB, but such a file is never larger than {max_mib}")
        return file.read(size)


def open_regular(path: Path):
    """The file, open for reading; a pipe, a socket, a device or a folder is refused instead of waited for.

    raises  FileNotFoundError, NotADirectoryError; StoreError; Unreadable if the system fails
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        text = "a link that leads back to itself" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise Unreadable(f"{path}: {text}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise StoreError(f"{path}: {kind_of(mode)}, expected a file")
    return os.fdopen(handle, "rb")


def kind_of(mode: int) -> str:
    """What is there instead of a regular file."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 0010 is not an octal number and 12:30 not a base-60 one: ids look like that."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a YAML document.

    raises  ValueError with a one-line message for text that is not YAML, or is nested or repeated excessively
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {}, set())
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for, with aliases expanded; raises ValueError if that exceeds the limit."""
    key = id(node)
    if key in above:
        raise ValueError("an alias inside the value that it refers to")
    if key in sizes:
        return sizes[key]
    size, number = 1, node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if isinstance(node, yaml.ScalarNode):
        if number and len(node.value) > MAX_NUMBER:
            raise ValueError(f"a number of {len(node.value)} digits")
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        size += sum(_check_size(part, sizes, above | {key}) for part in parts)
    if size > MAX_VALUES:
        raise ValueError(f"its aliases expand to more than {MAX_VALUES:,} values")
    sizes[key] = size
    return size


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON document.

    raises  ValueError with a one-line message for text that is not JSON or is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_as(parse: Callable[[bytes], Any], path: Path) -> dict[str, Any]:
    """The mapping that a small file holds; `parse` is parse_yaml or parse_json.

    raises  FileNotFoundError, NotADirectoryError; StoreError naming the path
    """
    try:
        content = parse(read_small(path, YAML_MIB if parse is parse_yaml else JSON_MIB))
    except ValueError as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: damaged: expected a mapping of keys, found {type(content).__name__}")
    return content
