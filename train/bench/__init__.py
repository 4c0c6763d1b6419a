"""Benchmarks of loading and of a training step."""
