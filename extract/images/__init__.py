"""Photographs: found, decoded, reduced, identified."""
