"""Scoring a run and super-resolving images with it: `from championship_sr.evaluate import load`."""

from championship_sr.evaluate.model import Model, load

__all__ = ["Model", "load"]
