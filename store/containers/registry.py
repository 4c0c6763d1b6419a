"""Which module reads and writes which container."""

from championship_sr.store.containers import hdf5 as hdf5_shard
from championship_sr.store.containers import zarr as zarr_shard

CONTAINER_MODULES = {"zarr": zarr_shard, "hdf5": hdf5_shard}
