"""Layers that the phases are made of."""
