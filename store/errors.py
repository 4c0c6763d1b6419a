"""The three kinds of bad input: each ends in one line and exit status 1 or 2."""


class ConfigError(ValueError):
    """A configuration or command line that cannot be meant: exit status 2."""


class StoreError(RuntimeError):
    """Images or shards that are missing, damaged or do not fit together: exit status 1."""


class WeightsError(RuntimeError):
    """Weights that are missing, damaged or of another network: exit status 1."""


class Unreadable(StoreError):
    """A file that cannot be read just now: nothing is known about what it holds, and it must not be removed."""
