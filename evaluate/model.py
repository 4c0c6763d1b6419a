"""A trained run as one object: the fusion, its experts, and images through both."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from championship_sr.evaluate.bundled import bundled_run, sentence
from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.diffusion.refine import Refiner
from championship_sr.evaluate.inference.given import array_back, as_batch
from championship_sr.evaluate.inference.inputs import Inputs, LiveInputs, chw, hwc, must_run
from championship_sr.evaluate.inference.passes import PassOutputs, PixelsDone, run, run_ensemble, with_fitting_tiles
from championship_sr.evaluate.inference.pictures import to_pil
from championship_sr.evaluate.inference.tiles import FadedTiling
from championship_sr.evaluate.methods import FUSION
from championship_sr.extract.config import ExpertConfig, load_expert_config
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.architecture import Origin
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.recorded import live_expert, recorded_config
from championship_sr.extract.images.bicubic import upscale
from championship_sr.extract.images.decode import read_picture
from championship_sr.extract.images.picture import Picture, filled, from_pil
from championship_sr.extract.images.results import Asked, GivenImage, ResultImages, asked_for, result_images
from championship_sr.store.errors import ConfigError
from championship_sr.train.records.checkpoint import LoadedFusion, Which, load_fusion
from championship_sr.train.records.folder import EXPERTS_FILE

log = logging.getLogger(__name__)

WEIGHTS = "weights"  # the folder of an exported run that holds its experts' weights
Given = str | Path | Image.Image | np.ndarray | Tensor


class Model:
    """LR images in, SR images out. The experts are loaded when they are first needed.

    refiner  the refinement applied to the fusion's image, or None (docs/track-b.md)
    images   expert -> the folder of its images, for experts that are not to be run
    raises   ConfigError if images cannot replace such an expert
    """

    def __init__(
        self,
        fusion: LoadedFusion,
        root: Path,
        config: EvaluateConfig,
        refiner: Refiner | None = None,
        images: Mapping[str, Path] | None = None,
        trusted: Sequence[str] = (),
    ) -> None:
        self._origin = Origin(root / EXPERTS_FILE, tuple(trusted))
        self.images = dict(images or {})
        _check_images(self.images, fusion)
        self.fusion, self.root, self.config, self.refiner = fusion, root, config, refiner
        self.scale, self.expert_names = fusion.scale, fusion.experts
        self.device = pick_device(config.device)
        self.network = fusion.network.to(self.device)
        self.tiling = config.tiling

    @cached_property
    def experts(self) -> tuple[LoadedExpert, ...]:
        """The live experts, in the order of the network's inputs, without those whose images are given.

        raises  WeightsError if a weights file is missing, or is not the one that the run was trained with;
                ConfigError for an expert whose images another program made, or whose network the run names and the
                user does not
        """
        entries = [self.fusion.expert_entries[name] for name in self.expert_names if name not in self.images]
        configs = [recorded_config(entry, self._origin) for entry in entries]  # all, before the first is loaded
        return tuple(
            live_expert(entry, self.scale, self.device, found_beside(config, self.root / WEIGHTS))
            for entry, config in zip(entries, configs, strict=True)
        )

    def results(self, asked: Sequence[Asked], subfolder: str = "") -> tuple[ResultImages, ...]:
        """The given images of the experts that are not run, one for each image asked for.

        subfolder  where they lie in the experts' folders, if there is such a folder
        raises     StoreError listing all that are missing, there twice or of another size
        """
        return tuple(
            result_images(images_entry(name, folder, subfolder), asked, self.scale)
            for name, folder in self.images.items()
        )

    def __call__(self, image: Given, *, self_ensemble: bool = False) -> Image.Image | np.ndarray | Tensor:
        """The SR image, in the form of the image given.

        image    a path or PIL image (a PIL image comes back, with its transparency, EXIF data and profile),
                 or an array or a tensor: (h, w, 3), (3, h, w), grey (h, w), or a batch; uint8, uint16, or floating
                 point in 0..1
        raises   ConfigError for a shape, a type or a range that is none of these
        """
        if isinstance(image, np.ndarray):
            values = torch.from_numpy(image.astype(image.dtype.newbyteorder("="), order="C"))
            return array_back(self._tensor(values, self_ensemble, channels_last=True), image)
        if isinstance(image, Tensor):
            return self._tensor(image, self_ensemble)
        if isinstance(image, Image.Image):
            return to_pil(self.upscale(from_pil(image), self_ensemble=self_ensemble))
        path = Path(image)
        given = [results.given(str(path)) for results in self.results([asked_for(path)])]
        return to_pil(self.upscale(read_picture(path), given=given, self_ensemble=self_ensemble))

    def _tensor(self, image: Tensor, self_ensemble: bool, channels_last: bool = False) -> Tensor:
        batch, back = as_batch(image, channels_last)
        return back(torch.stack([self._image(one[None], self_ensemble) for one in batch]))

    def upscale(
        self,
        picture: Picture,
        *,
        given: Sequence[GivenImage] = (),
        self_ensemble: bool = False,
        progress: PixelsDone | None = None,
    ) -> Picture:
        """The SR picture with the same depth; transparency is enlarged bicubically.

        given     the images of the experts that are not run
        progress  called with the number of LR pixels after each tile
        """
        return self._like(picture, self._image(chw(filled(picture)), self_ensemble, progress, given))

    def upscale_by_experts(
        self,
        picture: Picture,
        *,
        given: Sequence[GivenImage] = (),
        self_ensemble: bool = False,
        progress: PixelsDone | None = None,
    ) -> dict[str, Picture]:
        """Expert -> its own SR picture."""
        lr = chw(filled(picture))
        result = self.run(lr, given=given, networks=False, self_ensemble=self_ensemble, progress=progress)
        return {name: self._like(picture, image) for name, image in result.images.items()}

    def run(
        self,
        lr: Tensor,
        *,
        given: Sequence[GivenImage] = (),
        self_ensemble: bool = False,
        networks: bool = True,
        progress: PixelsDone | None = None,
    ) -> PassOutputs:
        """What the fusion, or with `networks=False` each expert, makes of an image (1, 3, h, w) in 0..1.

        given   the images of the experts that are not run
        raises  ConfigError if one of them is missing, or if their flips would be needed
        """
        experts = self._answering(given)
        if self_ensemble:
            must_run(experts)

        def inputs(variant: str) -> LiveInputs:
            return LiveInputs(lr, experts, variant, self.device)

        return self.run_on(inputs, self_ensemble=self_ensemble, networks=networks, progress=progress)

    def run_on(
        self,
        inputs: Callable[[str], Inputs],
        *,
        self_ensemble: bool = False,
        networks: bool = True,
        progress: PixelsDone | None = None,
    ) -> PassOutputs:
        """The same from the experts' outputs for an image, wherever they come from.

        If a GPU runs out of memory, it continues with tiles of half the size.

        inputs  variant -> the inputs of the image in that variant
        """
        wanted = {FUSION: self.network} if networks else {}

        def attempt(tiling: FadedTiling) -> PassOutputs:
            if self_ensemble:
                return run_ensemble(inputs, wanted, tiling, keep_experts=not networks, progress=progress)
            return run(inputs("identity"), wanted, tiling, keep_experts=not networks, progress=progress)

        outputs, self.tiling = with_fitting_tiles(attempt, self.tiling)
        return outputs

    def _answering(self, given: Sequence[GivenImage]) -> list[LoadedExpert | GivenImage]:
        """What gives each expert's outputs, in the order of the network's inputs."""
        everyone: list[LoadedExpert | GivenImage] = [*self.experts, *given]
        answers = {expert.name: expert for expert in everyone}
        missing = [name for name in self.expert_names if name not in answers]
        if missing:
            raise ConfigError(f"expert {missing[0]}: is not run, and its image of this input was not given")
        return [answers[name] for name in self.expert_names]

    def _image(
        self, lr: Tensor, self_ensemble: bool, progress: PixelsDone | None = None, given: Sequence[GivenImage] = ()
    ) -> Tensor:
        """The image (3, H, W) in 0..1 of one (1, 3, h, w)."""
        return self.finished(self.run(lr.cpu(), given=given, self_ensemble=self_ensemble, progress=progress))

    def finished(self, result: PassOutputs) -> Tensor:
        """The fusion's image (3, H, W) in 0..1, refined if the model has a refiner."""
        image = result.images[FUSION].clamp_(0, 1)
        return self.refiner(image[None])[0] if self.refiner else image

    def _like(self, picture: Picture, image: Tensor) -> Picture:
        alpha = None if picture.alpha is None else upscale(picture.alpha[..., None], self.scale)[..., 0]
        return replace(picture, pixels=hwc(image, picture.pixels.dtype), alpha=alpha)


def load(
    run: str | Path | None = None,
    which: Which = "best",
    *,
    config: EvaluateConfig | None = None,
    device: str = "auto",
    refiner: Refiner | None = None,
    images: Mapping[str, Path] | None = None,
    trusted: Sequence[str] = (),
) -> Model:
    """The model of a run's folder, of an exported one, or of the fusion that comes with the package.

    run      None: the bundled fusion, which is described on standard error
    which    "best", "last" or the step of a checkpoint
    refiner  made by `evaluate.diffusion.load_refiner`
    images   expert -> a folder with its images of what is to be upscaled, for experts that cannot be run here
    trusted  Python modules that the run may name as its experts' networks or as the fusion network: their code is run
    raises   StoreError if there is no such checkpoint, WeightsError if it is damaged, ConfigError without a run if
             the package has no fusion
    """
    root = bundled_run() if run is None else Path(run)
    fusion = load_fusion(root, which, trusted)
    if run is None:
        log.warning("%s", sentence(fusion, root))
    return Model(fusion, root, config or EvaluateConfig(device=device), refiner, images, trusted)


def images_entry(name: str, folder: Path, subfolder: str = "") -> ExpertConfig:
    """The entry of an expert whose images lie in a folder, or in a folder under it if there is such a one."""
    own = folder / subfolder
    return load_expert_config({"name": name, "images": str(own if own.is_dir() else folder)})


def _check_images(images: Mapping[str, Path], fusion: LoadedFusion) -> None:
    unknown = sorted(images.keys() - set(fusion.experts))
    if unknown:
        raise ConfigError(
            f"--expert-images {unknown[0]}: the run has no such expert (has: {', '.join(fusion.experts)})"
        )
    with_features = [name for name in images if fusion.config.fusion.features and fusion.channels[name]]
    if with_features:
        raise ConfigError(
            f"--expert-images {with_features[0]}: the run was trained with this expert's features, which images do not "
            "have; train one with fusion.features=false or from a store without features"
        )


def found_beside(config: ExpertConfig, folder: Path) -> ExpertConfig:
    """The expert's configuration, with its weights in `folder` if they are there, else where the entry says.

    raises  ConfigError if the expert has no weights
    """
    if not config.weights:
        raise ConfigError(
            f"expert {config.name}: another program made its images; give its images of these inputs with "
            f"--expert-images {config.name}=DIR"
        )
    own = folder / Path(config.weights).name
    return replace(config, weights=str(own)) if config.weights and own.exists() else config
