"""A training run: loop, step, checkpoints, validation."""
