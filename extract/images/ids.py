"""Image ids in a store: names of letters, digits and ._+- that any file system accepts."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from championship_sr.store.format.layout import UNFINISHED

LONGEST_ID = 200  # a folder's name has at most 255 bytes


def ids_of(stems: Mapping[Path, str]) -> dict[Path, str]:
    """File -> its id: its stem, preceded by as many parent folders as distinguish it from files of the same stem.

    stems  file -> its path under the folder that was named, without its suffix, such as street/0801
    """
    taken = Counter((folder, _safe(stem)) for folder, stem in {(path.parent, stem) for path, stem in stems.items()})
    distinct = {path: _distinct(stem, taken[path.parent, _safe(stem)] > 1) for path, stem in stems.items()}
    above = {path: path.parts[: -1 - stem.count("/")] for path, stem in stems.items()}
    ids = dict(distinct)
    for depth in range(1, max(map(len, above.values()), default=0) + 1):
        counts = Counter(ids.values())
        for path, stem in distinct.items():
            if counts[ids[path]] > 1:
                ids[path] = _safe("-".join([*above[path][-depth:], stem]))
    return ids


def _safe(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", name)
    return name if name[:1].isalnum() else f"i{name}"


def _distinct(name: str, shared: bool) -> str:
    """The name as an id, with a hash if the id is not unique, is empty or is too long."""
    safe = _safe(name)
    if not shared and len(safe) <= LONGEST_ID and re.search("[A-Za-z0-9]", name) and not safe.endswith(UNFINISHED):
        return safe
    return f"{safe[:LONGEST_ID]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
