"""Numbers and lists of things in messages."""

from collections.abc import Sequence

SHOWN = 5  # of a list


def counted(count: int, what: str) -> str:
    """A number of things: `1 shard`, `2 shards`."""
    return f"{count} {what}{'s' * (count != 1)}"


def listed(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first few, and how many more."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
