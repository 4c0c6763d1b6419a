"""A trained run as one object: the fusion, its experts, and images through both."""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.diffusion import Refiner
from championship_sr.evaluate.inference.inputs import LiveInputs, chw, hwc
from championship_sr.evaluate.inference.passes import Progress, Result, run, run_ensemble
from championship_sr.evaluate.inference.pictures import to_pil
from championship_sr.evaluate.methods import FUSION
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.recorded import live_expert, recorded_config
from championship_sr.extract.images.bicubic import upscale
from championship_sr.extract.images.decode import read_picture
from championship_sr.extract.images.picture import Picture, filled, from_pil
from championship_sr.store.format.entries import Expert
from championship_sr.train.run.checkpoint import LoadedFusion, Which, load_fusion

log = logging.getLogger(__name__)

SMALLEST_TILE_PX = 64
WEIGHTS = "weights"  # the folder of an exported run that holds its experts' weights
Given = str | Path | Image.Image | np.ndarray | Tensor


class Model:
    """LR images in, SR images out. The experts are loaded when they are first needed.

    refiner  what the fusion's image goes through in the end, or None (docs/track-b.md)
    """

    def __init__(
        self, fusion: LoadedFusion, root: Path, config: EvaluateConfig, refiner: Refiner | None = None
    ) -> None:
        self.fusion, self.root, self.config, self.refiner = fusion, root, config, refiner
        self.scale, self.expert_names = fusion.scale, fusion.experts
        self.device = pick_device(config.device)
        self.network: nn.Module = fusion.network.to(self.device)
        self.tiling = config.tiling

    @cached_property
    def experts(self) -> tuple[LoadedExpert, ...]:
        """The live experts, in the order of the network's inputs.

        raises  WeightsError if a weights file is missing, or is not the one that the run was trained with
        """
        entries = (self.fusion.expert_entries[name] for name in self.expert_names)
        return tuple(expert_of(entry, self.scale, self.device, self.root / WEIGHTS) for entry in entries)

    def __call__(self, image: Given, *, self_ensemble: bool = False) -> Image.Image | np.ndarray | Tensor:
        """The SR image, of the kind that was given.

        image    a path or PIL image (a PIL image comes back, with its transparency, EXIF data and profile),
                 an array (h, w, 3) in uint8 or uint16, or a floating-point tensor (3, h, w) or (B, 3, h, w) in 0..1
        """
        if isinstance(image, Tensor):
            batch = image if image.ndim == 4 else image[None]
            result = torch.stack([self._image(one[None].float(), self_ensemble) for one in batch]).to(image)
            return result if image.ndim == 4 else result[0]
        if isinstance(image, np.ndarray):
            return self.upscale(Picture(image), self_ensemble=self_ensemble).pixels
        picture = from_pil(image) if isinstance(image, Image.Image) else read_picture(Path(image))
        return to_pil(self.upscale(picture, self_ensemble=self_ensemble))

    def upscale(self, picture: Picture, *, self_ensemble: bool = False, progress: Progress | None = None) -> Picture:
        """The SR picture with the same depth; transparency is enlarged bicubically.

        progress  called with the number of LR pixels after each tile
        """
        return self._like(picture, self._image(chw(filled(picture)), self_ensemble, progress))

    def upscale_by_experts(
        self, picture: Picture, *, self_ensemble: bool = False, progress: Progress | None = None
    ) -> dict[str, Picture]:
        """Expert -> its own SR picture."""
        result = self.run(chw(filled(picture)), networks=False, self_ensemble=self_ensemble, progress=progress)
        return {name: self._like(picture, image) for name, image in result.images.items()}

    def run(
        self,
        lr: Tensor,
        *,
        self_ensemble: bool = False,
        networks: bool = True,
        progress: Progress | None = None,
    ) -> Result:
        """What the fusion, or with `networks=False` each expert, makes of an image (1, 3, h, w) in 0..1.

        Out of memory on a GPU, it goes on with tiles of half the size.
        """
        wanted = {FUSION: self.network} if networks else {}

        def inputs(variant: str) -> LiveInputs:
            return LiveInputs(lr, self.experts, variant, self.device)

        while True:
            try:
                if self_ensemble:
                    return run_ensemble(inputs, wanted, self.tiling, keep_experts=not networks, progress=progress)
                return run(inputs("identity"), wanted, self.tiling, keep_experts=not networks, progress=progress)
            except torch.OutOfMemoryError:
                if self.tiling.tile_px <= SMALLEST_TILE_PX:
                    raise
                self.tiling = replace(self.tiling, tile_px=self.tiling.tile_px // 2)
                log.warning("out of memory; going on with tiles of %d LR pixels", self.tiling.tile_px)

    def _image(self, lr: Tensor, self_ensemble: bool, progress: Progress | None = None) -> Tensor:
        """The image (3, H, W) in 0..1 of one (1, 3, h, w)."""
        image = self.run(lr.cpu(), self_ensemble=self_ensemble, progress=progress).images[FUSION].clamp_(0, 1)
        return self.refiner(image[None])[0] if self.refiner else image

    def _like(self, picture: Picture, image: Tensor) -> Picture:
        alpha = None if picture.alpha is None else upscale(picture.alpha[..., None], self.scale)[..., 0]
        return replace(picture, pixels=hwc(image, picture.pixels.dtype), alpha=alpha)


def load(
    run: str | Path,
    which: Which = "best",
    *,
    config: EvaluateConfig | None = None,
    device: str = "auto",
    refiner: Refiner | None = None,
) -> Model:
    """The model of a run's folder or of an exported one.

    which    "best", "last" or the step of a checkpoint
    refiner  made by `evaluate.diffusion.load_refiner`
    raises   StoreError if there is no such checkpoint, WeightsError if it is damaged
    """
    return Model(load_fusion(Path(run), which), Path(run), config or EvaluateConfig(device=device), refiner)


def expert_of(entry: Expert, scale: int, device: torch.device, folder: Path) -> LoadedExpert:
    """The expert that the run was trained with.

    folder  where its weights lie if they are not where the entry says
    raises  WeightsError if its weights file is missing or another one
    """
    config = recorded_config(entry)
    own = folder / Path(config.weights).name
    if own.exists() and not Path(config.weights).exists():
        config = replace(config, weights=str(own))
    return live_expert(entry, scale, device, config)
