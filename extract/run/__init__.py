"""The extraction itself."""
