"""Scores of all methods on the same images."""
