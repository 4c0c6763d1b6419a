"""Which module reads and writes which container."""

from collections.abc import Callable
from pathlib import Path

from championship_sr.store.containers import hdf5, zarr
from championship_sr.store.containers.hdf5 import Hdf5ShardWriter
from championship_sr.store.containers.zarr import ZarrShardWriter

CONTAINER_MODULES = {"zarr": zarr, "hdf5": hdf5}
CONTAINER_WRITERS: dict[str, Callable[[Path], ZarrShardWriter | Hdf5ShardWriter]] = {
    "zarr": ZarrShardWriter,
    "hdf5": Hdf5ShardWriter,
}
