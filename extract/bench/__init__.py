"""Benchmarks of extraction: overhead, tiling error, writing."""
