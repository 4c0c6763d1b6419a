"""A run's scores on a store or on image files: what is to be scored, gathered for `evaluate.scoring.comparison`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.inference.inputs import must_run
from championship_sr.evaluate.methods import BUNDLED, FUSION, SINGLE, SWITCHED_OFF
from championship_sr.evaluate.model import Model, load
from championship_sr.evaluate.scoring.cases import (
    chosen_images,
    paired_cases,
    stored_cases,
    stored_variants,
)
from championship_sr.evaluate.scoring.comparison import ComparisonPlan, Observer, score_cases
from championship_sr.evaluate.scoring.costs import cost_lines, live_costs, stored_costs
from championship_sr.evaluate.scoring.fit import fitted
from championship_sr.evaluate.scoring.scores import Scores
from championship_sr.evaluate.single import Beside
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.architecture import RefusedArchitecture
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.recorded import live_expert, recorded_config, store_origin
from championship_sr.extract.images.decode import UnreadableImage
from championship_sr.extract.images.identify import digests
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.images.results import ResultImages
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.variants import VARIANTS
from championship_sr.store.shards.reader import Store
from championship_sr.train.fusion.config import PHASES
from championship_sr.train.fusion.network import FusionNetwork
from championship_sr.train.records.checkpoint import check_experts
from championship_sr.train.records.seen import read_seen

log = logging.getLogger(__name__)

BICUBIC_LR, PUBLISHED_LR = "made by MATLAB's bicubic", "as published"


@dataclass(frozen=True)
class ScoringOptions:
    """What is scored besides the baselines.

    self_ensemble  None: the best expert's, if its eight outputs are available; True: the fusion's too; False: none
    ablation       the fusion with each of its phases switched off
    fit_store      a folder or URL, to whose images weights are fitted; None: the store of the run, or the scored one;
                   never to images that are scored
    observe        called with the pictures of each image
    bundled        a second fusion of the same experts, in a row of its own; only on stores
    singles        networks that only see LR, scored beside the fusion; the first one's gains over others are told
    """

    self_ensemble: bool | None = None
    ablation: bool = False
    fit_store: Path | str | None = None
    observe: Observer | None = None
    bundled: Model | None = None
    singles: tuple[LoadedExpert, ...] = ()


def evaluate_store(
    run: Path | Model | None,
    store: Path | Store,
    images: Sequence[str] | None = None,
    *,
    options: ScoringOptions | None = None,
    config: EvaluateConfig | None = None,
    trusted: Sequence[str] = (),
) -> Scores:
    """The scores of a run on a store; without a run, those of the store's experts.

    images   ids of the images that are scored; None: all
    trusted  modules that the run and the store may name as their experts' networks
    raises   StoreError if the store lacks an expert of the run, or has it with other weights
    """
    options, config = options or ScoringOptions(), config or EvaluateConfig()
    model = load(run, config=config, trusted=trusted) if isinstance(run, (str, Path)) else run
    names = model.expert_names if model else None
    store = store if isinstance(store, Store) else Store(store, names)
    names = names or tuple(store.experts)
    if model:
        check_experts(model.fusion, store)
    if options.bundled:
        _check_bundled(options.bundled, store, names)
    device = pick_device(config.device)
    live = cache(lambda: _live_experts(store, names, device, trusted))
    chosen = chosen_images(store, images)
    cases = stored_cases(store, chosen, device, live, features=model is not None)
    known = {image.id: (image.hr_sha256, image.lr_sha256) for image in map(store.images.__getitem__, chosen)}
    fit = fitted(options.fit_store, model, store, names, {hr for hr, _lr in known.values()}, store.scale, config)
    notes = [fit.note, *_single_costs(model, options)]
    used = _used(model, known, notes)
    held = len(stored_variants(store)) == len(VARIANTS)
    ensemble = _can_ensemble(options, lambda: held or live(), notes)
    plan = ComparisonPlan(
        experts=names,
        networks=_networks(model, options),
        ensemble=("all" if held or options.self_ensemble else "best") if ensemble else "none",
        fusion_x8=bool(options.self_ensemble),
        weights=fit.weights,
        fitted=fit.products,
        costs=stored_costs(store, names, _loadable(live) if options.self_ensemble is not False else (), device),
        notes=notes,
        observe=options.observe,
        used=used,
    )
    made = {store.images[index].lr_source for index in chosen}
    lr = (
        "made by MATLAB's bicubic"
        if made == {"bicubic"}
        else "as published"
        if made == {"file"}
        else "partly published"
    )
    return score_cases(cases, store.scale, lr, plan, config)


def evaluate_pairs(
    run: Path | Model | None,
    pairs: Sequence[Pair],
    *,
    experts: Sequence[LoadedExpert | ResultImages] = (),
    options: ScoringOptions | None = None,
    config: EvaluateConfig | None = None,
) -> Scores:
    """The scores of a run on image files, its experts being run on them; without a run, those of `experts`.

    experts  in the run's order, if not all of them are to be run as the run says
    """
    options, config = options or ScoringOptions(), config or EvaluateConfig()
    model = load(run, config=config) if isinstance(run, (str, Path)) else run
    experts = tuple(experts) or (model.experts if model else ())
    if not experts:
        raise ConfigError("evaluate: give a run or experts; there is nothing to score")
    names, scale = tuple(expert.name for expert in experts), experts[0].scale
    known = _digests(pairs)
    fit = fitted(options.fit_store, model, None, names, {hr for _lr, hr in known.values()}, scale, config)
    device, notes = pick_device(config.device), [fit.note, *_single_costs(model, options)]
    used = _used(model, {image: (hr, lr) for image, (lr, hr) in known.items()}, notes)
    ensemble = _can_ensemble(options, lambda: must_run(experts), notes)
    plan = ComparisonPlan(
        experts=names,
        networks=_networks(model, options),
        ensemble=("all" if options.self_ensemble else "best") if ensemble else "none",
        fusion_x8=bool(options.self_ensemble),
        weights=fit.weights,
        fitted=fit.products,
        costs=live_costs(experts, device),
        notes=notes,
        observe=options.observe,
        used=used,
    )
    cases = paired_cases(pairs, experts, device)
    lr = BICUBIC_LR if any(pair.lr is None for pair in pairs) else PUBLISHED_LR
    return score_cases(cases, scale, lr, plan, config)


def _single_costs(model: Model | None, options: ScoringOptions) -> list[str]:
    """The cost of the single networks beside the fusion's; without its experts if they cannot be loaded here."""
    if model is None:
        return []
    try:
        return cost_lines(model, options.singles)
    except RefusedArchitecture:
        raise
    except (WeightsError, ConfigError, StoreError) as error:
        return [f"costs of single networks left out: {error}"]


def _live_experts(
    store: Store, names: Sequence[str], device: torch.device, trusted: Sequence[str]
) -> tuple[LoadedExpert, ...]:
    configs = {name: recorded_config(store.experts[name], store_origin(store.root, name, trusted)) for name in names}
    return tuple(live_expert(store.experts[name], store.scale, device, config) for name, config in configs.items())


def _check_bundled(bundled: Model, store: Store, names: Sequence[str]) -> None:
    """Raises StoreError if the bundled fusion is one of other experts, or takes them in another order."""
    if bundled.expert_names != tuple(names):
        raise StoreError(
            f"{bundled.root}: a fusion of {', '.join(bundled.expert_names)} in this order, "
            f"but {store.root} is scored with {', '.join(names)}"
        )
    check_experts(bundled.fusion, store)


def _networks(model: Model | None, options: ScoringOptions) -> dict[str, nn.Module]:
    if model is None:
        return {}
    networks: dict[str, nn.Module] = {FUSION: model.network}
    if options.bundled:
        networks[BUNDLED] = options.bundled.network
    networks |= {SINGLE + single.name: Beside(single) for single in options.singles}
    if options.ablation:
        networks |= {SWITCHED_OFF + name: network for name, network in _ablations(model.network).items()}
    return networks


def _ablations(network: nn.Module) -> dict[str, nn.Module]:
    """Each phase that is on -> the network without it.

    raises  ConfigError if the network is not made of phases
    """
    if not isinstance(network, FusionNetwork):
        raise ConfigError("--ablation: this run's network has no phases to switch off")
    return {name: Without(network, name) for name in PHASES if name not in network.config.without}


class Without(nn.Module):
    """The same network, weights and all, with one phase switched off."""

    def __init__(self, network: FusionNetwork, phase: str) -> None:
        super().__init__()
        self.network, self.phase = network, phase

    def forward(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        with self.network.switched_off(self.phase):
            return self.network(lr, images, features)


def _can_ensemble(options: ScoringOptions, ready: Callable[[], object], notes: list[str]) -> bool:
    """Whether the eight outputs of each expert are available; if they are optional, a note says why not."""
    if options.self_ensemble is False:
        return False
    try:
        ready()
    except RefusedArchitecture:
        raise  # what a store tries is said, and not left out
    except (WeightsError, ConfigError, StoreError) as error:
        if options.self_ensemble:
            raise
        notes.append(f"x8 self-ensemble left out: {error}")
        return False
    return True


def _loadable(live: Callable[[], Sequence[LoadedExpert]]) -> Sequence[LoadedExpert]:
    """The store's experts, or none where one of them cannot be loaded here."""
    try:
        return live()
    except (WeightsError, ConfigError, StoreError) as error:
        log.info("cannot time the experts: %s", error)
        return ()


def _used(
    model: Model | None, known: Mapping[str, tuple[str | None, str]], notes: list[str]
) -> Mapping[str, str | None] | None:
    """Image -> what the run did with it; if there is nothing to mark, a note says so.

    known  image -> sha256 of its HR and LR
    """
    if model is None:
        return None
    seen = read_seen(model.root)
    if seen is None:
        notes.append("which images the run was trained on is not known: neither its record nor its store is there")
        return None
    used = {image: seen.use_of(hr, lr) for image, (hr, lr) in known.items()}
    if not any(used.values()):
        notes.append("none of these images was trained on, or chose the checkpoint (sha256 of HR and LR)")
    return used


def _digests(pairs: Sequence[Pair]) -> dict[str, tuple[str, str | None]]:
    """Image -> sha256 of LR and HR, as stores state them, of those that can be read."""
    sums = {}
    for pair in pairs:
        with suppress(UnreadableImage):  # reported when the image is scored
            sums[pair.id] = digests(*pair.read())
    return sums
