"""Which module reads and writes which container."""

from championship_sr.store.containers import hdf5, zarr

CONTAINER_MODULES = {"zarr": zarr, "hdf5": hdf5}
CONTAINER_WRITERS = {"zarr": zarr.ZarrShardWriter, "hdf5": hdf5.Hdf5ShardWriter}
