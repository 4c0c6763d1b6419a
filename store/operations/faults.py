"""A fault in a store, and what repairs it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A fault; at most one of the three ways to mend it is known.

    shard    of `source`: its bytes are proven wrong, or a file of it is not there, and making it again mends it
    content  of `path`: what this small file must hold, as the records say
    path     without content: a leftover that belongs to no shard
    unread   nothing is proven: a file could not be read
    """

    message: str
    source: str | None = None
    shard: int | None = None
    path: str | None = None
    content: str | None = field(default=None, repr=False)
    unread: bool = False

    @property
    def is_mended(self) -> bool:
        """Whether `repair` knows what to do."""
        return self.shard is not None or self.path is not None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in vars(self).items() if key != "content"}
