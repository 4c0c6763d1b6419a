"""Every method on every image: the experts and the fusion run once per image, all else follows from that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from evaluate.baselines import BEST_X8, EXPERT, FUSION, FUSION_X8, PER_IMAGE, fit_convex, images_of
from evaluate.cases import Case
from evaluate.config import EvaluateConfig
from evaluate.infer import Tiling, hwc, run, run_ensemble
from evaluate.memory import peak_memory
from evaluate.metrics import METRICS, Protocol, Scorer
from evaluate.scores import Scores, best_per_image
from extract.experts import resolve_device
from store.errors import StoreError


@dataclass(frozen=True)
class Pictures:
    """What was made of one image, for whoever looks on: method -> image (H, W, 3) in uint8, and its scores."""

    case: Case
    lr: np.ndarray
    hr: np.ndarray
    images: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]  # method -> metric -> value


Observer = Callable[[Pictures], None]


@dataclass(frozen=True)
class Plan:
    """What is scored: the baselines of these experts, and the networks.

    ensemble   whether the best expert's x8 self-ensemble is scored; fusion_x8 whether the fusion's is too
    fit        (hr, experts' images) that the convex weights are fitted on; empty leaves them out
    observe    called with the pictures of each image
    notes      what a reader of the table must know
    """

    experts: Sequence[str]
    networks: Mapping[str, nn.Module]
    ensemble: bool
    fusion_x8: bool
    fit: Sequence[tuple[np.ndarray, Mapping[str, Tensor]]]
    notes: Sequence[str] = ()
    observe: Observer | None = None


def score_cases(cases: Sequence[Case], scale: int, lr: str, plan: Plan, config: EvaluateConfig) -> Scores:
    """The scores of all methods on all images.

    lr  where the LR images come from, in words
    """
    border = scale if config.border_px is None else config.border_px
    tiling = Tiling(config.tile_px, config.halo_px, config.blend_px)
    weights = fit_convex(plan.fit, border) if plan.fit else None
    table, device = _Table(config.metrics), resolve_device(config.device)
    for case in tqdm(cases, desc="evaluating", unit="image", disable=None):
        lr_image, hr = case.pair()
        _check_sizes(case.name, lr_image, hr, scale)
        inputs = case.inputs("identity", plan.experts)
        with peak_memory(device) as peak:
            result = run(inputs, plan.networks, tiling, keep_experts=True)
        experts = {name: result.images[name] for name in inputs.experts}
        images = images_of(lr_image, hr, experts, scale, weights)
        images |= {name: hwc(result.images[name]) for name in plan.networks}
        scorer = Scorer(hr, config.metrics, border)
        scores = {method: scorer(image) for method, image in images.items()}
        scores[PER_IMAGE] = best_per_image({name: scores[EXPERT + name] for name in experts}, config.metrics)
        table.add(case.name, scores, result.seconds, peak.mib)
        if plan.observe:
            plan.observe(Pictures(case, lr_image, hr, images, scores))
    if plan.ensemble:
        _add_ensembles(table, cases, plan, config, border)
    protocol = Protocol(scale, border, lr).describe(config.metrics)
    return table.scores(protocol, weights, plan.notes, config)


def _add_ensembles(table: "_Table", cases: Sequence[Case], plan: Plan, config: EvaluateConfig, border: int) -> None:
    """Scores the best expert, and the fusion if wanted, as the mean over the eight variants of each image."""
    best = table.best_expert()
    networks = {FUSION: plan.networks[FUSION]} if plan.fusion_x8 and plan.networks else {}
    tiling = Tiling(config.tile_px, config.halo_px, config.blend_px)
    for case in tqdm(cases, desc="self-ensemble", unit="image", disable=None):
        only = plan.experts if networks else [best]
        result = run_ensemble(lambda v, c=case, o=only: c.inputs(v, o), networks, tiling, keep_experts=True)
        scorer = Scorer(case.pair()[1], config.metrics, border)
        scores = {BEST_X8: scorer(hwc(result.images[best]))}
        if networks:
            scores[FUSION_X8] = scorer(hwc(result.images[FUSION]))
        table.extend(scores)


def _check_sizes(name: str, lr: np.ndarray, hr: np.ndarray, scale: int) -> None:
    expected = tuple(n * scale for n in lr.shape[:2])
    if hr.shape[:2] != expected:
        raise StoreError(
            f"{name}: HR has {hr.shape[1]} x {hr.shape[0]} pixels, "
            f"expected {expected[1]} x {expected[0]}, {scale} times its LR"
        )


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
        """The expert of the best mean by the first metric: on the scored images, to the baseline's favour."""
        metric, methods = next(iter(self.values.items()))
        sign = 1 if METRICS[metric].higher_is_better else -1
        experts = [method for method in methods if method.startswith(EXPERT)]
        return max(experts, key=lambda method: sign * np.mean(methods[method])).removeprefix(EXPERT)

    def scores(self, protocol: str, weights, notes: Sequence[str], config: EvaluateConfig) -> Scores:
        return Scores(
            protocol=protocol,
            images=tuple(self.names),
            values={metric: {k: tuple(v) for k, v in methods.items()} for metric, methods in self.values.items()},
            seconds={part: tuple(values) for part, values in self.seconds.items()},
            peak_mib=tuple(self.peaks),
            weights=weights,
            notes=tuple(notes),
            bootstrap=config.bootstrap,
            seed=config.seed,
        )
