"""What tests compare stores by."""

import json
from pathlib import Path


def checksums(root: Path) -> dict[str, str]:
    """`source/array` -> sha256, from the records."""
    return {
        f"{path.parent.name}/{key}": array["sha256"]
        for path in sorted(Path(root).rglob("shard-*.json"))
        for key, array in json.loads(path.read_text())["arrays"].items()
    }
