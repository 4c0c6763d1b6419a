"""Where everything lies in a store and how a window is found in it: names, chunk shapes, the eight variants.

docs/format.md states the same in prose and is normative.
"""

import re
from pathlib import Path

from championship_sr.store.errors import ConfigError

FORMAT_VERSION = 2  # of new stores; an older store keeps the version with which it was created
KNOWN_VERSIONS = (1, 2)
SEALED_VERSION = 2  # the first version in which records have their own checksum
SOURCES_FILE = "sources.json"  # the files from which a store was made, so that unchanged ones are not read again
LOCK_FILE = "store.lock"  # held while the description is changed
PAIRS = "pairs"  # the source that holds lr and hr; every other source is an expert
CONTAINERS = {"zarr": ".zarr", "hdf5": ".h5"}


UNFINISHED = (".tmp", ".rebuild")  # suffixes of unfinished work: files.TMP, and an expert being rebuilt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def checked_name(name: str, what: str) -> str:
    """The name, if it can be a folder and a part of an array's name on any system.

    raises  ConfigError otherwise
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: only letters, digits and ._+- are allowed, starting with a letter or digit"
        )
    if name.endswith(UNFINISHED):
        raise ConfigError(f"{what} {name!r}: must not end in {' or '.join(UNFINISHED)}")
    return name


def is_name(name: str) -> bool:
    """True for a name that `checked_name` accepts."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(UNFINISHED)


def source_dir(root: Path, source: str, rebuild: bool = False) -> Path:
    """The folder of a source's shards; with `rebuild`, the folder beside it in which an expert is rebuilt."""
    if source == PAIRS:
        return root / PAIRS
    return root / "experts" / (f"{source}.rebuild" if rebuild else source)


def shard_stem(shard: int) -> str:
    """The name of a shard without its ending."""
    return f"shard-{shard:05d}"


def lock_path(root: Path, source: str, shard: int, rebuild: bool = False) -> Path:
    """The lock that guards a shard."""
    return source_dir(root, source, rebuild) / f"{shard_stem(shard)}.lock"


def shard_number(name: str) -> int | None:
    """The number in a shard's name; None if it is not the name of a shard."""
    match = re.match(r"shard-(\d{5,})\.", name)
    return int(match.group(1)) if match else None


def array_key(image_id: str, name: str, variant: str = "identity") -> str:
    """The array's name inside its shard."""
    return f"{image_id}/{name}" if variant == "identity" else f"{image_id}/{name}@{variant}"
