"""Zarr and HDF5: how one shard is stored in a file."""
