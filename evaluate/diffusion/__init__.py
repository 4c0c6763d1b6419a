"""Track B: a diffusion model adds texture to what the fusion made; inference only, extra `diffusion`."""
