"""A training run: what it is fed with, its loop, its step, its validation."""
