"""Experts in the step: the same windows as from a store, and the augmentations that need the experts."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from championship_sr.store.config import to_plain
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import ArraySpec, Expert
from championship_sr.store.format.manifest import Manifest
from championship_sr.train.config import LiveConfig, TrainConfig
from championship_sr.train.data.batch import Batch
from championship_sr.train.data.loader import Loader
from championship_sr.train.data.sampler import step_rng
from championship_sr.train.data.uploads import to_device
from championship_sr.train.run.watch import Reading

if TYPE_CHECKING:
    from championship_sr.extract.experts.expert import LoadedExpert

PURPOSE = 0x6C697665  # keeps these draws apart from those of Mixup and CutBlur
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, for saturation and contrast
BLUR_REACH = 3.0  # standard deviations that the kernel covers


class LiveExperts:
    """The frozen experts, loaded; close it, or use it in a `with` block, to take their hooks off."""

    def __init__(self, experts: Mapping[str, "LoadedExpert"], entries: Mapping[str, Expert]) -> None:
        self.experts, self.entries = dict(experts), dict(entries)
        self._stack = ExitStack()
        for expert in self.experts.values():
            self._stack.callback(expert.close)

    def __call__(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The experts' images (B, E, 3, H, W) and joined features, expert -> (B, C, h, w), of LR images in 0..1.

        raises  NonFiniteError
        """
        images, features, check = self.unchecked(lr)
        check()
        return images, features

    @torch.no_grad()
    def unchecked(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor], Callable[[], None]]:
        """The same without waiting for the device, and the check, which raises NonFiniteError."""
        images, features = [], {}
        finite: dict[tuple[str, str], Tensor] = {}
        for name, expert in self.experts.items():
            sr, taps = expert.unchecked(lr)
            finite |= {(name, array): all_finite(tensor) for array, tensor in {"sr": sr, **taps}.items()}
            images.append(sr.clamp(0, 1))
            if taps:
                features[name] = torch.cat(list(taps.values()), dim=1)
        return torch.stack(images, dim=1), features, partial(self._check, tuple(finite), Reading(*finite.values()))

    def _check(self, arrays: Sequence[tuple[str, str]], finite: Reading) -> None:
        for (name, array), sound in zip(arrays, finite.read(), strict=True):
            if not sound:
                raise self.experts[name].non_finite(array)

    def close(self) -> None:
        self._stack.close()


def load_experts(root: Path, config: TrainConfig, device: torch.device, trusted: Sequence[str] = ()) -> LiveExperts:
    """The experts of `live.experts`, or those that the store records, loaded from their weights.

    trusted  modules that the store may name as their networks
    raises   ConfigError if neither names any; StoreError, WeightsError as `extract.experts.recorded.live_expert`
    """
    # the one place where training needs the experts themselves
    from championship_sr.extract.config import load_expert_config
    from championship_sr.extract.experts.expert import load_expert
    from championship_sr.extract.experts.recorded import live_expert, recorded_config, store_origin

    manifest = Manifest.load(root)
    names = config.experts or tuple(manifest.answering)
    if not config.live.experts and not names:
        raise ConfigError(f"live.experts: {root} records no experts; name some, for example [hat-l, edsr-l]")
    recorded = {name: manifest.experts[name] for name in names if name in manifest.experts}
    missing = [name for name in names if name not in recorded]
    if missing and not config.live.experts:
        has = ", ".join(manifest.experts) or "none"
        raise StoreError(f"{root}: no expert {', '.join(missing)} (has: {has}); name it with live.experts")
    sources = config.live.experts or [
        recorded_config(recorded[name], store_origin(root, name, trusted)) for name in names
    ]
    loaded, entries = {}, {}
    for settings in map(load_expert_config, sources):
        entry = recorded.get(settings.name)
        if entry:
            expert = live_expert(entry, manifest.scale, device, settings)
        else:
            expert = load_expert(settings, device, manifest.scale)
        loaded[settings.name] = expert
        entries[settings.name] = entry or _new_entry(expert)
    return LiveExperts(loaded, entries)


class LiveLoader:
    """The loader's windows with the experts run on them; whole images come from the store."""

    def __init__(self, loader: Loader, experts: LiveExperts, config: LiveConfig, *, crop_px: int, seed: int) -> None:
        self.loader, self.experts, self.config = loader, experts, config
        self.crop_px, self.seed = crop_px, seed
        self.sampler, self.samples_per_epoch = loader.sampler, loader.samples_per_epoch

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """The batches of every step from `start` on, to `stop` or without end."""
        for step, batch in enumerate(self.loader.batches(start, stop), start):
            yield self.answered(step, batch)

    def answered(self, step: int, batch: Batch) -> Batch:
        """The batch after the augmentations, with the experts' outputs for it."""
        lr, hr = self._augmented(step, batch.lr, batch.hr)
        images, features, check = self.experts.unchecked(lr)
        return replace(batch, lr=lr, hr=hr, images=images, features=features, check=check)

    def _augmented(self, step: int, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        config, rng = self.config, step_rng(self.seed ^ PURPOSE, step)
        if not config.augmentations:
            return lr, hr
        share = self.loader.share
        draws = rng.random((self.loader.sampler.batch_size, 5))[share]  # every rank's samples have the same draws
        factor = rng.uniform(*config.crop_scale)
        lr, hr = rescaled(lr, hr, round(self.crop_px * factor), self.crop_px)
        jittered = draws[:, 0] < config.colour_jitter
        factors = 1 + config.colour_strength * (2 * draws[:, 1:4] - 1) * jittered[:, None]
        lr, hr = coloured(lr, hr, to_device(factors, lr.device).to(lr.dtype))
        drawn = draws[:, 4] < config.blur
        if drawn.any():
            blurred = to_device(drawn, lr.device).view(-1, 1, 1, 1)
            scale = hr.shape[-1] // lr.shape[-1]
            lr = torch.where(blurred, gaussian_blur(lr, config.blur_sigma_px), lr)
            hr = torch.where(blurred, gaussian_blur(hr, config.blur_sigma_px * scale), hr)
        # experts are given values that a file could hold
        return (lr * 255).round() / 255, hr


def all_finite(tensor: Tensor) -> Tensor:
    """Whether the tensor has neither NaN nor Inf, as one bool on its device."""
    return torch.stack(tensor.aminmax()).isfinite().all()  # of which NaN becomes both


def window_px(config: LiveConfig, crop_px: int) -> int:
    """The side of the windows that the loader must read, so that the largest crop fits."""
    return int(np.ceil(crop_px * config.crop_scale[1]))


def rescaled(lr: Tensor, hr: Tensor, side: int, crop_px: int) -> tuple[Tensor, Tensor]:
    """The middle `side` LR pixels of the windows, resized to `crop_px`."""
    scale = hr.shape[-1] // lr.shape[-1]
    return _resized_middle(lr, side, crop_px), _resized_middle(hr, side * scale, crop_px * scale)


def coloured(lr: Tensor, hr: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Both images with the same change of colour.

    factors  (B, 3): of brightness, contrast (about the LR image's mean grey) and saturation
    """
    brightness, contrast, saturation = (column.view(-1, 1, 1, 1) for column in factors.unbind(1))
    middle = (_grey(lr) * brightness).mean(dim=(2, 3), keepdim=True)

    def change(image: Tensor) -> Tensor:
        image = (image * brightness - middle) * contrast + middle
        return torch.lerp(_grey(image), image, saturation).clamp(0, 1)

    return change(lr), change(hr)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """The image under a Gaussian, mirrored at its borders."""
    reach = min(max(1, round(BLUR_REACH * sigma)), min(image.shape[-2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(offsets**2) / (2 * max(sigma, 1e-6) ** 2))
    kernel = kernel / kernel.sum()
    planes = F.pad(image, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view(image.shape)


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def _resized_middle(image: Tensor, side: int, target: int) -> Tensor:
    first = (image.shape[-1] - side) // 2
    image = image[..., first : first + side, first : first + side]
    if side == target:
        return image
    return F.interpolate(image, size=(target, target), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _new_entry(expert: "LoadedExpert") -> Expert:
    arrays = [ArraySpec("sr", 3, expert.scale, "float32")]
    arrays += [ArraySpec(name, channels, 1, "float32") for name, channels in expert.channels.items()]
    return Expert(expert.name, tuple(arrays), expert.identity, {"config": to_plain(expert.config)})
