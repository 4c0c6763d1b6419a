"""The row of fitted weights: the images to which they are fitted, none of which is scored, and their origin."""

import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.model import Model
from championship_sr.evaluate.scoring.baselines import products_of
from championship_sr.evaluate.scoring.cases import fit_images, fit_pairs
from championship_sr.evaluate.stores import name_of, opened_store
from championship_sr.store.errors import StoreError
from championship_sr.store.format.phrases import counted
from championship_sr.store.remote.bucket import is_remote
from championship_sr.store.remote.cache import CachedStore
from championship_sr.store.shards.reader import Store
from championship_sr.train.combination import equal_experts, fit_weights
from championship_sr.train.records.folder import RUN_FILE, read_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """The weights of the row of fitted weights, None if there are no images to fit them to, and their origin.

    products  (m, E, E): of the images that they were fitted to, none of which is scored
    """

    weights: dict[str, float] | None
    note: str
    products: np.ndarray | None = None


def fitted(
    fit_store: Path | str | None,
    model: Model | None,
    scored_store: Store | None,
    names: Sequence[str],
    scored: Set[str | None],
    scale: int,
    config: EvaluateConfig,
) -> Fit:
    """The weights of the experts of these names, from the first of the places that has images which are not scored.

    fit_store  the folder or URL of a store, before the run's own and the scored one
    scored     sha256 of the HR images that are scored
    """
    if len(names) == 1:
        return Fit({names[0]: 1.0}, "one expert alone: there are no weights to fit")
    with _opened(fit_store, model, scored_store, names, config) as own:
        store = own or scored_store
        images = fit_images(store, scored) if store else []
        if store and images:
            pairs = fit_pairs(store, images, names)
            return _fit_to(names, np.stack([products_of(hr, made, config.border(scale)) for hr, made in pairs]), store)
    started = getattr(model.network, "start_weights", None) if model and not own else None
    if started is not None:
        note = "fitted weights: those that the run started from, of its training images"
        return Fit(dict(zip(names, started.tolist(), strict=True)), note)
    return Fit(None, "fitted weights left out: no images but the scored ones to fit them to; give --fit-store")


def _fit_to(names: Sequence[str], products: np.ndarray, store: Store) -> Fit:
    note = f"fitted weights: of sum 1, negative allowed, from {counted(len(products), 'image')} of {name_of(store)}"
    note += f" that are not scored{_equal_in_words(names, products.mean(axis=0))}"
    return Fit(dict(zip(names, fit_weights(products.mean(axis=0)).tolist(), strict=True)), note, products)


def _equal_in_words(names: Sequence[str], products: np.ndarray) -> str:
    pairs = equal_experts(products)
    return "".join(f"; {names[a]} and {names[b]} have equal images and get equal weights" for a, b in pairs)


@contextmanager
def _opened(
    fit_store: Path | str | None,
    model: Model | None,
    scored: Store | None,
    names: Sequence[str],
    config: EvaluateConfig,
) -> Iterator[Store | None]:
    """The store that was asked for, or the run's if it still exists and is whole; nothing is downloaded unasked."""
    if isinstance(scored, CachedStore) and str(fit_store).rstrip("/") == scored.remote.url:
        yield scored
    elif fit_store:
        with opened_store(fit_store, names, replace(config, cache=config.cache and config.cache / "fit")) as own:
            yield own
    else:
        yield _store_of_run(model, names)


def _store_of_run(model: Model | None, names: Sequence[str]) -> Store | None:
    if model is None or not (model.root / RUN_FILE).exists():
        return None
    place = read_store(model.root)
    try:
        return None if is_remote(place) else Store(place, names)
    except StoreError as error:
        log.info("cannot fit weights to the run's store: %s", error)
        return None
