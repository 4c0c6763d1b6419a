"""Plain values as the canonical text from which checksums are computed."""

import json
from typing import Any

import numpy as np


def canonical(content: Any) -> bytes:
    """The canonical JSON text of plain values, for checksums; a name that is not UTF-8 keeps its own bytes."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=_scalar).encode(errors="surrogatepass")


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
