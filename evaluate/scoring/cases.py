"""The images that are scored: of a store, or of folders."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from championship_sr.evaluate.inference.inputs import Device, Inputs, LiveInputs, StoredInputs, chw
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.images.results import ResultImages
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.variants import VARIANTS
from championship_sr.store.shards.reader import Store

MAX_FIT_IMAGES = 32  # fitted weights have only one degree of freedom per expert


@dataclass(frozen=True)
class Case:
    """One image to be scored; everything is read on request.

    pair    -> lr (h, w, 3) and hr (H, W, 3), uint8 or uint16
    inputs  variant, experts -> what the networks read
    """

    name: str
    pair: Callable[[], tuple[np.ndarray, np.ndarray]]
    inputs: Callable[[str, Sequence[str]], Inputs]


def stored_cases(
    store: Store,
    images: Sequence[int],
    device: Device,
    live: Callable[[], Sequence[LoadedExpert]],
    *,
    features: bool = True,
) -> list[Case]:
    """The images of a store with these indices.

    live      the experts, for the variants that the store lacks
    features  False does not read the experts' features
    """
    held = stored_variants(store)

    def case(index: int) -> Case:
        def pair() -> tuple[np.ndarray, np.ndarray]:
            lr, hr = (store.array(index, PAIRS, name).load() for name in ("lr", "hr"))
            return lr, hr

        def inputs(variant: str, experts: Sequence[str]) -> Inputs:
            if variant in held:
                return StoredInputs(store, index, experts, variant, device, features=features)
            chosen = [expert for expert in live() if expert.name in experts]
            return LiveInputs(chw(pair()[0]), chosen, variant, device)

        return Case(store.images[index].id, pair, inputs)

    return [case(index) for index in images]


def stored_variants(store: Store) -> set[str]:
    """The variants that the store has of every expert."""
    return set(VARIANTS).intersection(*(expert.variants for expert in store.experts.values()))


def paired_cases(pairs: Sequence[Pair], experts: Sequence[LoadedExpert | ResultImages], device: Device) -> list[Case]:
    """The images of files, on which the experts are run or whose results are read."""

    def case(pair: Pair) -> Case:
        def read() -> tuple[np.ndarray, np.ndarray]:
            lr, hr = pair.read()
            assert hr is not None, "pairs that are scored have HR"
            return lr, hr

        def inputs(variant: str, names: Sequence[str]) -> Inputs:
            wanted = [expert for expert in experts if expert.name in names]
            answering = [e.given(pair.id) if isinstance(e, ResultImages) else e for e in wanted]
            return LiveInputs(chw(pair.read()[0]), answering, variant, device)

        return Case(pair.id, read, inputs)

    return [case(pair) for pair in pairs]


def chosen_images(store: Store, ids: Sequence[str] | None) -> list[int]:
    """The indices of the images with these ids; None: all.

    raises  StoreError naming the ids that the store lacks, or if it has no HR images
    """
    store.check_hr("a score")
    index = {image.id: number for number, image in enumerate(store.images)}
    missing = [image for image in ids or () if image not in index]
    if missing:
        raise StoreError(f"{store.root}: no image {', '.join(missing)} (has: {', '.join(list(index)[:10])}, ...)")
    return list(index.values()) if ids is None else [index[image] for image in ids]


def fit_images(store: Store, scored: Set[str | None]) -> list[int]:
    """The indices of up to MAX_FIT_IMAGES images of a store, spread over it, none of which is scored.

    scored  sha256 of the HR images that are scored
    raises  StoreError if the store has no HR images
    """
    store.check_hr("a fit of weights")
    free = [index for index, image in enumerate(store.images) if image.hr_sha256 not in scored]
    count = min(MAX_FIT_IMAGES, len(free))
    return [free[i * len(free) // count] for i in range(count)]


def fit_pairs(
    store: Store, images: Sequence[int], experts: Sequence[str]
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(hr (H, W, 3), experts' images (3, H, W)) of the images with these indices, one in memory at a time."""
    for index in images:
        hr = store.array(index, PAIRS, "hr").load()
        yield hr, {name: torch.from_numpy(store.array(index, name, "sr").load()).permute(2, 0, 1) for name in experts}
