"""Shards written, mapped and read."""
