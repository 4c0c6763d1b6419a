"""Stores as objects in a bucket."""
