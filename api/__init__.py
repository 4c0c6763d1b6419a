"""A feature store for frozen super-resolution experts, and the fusion that is trained from it."""
