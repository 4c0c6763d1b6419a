"""Prepares an expert before its first shard: its entry in the store, tiles that fit, bases of its codecs."""

import logging
import platform
import time
from collections.abc import Sequence

import numpy as np
import torch

from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.experts.expert import CODE, LoadedExpert
from championship_sr.extract.experts.tiling import Tiling, as_input
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.images.results import ResultImages
from championship_sr.extract.run.on_device import made_on
from championship_sr.store.codecs import Params, fit_pca, get_codec
from championship_sr.store.config import to_plain
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import listed
from championship_sr.store.progress import progress
from championship_sr.store.shards.record import read_record

log = logging.getLogger(__name__)

DEFAULT_CODEC = "float16"
BASIS_IMAGES, BASIS_PX = 32, 64  # the windows that a codec with principal components is fitted on


def describe(expert: LoadedExpert, config: ExtractConfig, tiling: Tiling, there: Expert | None = None) -> Expert:
    """The expert as the store records it.

    there  its entry, if the store has one: if that does not record the code, neither does the new one
    """
    codec = config.codecs.get
    arrays = [ArraySpec("sr", 3, expert.scale, codec("sr", DEFAULT_CODEC))]
    arrays += [ArraySpec(name, n, 1, codec(name, DEFAULT_CODEC)) for name, n in expert.channels.items()]
    identity = {
        **expert.identity,
        "tiling": {"tile_px": tiling.tile_px, "halo_px": tiling.halo_px},
        "variants": list(config.variants),
    }
    if there is not None and CODE not in there.identity:
        identity.pop(CODE, None)
    device = made_on(expert.device, tiling.batch_size, config.precision)
    if config.one_device:
        identity["made_on"] = device
    notes = {
        "config": to_plain(expert.config),
        "parameters": expert.n_parameters,
        "tile_px_asked": config.tile_px,
        "batch_size": tiling.batch_size,
        "device": str(expert.device),
        **({"made_on": device} if expert.device.type != "cpu" else {}),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return Expert(expert.name, tuple(arrays), identity, notes)


def register_results(results: ResultImages, config: ExtractConfig, manifest: Manifest, rebuild: bool) -> None:
    """Makes room in the store for an expert that is a folder of images.

    raises  StoreError naming files that have changed since recorded shards were made from them
    """
    there = None if rebuild else manifest.experts.get(results.name)
    if there:
        _check_files(results, manifest)
    # a store that has grown since keeps the identity that the expert had when it was added
    count = there.identity.get("images", {}).get("count") if there else None
    codec = config.codecs.get("sr", DEFAULT_CODEC)
    notes = {"config": to_plain(results.config), "host": platform.node(), "date": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    described = Expert(
        results.name,
        (ArraySpec("sr", 3, results.scale, codec),),
        results.identity(manifest.images[:count]),
        notes,
    )
    manifest.add_expert(described, rebuild=rebuild)


def _check_files(results: ResultImages, manifest: Manifest) -> None:
    changed = []
    for shard in manifest.recorded_shards(results.name):
        if manifest.record_path(results.name, shard).exists():  # otherwise it is in a bucket
            made_from = read_record(manifest, results.name, shard).get("files", {})
            other = (name for name, sha256 in made_from.items() if results.digests[name] != sha256)
            changed += [results.files[name].name for name in other]
    if changed:
        raise StoreError(
            f"{manifest.root}: expert {results.name} was made from other files: {listed(changed)} changed since. "
            f"To extract it again: pipeline.py extract --rebuild {results.name}"
        )


def fit_tiling(expert: LoadedExpert, images: Sequence[Image], tiling: Tiling) -> Tiling:
    """The tiling, halved until the largest image runs in the device's memory; tried before anything is recorded.

    raises  StoreError if even the smallest tile is too large
    """
    batched = tiling.batch_size > 1 and len(images) > 1
    while True:
        sides = [[min(n, tiling.tile_px) for n in image.lr_size] for image in images]
        height, width = max(sides, key=lambda side: side[0] * side[1])
        tiled = batched or any(max(image.lr_size) > tiling.tile_px for image in images)
        try:
            with torch.inference_mode():
                expert(torch.zeros(tiling.batch_size if tiled else 1, 3, height, width))
            return tiling
        except torch.OutOfMemoryError:
            smaller = tiling.halved()
        torch.cuda.empty_cache()
        if smaller is None:
            raise StoreError(f"expert {expert.name}: out of memory on {expert.device} even with {tiling}")
        log.warning("%s: out of memory with %s; continuing with %s", expert.name, tiling, smaller)
        tiling = smaller


def fit_bases(
    expert: LoadedExpert, manifest: Manifest, pairs: dict[str, Pair], specs: Sequence[ArraySpec]
) -> dict[str, Params]:
    """Array name -> basis, fitted on the middles of images from all over the store, whatever part is made here."""
    step = max(1, len(manifest.images) // BASIS_IMAGES)
    samples: dict[str, list[np.ndarray]] = {spec.name: [] for spec in specs}
    for image in progress(manifest.images[::step][:BASIS_IMAGES], desc=f"{expert.name} basis", unit="image"):
        lr, _ = pairs[image.id].read()
        top, left = (max(0, (n - BASIS_PX) // 2) for n in lr.shape[:2])
        with torch.inference_mode():
            _, features = expert(as_input(lr[top : top + BASIS_PX, left : left + BASIS_PX]))
        for name in samples:
            samples[name].append(features[name][0].permute(1, 2, 0).cpu().numpy())
    return {spec.name: fit_pca(samples[spec.name], get_codec(spec.codec).components) for spec in specs}
