"""Fuses the images of a store from the experts' stored outputs; no expert is run."""

from functools import partial
from math import prod
from pathlib import Path

from tqdm import tqdm

from championship_sr.evaluate.deliver.upscale import UpscaleOptions, plan_outputs
from championship_sr.evaluate.inference.inputs import StoredInputs, hwc
from championship_sr.evaluate.inference.pictures import check_writable, write_picture
from championship_sr.evaluate.model import Model
from championship_sr.evaluate.scoring.cases import stored_variants
from championship_sr.extract.images.picture import Picture
from championship_sr.store.errors import StoreError
from championship_sr.store.format.variants import VARIANTS
from championship_sr.store.progress import progress
from championship_sr.store.shards.reader import Store
from championship_sr.train.records.checkpoint import check_experts


def upscale_store(model: Model, store: Store, output: Path, options: UpscaleOptions) -> list[Path]:
    """Fuses each image of a store into a file named after its id, PNG by default.

    raises  StoreError if the store has other experts or, for the self-ensemble, lacks a variant
    """
    check_experts(model.fusion, store)
    if options.self_ensemble and len(stored_variants(store)) < len(VARIANTS):
        raise StoreError(f"{store.root}: lacks some of the {len(VARIANTS)} variants that --self-ensemble averages over")
    names = [Path(f"{image.id}.png") for image in store.images]
    plans = plan_outputs(names, output, options, model.expert_names, into_folder=True)
    check_writable(output)
    passes = len(VARIANTS) if options.self_ensemble else 1
    pixels = sum(prod(image.lr_size) for image in store.images)
    with progress(total=passes * pixels, desc="upscaling", unit="px", unit_scale=True) as bar:
        for index, plan in enumerate(plans):
            for name, picture in _pictures(model, store, index, options, bar).items():
                write_picture(plan[name], picture, quality=options.quality, overwrite=options.overwrite)
    return [path for plan in plans for path in plan.values()]


def _pictures(model: Model, store: Store, index: int, options: UpscaleOptions, bar: tqdm) -> dict[str | None, Picture]:
    def inputs(variant: str) -> StoredInputs:
        return StoredInputs(store, index, model.expert_names, variant, model.device)

    fuse = partial(model.run_on, inputs, self_ensemble=options.self_ensemble, progress=bar.update)
    if options.experts_only:
        return {name: Picture(hwc(image)) for name, image in fuse(networks=False).images.items()}
    return {None: Picture(hwc(model.finished(fuse())))}
