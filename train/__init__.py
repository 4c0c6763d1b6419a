"""The fusion network, its losses, and the run that trains it from a store."""
