"""A fault in a store, and what repairs it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A fault; at most one of the three ways to repair it is known.

    shard    of `source`: its bytes are proven wrong, or one of its files is missing; making it again repairs it
    content  of `path`: what this small file must hold, according to the records
    path     if there is no content: a leftover that belongs to no shard
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
