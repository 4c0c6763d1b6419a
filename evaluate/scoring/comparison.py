"""Every method on every image: the experts and the fusion run once per image, and everything else follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.inference.inputs import Inputs, hwc
from championship_sr.evaluate.inference.passes import PassOutputs, run, run_ensemble, with_fitting_tiles
from championship_sr.evaluate.inference.tiles import FadedTiling
from championship_sr.evaluate.methods import BEST_X8, EXPERT, FUSION, FUSION_X8, PER_IMAGE, PER_PIXEL
from championship_sr.evaluate.metrics import METRICS, Protocol, Scorer, check_learned
from championship_sr.evaluate.scoring.baselines import images_of, products_of
from championship_sr.evaluate.scoring.cases import Case
from championship_sr.evaluate.scoring.complementarity import Complementarity, Evidence, ExpertCost, complementarity
from championship_sr.evaluate.scoring.scores import Scores, best_per_image, mean_of
from championship_sr.extract.device import pick_device
from championship_sr.extract.images.decode import UnreadableImage
from championship_sr.extract.images.pairs import in_short, joined
from championship_sr.extract.memory import peak_memory
from championship_sr.store.errors import StoreError
from championship_sr.store.progress import progress
from championship_sr.train.combination import psnr_of


@dataclass(frozen=True)
class Pictures:
    """What was made of one image, for an observer: method -> image (H, W, 3) in uint8, and its scores.

    maps   what the fusion decided at each pixel: name -> (1 or E, H, W)
    total  number of images that are scored, this one among them
    """

    case: Case
    lr: np.ndarray
    hr: np.ndarray
    images: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]  # method -> metric -> value
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    total: int = 1


RGB = 3
Observer = Callable[[Pictures], None]


@dataclass(frozen=True)
class ComparisonPlan:
    """What is scored: the baselines of these experts, and the networks.

    ensemble   whose x8 self-ensemble is scored: "all" also that of every expert, in the same pass over the images;
               fusion_x8 the fusion's too
    weights    of the row of fitted weights; None leaves it out
    fitted     (m, E, E): the images that they were fitted to, as of `products_of`
    costs      of the experts, for one LR pixel
    observe    called with the pictures of each image
    used       image -> what the run did with it, None if it never saw it; None if that is not known
    notes      remarks that a reader of the table must know
    """

    experts: Sequence[str]
    networks: Mapping[str, nn.Module]
    ensemble: Literal["none", "best", "all"]
    fusion_x8: bool
    weights: Mapping[str, float] | None
    fitted: np.ndarray | None = None
    costs: Mapping[str, ExpertCost] = field(default_factory=dict)
    notes: Sequence[str] = ()
    observe: Observer | None = None
    used: Mapping[str, str | None] | None = None


def score_cases(cases: Sequence[Case], scale: int, lr: str, plan: ComparisonPlan, config: EvaluateConfig) -> Scores:
    """The scores of all methods on all images that can be read; the others are named in `left_out`.

    lr      the origin of the LR images, in words
    raises  StoreError if none can be read; ConfigError, WeightsError if a metric's package or weights are missing
    """
    check_learned(config.scored, pick_device(config.device))
    comparison = _Comparison(scale, plan, config)
    scored, left_out = [], []
    for case in progress(cases, desc="evaluating", unit="image"):
        try:
            comparison.add(case, len(cases))
            scored.append(case)
        except UnreadableImage as error:
            left_out.append(str(error))
    if not scored:
        raise StoreError(f"no image could be scored: {joined(left_out)}")
    if plan.ensemble == "best":
        for case in progress(scored, desc="self-ensemble", unit="image"):
            comparison.add_ensemble(case)
    return comparison.scores(lr, left_out)


class _Comparison:
    """All methods on one image after the other."""

    def __init__(self, scale: int, plan: ComparisonPlan, config: EvaluateConfig) -> None:
        self.scale, self.plan, self.config = scale, plan, config
        self.border, self.tiling = config.border(scale), config.tiling
        self.device = pick_device(config.device)
        self.table, self.together = _Table(config.scored), _Together(plan)
        self.x8: dict[str, list[dict[str, float]]] = {}  # expert -> metric -> value, of each image
        self.networks = dict(plan.networks)
        fusion = self.networks.get(FUSION)
        fuse = getattr(fusion, "fuse", None)
        if plan.observe and fusion and fuse:
            self.networks[FUSION] = WithMaps(fusion, fuse)

    def add(self, case: Case, total: int = 1) -> None:
        """Scores the image, one of `total`, by every method that needs a single pass."""
        lr, hr = case.pair()
        _check_sizes(case.name, lr, hr, self.scale)
        if min(hr.shape[:2]) <= 2 * self.border:
            size = f"{hr.shape[1]} x {hr.shape[0]}"
            raise UnreadableImage(f"{case.name}: of {size} pixels, nothing is left after cropping {self.border}")
        inputs = case.inputs("identity", self.plan.experts)
        with peak_memory(self.device) as peak:
            result = self._fitting(lambda tiling: run(inputs, self.networks, tiling, keep_experts=True))
        experts = {name: result.images[name] for name in inputs.experts}
        images = images_of(lr, hr, experts, self.scale, self.plan.weights)
        images |= {name: hwc(result.images[name][:RGB]) for name in self.plan.networks}
        scorer = Scorer(hr, self.config.scored, self.border, self.device)
        scores = {method: scorer(image) for method, image in images.items()}
        scores[PER_IMAGE] = best_per_image({name: scores[EXPERT + name] for name in experts}, self.config.scored)
        self.table.add(case.name, scores, result.seconds, peak.mib)
        self.together.add(products_of(hr, experts, self.border), inputs.size)
        if self.plan.ensemble == "all":
            self._ensemble_of_all(case, hr, scorer)
        if self.plan.observe:
            fusion = self.networks.get(FUSION)
            maps = fusion.split(result.images[FUSION]) if isinstance(fusion, WithMaps) else {}
            self.plan.observe(Pictures(case, lr, hr, images, scores, maps, total))

    def _ensemble_of_all(self, case: Case, hr: np.ndarray, scorer: Scorer) -> None:
        """Scores every expert, and the fusion if wanted, as the mean over the eight variants of the image."""
        networks = {FUSION: self.plan.networks[FUSION]} if self.plan.fusion_x8 and self.plan.networks else {}
        images = self._ensembled(case, self.plan.experts, networks)
        self.together.add_x8(hr, {name: images[name] for name in self.plan.experts}, self.border)
        for name in self.plan.experts:
            self.x8.setdefault(name, []).append(scorer(hwc(images[name])))
        if networks:
            self.table.extend({FUSION_X8: scorer(hwc(images[FUSION]))})

    def add_ensemble(self, case: Case) -> None:
        """Scores the best expert as the mean over the eight variants of the image."""
        best, hr = self.table.best_expert(), case.pair()[1]
        images = self._ensembled(case, [best], {})
        self.together.add_x8(hr, images, self.border)
        scorer = Scorer(hr, self.config.scored, self.border, self.device)
        self.x8.setdefault(best, []).append(scorer(hwc(images[best])))

    def _ensembled(self, case: Case, experts: Sequence[str], networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        def inputs(variant: str) -> Inputs:
            return case.inputs(variant, experts)

        return self._fitting(lambda tiling: run_ensemble(inputs, networks, tiling, keep_experts=True)).images

    def _fitting(self, attempt: Callable[[FadedTiling], PassOutputs]) -> PassOutputs:
        """What the attempt gives, here and for all further images in tiles for which memory suffices."""
        outputs, self.tiling = with_fitting_tiles(attempt, self.tiling)
        return outputs

    def scores(self, lr: str, left_out: Sequence[str]) -> Scores:
        """What has been scored."""
        table, config = self.table, self.config
        for x8 in self.x8.get(table.best_expert(), ()):
            table.extend({BEST_X8: x8})
        return Scores(
            protocol=Protocol(self.scale, self.border, lr).describe(config.scored),
            images=tuple(table.names),
            values={metric: {k: tuple(v) for k, v in methods.items()} for metric, methods in table.values.items()},
            seconds={part: tuple(values) for part, values in table.seconds.items()},
            peak_mib=tuple(table.peaks),
            weights=dict(self.plan.weights) if self.plan.weights else None,
            notes=(*self.plan.notes, *_notes_on_small_images(table)),
            left_out=tuple(left_out),
            used=None if self.plan.used is None else tuple(self.plan.used.get(name) for name in table.names),
            complementarity=self.together.made(table.values, config),
            bootstrap=config.bootstrap,
            seed=config.seed,
        )


class _Together:
    """Collects, image by image, what is needed to tell what the experts are worth together."""

    def __init__(self, plan: ComparisonPlan) -> None:
        self.plan = plan
        self.products: list[np.ndarray] = []
        self.lr_px: list[int] = []
        self.x8: dict[str, list[float]] = {}

    def add(self, products: np.ndarray, size: tuple[int, int]) -> None:
        self.products.append(products)
        self.lr_px.append(size[0] * size[1])

    def add_x8(self, hr: np.ndarray, images: Mapping[str, Tensor], border: int) -> None:
        for name, squared in zip(images, np.diag(products_of(hr, images, border)), strict=True):
            self.x8.setdefault(name, []).append(squared)

    def made(self, values: Mapping[str, Mapping[str, Sequence[float]]], config: EvaluateConfig) -> Complementarity:
        """values  metric -> method -> the scores of each image, for the oracles"""
        products = np.stack(self.products)
        oracles = {PER_IMAGE: psnr_of(products.diagonal(axis1=1, axis2=2)).max(axis=1)}
        if "psnr_y" in values:
            oracles[PER_PIXEL] = np.array(values["psnr_y"][PER_PIXEL])
        x8 = {name: np.array(squared) for name, squared in self.x8.items()}
        costs = {name: cost.of(float(np.mean(self.lr_px))) for name, cost in self.plan.costs.items()}
        evidence = Evidence(products, self.plan.fitted, x8, oracles)
        return complementarity(self.plan.experts, evidence, costs=costs, resamples=config.bootstrap, seed=config.seed)


class WithMaps(nn.Module):
    """A fusion that returns its maps with its image, as further channels of the same pass."""

    def __init__(self, network: nn.Module, fuse: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.network, self.fuse = network, fuse
        self.channels: dict[str, int] = {}

    def forward(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        made = self.fuse(lr, images, features)
        image = made.pop("image")
        self.channels = {name: layers.shape[1] for name, layers in made.items()}
        return torch.cat([image, *made.values()], dim=1)

    def split(self, image: Tensor) -> dict[str, np.ndarray]:
        """Name of a map -> (its channels, H, W), of an image of this network."""
        layers = image[RGB:].split(list(self.channels.values()))
        return {name: layer.numpy() for name, layer in zip(self.channels, layers, strict=True)}


def _check_sizes(name: str, lr: np.ndarray, hr: np.ndarray, scale: int) -> None:
    expected = tuple(n * scale for n in lr.shape[:2])
    if hr.shape[:2] != expected:
        raise StoreError(
            f"{name}: HR has {hr.shape[1]} x {hr.shape[0]} pixels, "
            f"expected {expected[1]} x {expected[0]}, {scale} times its LR"
        )


def _notes_on_small_images(table: "_Table") -> list[str]:
    notes = []
    for metric, methods in table.values.items():
        without = [name for name, value in zip(table.names, next(iter(methods.values())), strict=True) if isnan(value)]
        if without:
            notes.append(f"no {METRICS[metric].title} of images smaller than its window: {in_short(without)}")
    return notes


class _Table:
    """Scores as they come in."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.names: list[str] = []
        self.values: dict[str, dict[str, list[float]]] = {metric: {} for metric in metrics}
        self.seconds: dict[str, list[float]] = {}
        self.peaks: list[float] = []

    def add(self, name: str, scores: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float], mib: float):
        self.names.append(name)
        self.peaks.append(mib)
        self.extend(scores)
        for part, value in seconds.items():
            self.seconds.setdefault(part, []).append(value)

    def extend(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        for method, by_metric in scores.items():
            for metric, value in by_metric.items():
                self.values[metric].setdefault(method, []).append(value)

    def best_expert(self) -> str:
        """The expert with the best mean by the first metric, on the scored images, which favours this baseline."""
        metric, methods = next(iter(self.values.items()))
        sign = 1 if METRICS[metric].higher_is_better else -1
        experts = [method for method in methods if method.startswith(EXPERT)]
        return max(experts, key=lambda method: sign * mean_of(methods[method])).removeprefix(EXPERT)
