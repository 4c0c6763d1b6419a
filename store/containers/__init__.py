"""Zarr and HDF5: how one shard lies in a file."""
