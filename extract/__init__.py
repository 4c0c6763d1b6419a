"""Frozen experts, their taps, and the run that fills a store."""
