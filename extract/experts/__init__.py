"""Frozen experts: networks, weights, taps, tiles, checks."""
