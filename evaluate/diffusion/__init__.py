"""Track B: a diffusion model adds texture to what the fusion made; inference only, extra `diffusion`."""

from evaluate.diffusion.config import DiffusionConfig
from evaluate.diffusion.options import diffusion_options, refiner_from_options
from evaluate.diffusion.refine import Refiner
from evaluate.diffusion.weights import load_refiner

__all__ = ["DiffusionConfig", "Refiner", "diffusion_options", "load_refiner", "refiner_from_options"]
