"""Single networks (students or other experts): used like a run, or scored in a row beside one."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.diffusion.refine import Refiner
from championship_sr.evaluate.model import Model
from championship_sr.extract.config import load_expert_config
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.store.errors import ConfigError
from championship_sr.train.config import TrainConfig
from championship_sr.train.records.checkpoint import Checkpoint, LoadedFusion


class Only(nn.Module):
    """Takes the place of a fusion: returns the image of the only expert."""

    def forward(self, _lr: Tensor, images: Tensor, _features: Mapping[str, Tensor]) -> Tensor:
        return images[:, 0]


class Beside(nn.Module):
    """A network that only sees LR, called like a fusion."""

    def __init__(self, expert: LoadedExpert) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, lr: Tensor, _images: Tensor, _features: Mapping[str, Tensor]) -> Tensor:
        return self.expert(lr)[0]


class SingleModel(Model):
    """LR images in, the SR images of one expert out."""

    def __init__(self, expert: LoadedExpert, config: EvaluateConfig, refiner: Refiner | None = None) -> None:
        assert expert.config.weights, "an expert that runs has weights"
        place = Path(expert.config.weights)
        fusion = LoadedFusion(
            Only(), (expert.name,), {expert.name: 0}, expert.scale, TrainConfig(), {}, Checkpoint(place, 0, None)
        )
        super().__init__(fusion, place.parent, config, refiner)
        self._expert = expert

    @cached_property
    def experts(self) -> tuple[LoadedExpert, ...]:
        return (self._expert,)


def load_single(entry: str, config: EvaluateConfig, refiner: Refiner | None = None) -> SingleModel:
    """One expert as a model, from a name in configs/experts or a YAML file.

    raises  ConfigError, WeightsError
    """
    settings = load_expert_config(entry)
    if settings.images:
        raise ConfigError(f"expert {settings.name}: another program made its images; it cannot be run here")
    return SingleModel(load_expert(settings, pick_device(config.device), None), config, refiner)
