"""Track B: a diffusion model adds texture to what the fusion made; inference only, extra `diffusion`."""

from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.diffusion.options import diffusion_options, refiner_from_options
from championship_sr.evaluate.diffusion.refine import Refiner
from championship_sr.evaluate.diffusion.weights import load_refiner

__all__ = ["DiffusionConfig", "Refiner", "diffusion_options", "load_refiner", "refiner_from_options"]
