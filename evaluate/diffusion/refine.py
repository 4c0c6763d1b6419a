"""An SR image through the diffusion model: encode, denoise, decode, match colours, blend."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from championship_sr.evaluate.diffusion.colour import match_colours
from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.inference.tiles import run_in_full_tiles
from championship_sr.extract.device import float32_products
from championship_sr.store.errors import WeightsError


@dataclass(frozen=True)
class Prompt:
    """The prompt for the transformer, as encoded by its text encoders."""

    embeds: Tensor  # (1, tokens, joint_attention_dim)
    pooled: Tensor  # (1, pooled_projection_dim)


class Refiner:
    """SR images in, images with generated texture out; made by `load_refiner`.

    vae          encodes and decodes as diffusers' AutoencoderKL does, and has its `config`
    transformer  predicts a velocity as diffusers' SD3Transformer2DModel does, and has its `config`
    negative     the prompt that guidance leads away from; the teacher's, unless guidance is 1
    scheduler    diffusers' FlowMatchEulerDiscreteScheduler; the teacher's
    """

    def __init__(
        self,
        config: DiffusionConfig,
        vae: Any,
        transformer: Any,
        prompt: Prompt,
        negative: Prompt | None = None,
        scheduler: Any = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.vae, self.transformer, self.scheduler = config, vae, transformer, scheduler
        self._prompts = [prompt] if negative is None else [negative, prompt]
        self._device, self._dtype = torch.device(device), dtype
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        self._patch: int = transformer.config.patch_size
        shifted = config.method == "teacher" or config.student_shift
        self._shift: float = (vae.config.shift_factor or 0.0) if shifted else 0.0
        self._scale: float = vae.config.scaling_factor

    @property
    def fingerprint(self) -> str:
        """The sha256 of the configurations and of every weight: what decides the refined image."""
        digest = hashlib.sha256(repr(self.config).encode())
        for part in filter(None, (self.vae, self.transformer, self.scheduler)):
            settings = sorted((key, str(value)) for key, value in part.config.items() if not key.startswith("_"))
            digest.update(repr(settings).encode())
        prompts = {str(number): vars(prompt) for number, prompt in enumerate(self._prompts)}
        for part in (self.vae.state_dict(), self.transformer.state_dict(), *prompts.values()):
            for name, tensor in part.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    @float32_products()  # with precision fp32, in full
    def __call__(self, sr: Tensor) -> Tensor:
        """alpha * sr + (1 - alpha) * the diffusion model's image.

        sr       (B, 3, H, W) of any size, 0..1, on any device; values outside are clipped only for the model
        raises   WeightsError if the model's image holds NaN or Inf
        """
        latent = self.encode(_padded(sr.float().clamp(0, 1), self.factor * self._patch).mul_(2).sub_(1))
        latent = self.one_step(latent) if self.config.method == "student" else self.many_steps(latent)
        image = self.decode(latent)[..., : sr.shape[-2], : sr.shape[-1]].clamp(-1, 1).div_(2).add_(0.5)
        image = match_colours(image, sr.float(), self.config.colour).clamp_(0, 1)
        return torch.lerp(image.to(sr), sr, self.config.alpha)

    def encode(self, image: Tensor) -> Tensor:
        """The latent (B, C, H / factor, W / factor) of an image in -1..1: the mean of the VAE's distribution."""

        def encoded(tile: Tensor) -> Tensor:
            return self.vae.encode(tile.to(self._device)).latent_dist.mode()

        return (self._over_vae_tiles(encoded, image, self.factor, 1) - self._shift) * self._scale

    def decode(self, latent: Tensor) -> Tensor:
        """The image of a latent, about -1..1."""

        def decoded(tile: Tensor) -> Tensor:
            return self.vae.decode(tile.to(self._device), return_dict=False)[0]

        image = self._over_vae_tiles(decoded, latent / self._scale + self._shift, 1, self.factor)
        if not image.isfinite().all():
            raise WeightsError(
                f"diffusion: the decoded image holds NaN or Inf with precision={self.config.precision}; "
                "try fp32, and check the weights"
            )
        return image

    def one_step(self, latent: Tensor) -> Tensor:
        """The student's latent: from its timestep to the end of the schedule, where sigma is 1, in one step."""
        return latent - self.velocity(latent, torch.tensor(self.config.timestep))

    def many_steps(self, latent: Tensor) -> Tensor:
        """The teacher's latent: noise up to `strength`, then the rest of the schedule by Euler steps."""
        scheduler, begin = self.scheduler, self.config.steps - self.config.steps_run
        scheduler.set_timesteps(self.config.steps)
        scheduler.set_begin_index(begin)
        # drawn for the whole latent and on the CPU: the same for every device and tiling
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(self.config.seed)).to(latent)
        latent = scheduler.scale_noise(latent, scheduler.timesteps[begin : begin + 1], noise)
        for timestep in scheduler.timesteps[begin:]:
            latent = scheduler.step(self.velocity(latent, timestep), timestep, latent, return_dict=False)[0]
        return latent

    def velocity(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """The transformer's prediction, guided away from the negative prompt where there is one."""

        def predicted(tile: Tensor) -> Tensor:
            several = torch.cat([tile.to(self._device, self._dtype)] * len(self._prompts))
            prediction = self.transformer(
                hidden_states=several,
                timestep=timestep.to(self._device).expand(len(several)),
                encoder_hidden_states=self._told("embeds", len(tile)),
                pooled_projections=self._told("pooled", len(tile)),
                return_dict=False,
            )[0]
            if len(self._prompts) == 1:
                return prediction
            away, towards = prediction.float().chunk(2)
            return torch.lerp(away, towards, self.config.guidance)

        tile, overlap = self.config.tile // self._patch, self.config.overlap // self._patch
        return run_in_full_tiles(predicted, latent, tile, overlap, self._patch, self._patch)

    def _told(self, part: str, batch: int) -> Tensor:
        values = [getattr(prompt, part) for prompt in self._prompts]
        return torch.cat([value.repeat_interleave(batch, dim=0) for value in values]).to(self._device, self._dtype)

    def _over_vae_tiles(self, function: Callable[[Tensor], Tensor], image: Tensor, unit: int, made: int) -> Tensor:
        return run_in_full_tiles(function, image, self.config.vae_tile, self.config.vae_overlap, unit, made)


def _padded(image: Tensor, multiple: int) -> Tensor:
    height, width = image.shape[-2:]
    return functional.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
