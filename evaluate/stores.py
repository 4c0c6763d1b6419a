"""The store that is scored or fused: a folder, or one in object storage whose shards are downloaded as needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.store.format.entries import STORE_FILE
from championship_sr.store.remote.bucket import cache_folder, is_remote
from championship_sr.store.remote.cache import CachedStore, RemoteStoreReader
from championship_sr.store.remote.objects import RemoteStore
from championship_sr.store.shards.reader import Store


def is_store(place: str) -> bool:
    """Whether this is a feature store: its folder, or a URL."""
    return is_remote(place) or (Path(place) / STORE_FILE).is_file()


def name_of(store: Store) -> str:
    """The store's own name, from its folder or URL."""
    place = store.remote.url if isinstance(store, RemoteStoreReader) else store.root
    return PurePath(place).name


@contextmanager
def opened_store(place: Path | str, experts: Sequence[str] | None, config: EvaluateConfig) -> Iterator[Store]:
    """The store, whole for these experts, open while the block runs.

    raises  StoreError naming what is missing, or if another command has the cache's folder
    """
    if not is_remote(place):
        yield Store(Path(place), experts)
        return
    folder = config.cache or cache_folder(place, "cache")
    with CachedStore(RemoteStore(place), folder, experts, config.cache_gb) as store:
        yield store
