"""Teacher images, a target besides HR: made once from the experts' stored images and kept like an expert's.

A teacher has one array, `sr`, of each upright image. It is an expert of the store in every other way: its shards are
recorded, checked, verified, merged and converted as all others are. Its identity records what it was made from,
so that it is known to be stale once an expert was rebuilt or the run was trained further.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from championship_sr.extract.device import float32_products
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.differences import different_experts
from championship_sr.store.format.entries import TEACHER, ArraySpec, Expert
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.phrases import listed
from championship_sr.store.format.variants import VARIANTS, inverse, transform
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard
from championship_sr.train.combination import combined, error_products, fit_weights
from championship_sr.train.config import WEIGHTED, TeacherConfig
from championship_sr.train.data.batch import SR, decoded_window
from championship_sr.train.data.whole import WholeImage, in_tiles, read_answers
from championship_sr.train.processes import World
from championship_sr.train.records.checkpoint import WEIGHTS_FILE, LoadedFusion, check_experts, load_fusion, sha256_of

log = logging.getLogger(__name__)

CODEC = "float16"
TILE_PX = 256  # of a run's images, LR pixels: one size whatever the memory, because it decides the bytes
FITTED_IMAGES = 32  # weights have only one degree of freedom per expert
SPATIAL = (-2, -1)


@dataclass(frozen=True)
class _Combination:
    """Fixed weights of the experts' images, as a network of the same inputs."""

    weights: Tensor

    def __call__(self, _lr: Tensor, images: Tensor, _features: Mapping[str, Tensor]) -> Tensor:
        return combined(images, self.weights)


@dataclass(frozen=True)
class Recipe:
    """How a teacher's image is made from the experts' outputs.

    decides  its identity, except fitted weights, which are kept once they have been solved
    run      the fusion, if the teacher is one
    """

    name: str
    experts: tuple[str, ...]
    decides: dict[str, Any]
    run: LoadedFusion | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.decides["mean_of"])

    @property
    def with_features(self) -> bool:
        return self.run is not None and self.run.config.fusion.features


def recipe(manifest: Manifest, config: TeacherConfig, trusted: Sequence[str] = ()) -> Recipe:
    """What the teacher of this configuration is made of in this store.

    trusted  modules that a run may name as its network
    raises  ConfigError, StoreError if the store lacks an expert, a variant or HR images to fit to, or has other
            experts than the run
    """
    run = None if config.of in WEIGHTED else _run(Path(config.of), trusted)
    names = run.experts if run else config.experts or tuple(manifest.answering)
    if not names:
        raise StoreError(f"{manifest.root}: contains no experts to make a teacher from. Run: pipeline.py extract")
    entries = {name: manifest.expert(name) for name in names}
    if run:
        check_experts(run, manifest)
    if config.of == "fitted" and len(names) > 1 and not manifest.has_hr:
        raise StoreError(
            f"{manifest.root}: was made from LR images alone, but weights are fitted to HR images; "
            "set teacher.of to mean, or to the folder of a run"
        )
    if config.x8:
        _check_variants(manifest, entries)
    decides = {
        "role": TEACHER,
        "of": "run" if run else config.of,
        "run_sha256": sha256_of(run.checkpoint.path / WEIGHTS_FILE) if run else None,
        "experts": {name: entry.fingerprint for name, entry in entries.items()},
        "mean_of": list(VARIANTS if config.x8 else VARIANTS[:1]),
        "tile_px": TILE_PX if run else None,
    }
    return Recipe(teacher_name(config), names, decides, run)


def teacher_name(config: TeacherConfig) -> str:
    """The name of this configuration's teacher in a store."""
    source = config.of if config.of in WEIGHTED else Path(config.of).resolve().name
    parts = ["teacher", source, "+".join(config.experts), "x8" if config.x8 else ""]
    return "-".join(part for part in parts if part)


def made_teacher(
    manifest: Manifest,
    config: TeacherConfig,
    world: World,
    stopping: threading.Event,
    *,
    local: bool = True,
    trusted: Sequence[str] = (),
) -> str:
    """Makes the teacher's missing shards, and returns its name in the store.

    If killed at any moment, the same call continues with the unfinished shard.

    local    False: the store is remote, and must already have the teacher
    trusted  modules that a run may name as its network
    raises   StoreError if it is stale; KeyboardInterrupt once `stopping` is set
    """
    wanted = recipe(manifest, config, trusted)
    there = manifest.experts.get(wanted.name)
    if there:
        _check_fresh(manifest.root, there, wanted)
    elif not local:
        raise StoreError(
            f"{manifest.root}: has no teacher {wanted.name}, and one can only be made in a folder. Train one step "
            "from the store's folder, then run: pipeline.py store push"
        )
    if local:
        if world.first and not there:
            manifest.add_expert(_entry(manifest, wanted, world.device))
        world.wait()
        _make(Manifest.load(manifest.root), wanted, world, stopping)
        world.wait()
        left = manifest.missing_shards(wanted.name)
        if left:
            raise StoreError(
                f"{manifest.root}: {wanted.name} lacks {len(left)} shards, which another process is making; "
                "run the same command again when it has finished"
            )
    return wanted.name


def _run(folder: Path, trusted: Sequence[str]) -> LoadedFusion:
    if not folder.is_dir():
        raise ConfigError(f"teacher.of={folder}: neither {' nor '.join(WEIGHTED)} nor the folder of a run")
    return load_fusion(folder, trusted=trusted)


def _check_variants(manifest: Manifest, entries: Mapping[str, Expert]) -> None:
    for name, entry in entries.items():
        missing = [variant for variant in VARIANTS if variant not in entry.variants]
        if missing:
            raise StoreError(
                f"{manifest.root}: teacher.x8 averages over all eight variants, but {name} lacks "
                f"{', '.join(missing)}. Run: pipeline.py extract --rebuild {name} --variants {','.join(VARIANTS)}"
            )


def _check_fresh(root: Path, there: Expert, wanted: Recipe) -> None:
    kept = {"weights": there.identity["weights"]} if "weights" in there.identity else {}
    different = different_experts(there, _expert(there.arrays[0].resolution, wanted, {**wanted.decides, **kept}))
    recoded = [line for line in different if not line.startswith(("arrays.", "recoded"))]  # by `store convert`
    if recoded:
        raise StoreError(
            f"{root}: the teacher {wanted.name} is out of date: {listed(recoded)}. To make it again, run: pipeline.py "
            f"store rm {root} --expert {wanted.name}, and then repeat this command"
        )


def _expert(scale: int, wanted: Recipe, identity: Mapping[str, Any]) -> Expert:
    notes = {"run": str(wanted.run.checkpoint.path)} if wanted.run else {}
    return Expert(wanted.name, (ArraySpec(SR, 3, scale, CODEC),), identity, notes)


def _entry(manifest: Manifest, wanted: Recipe, device: torch.device) -> Expert:
    identity = dict(wanted.decides)
    if not wanted.run:
        identity["weights"] = _weights(manifest, wanted, device)
    return _expert(manifest.scale, wanted, identity)


def _weights(manifest: Manifest, wanted: Recipe, device: torch.device) -> dict[str, float]:
    """Expert -> weight, summing to 1; fitted to whole images from all over the store."""
    count = len(wanted.experts)
    if wanted.decides["of"] == "mean" or count == 1:
        return dict.fromkeys(wanted.experts, 1 / count)
    store = Store(manifest.root, wanted.experts)
    n_images = min(FITTED_IMAGES, len(store.images))
    products: np.ndarray = np.zeros(())
    for index in (place * len(store.images) // n_images for place in range(n_images)):
        hr = decoded_window(store.array(index, PAIRS, "hr"), device)
        images, _ = read_answers(store, index, wanted.experts, device, features=False)
        products = products + error_products(images, hr).cpu().numpy() / n_images
    return dict(zip(wanted.experts, fit_weights(products).tolist(), strict=True))


def _make(manifest: Manifest, wanted: Recipe, world: World, stopping: threading.Event) -> None:
    """This process's share of the shards that are missing."""
    missing = set(manifest.missing_shards(wanted.name))
    mine = [shard for shard in range(manifest.n_shards)[world.rank :: world.size] if shard in missing]
    if not mine:
        return
    store, network = Store(manifest.root, wanted.experts), _network(manifest.expert(wanted.name), wanted, world.device)
    index = {image.id: number for number, image in enumerate(store.images)}
    n_images = sum(len(manifest.images_of(shard)) for shard in mine)
    log.info("%s: making the teacher %s for %d images", manifest.root, wanted.name, n_images)
    with tqdm(total=n_images, desc=wanted.name, unit="image", disable=None if world.first else True) as bar:
        for shard in mine:
            with suppress(ShardBusy), write_shard(manifest, wanted.name, shard, watch=True) as out:
                for image in manifest.images_of(shard):
                    if stopping.is_set():
                        raise KeyboardInterrupt
                    taught = taught_image(store, index[image.id], wanted, network, world.device)
                    out.add(image.id, {SR: taught[0].permute(1, 2, 0).cpu().numpy()})
                    bar.update()


def _network(entry: Expert, wanted: Recipe, device: torch.device) -> "nn.Module | _Combination":
    if wanted.run:
        return wanted.run.network.to(device)
    return _Combination(torch.tensor([entry.identity["weights"][name] for name in wanted.experts], device=device))


@torch.no_grad()
@float32_products()  # the images are kept, and compared with those that evaluation makes
def taught_image(
    store: Store, image: int, wanted: Recipe, network: "nn.Module | _Combination", device: torch.device
) -> Tensor:
    """The teacher's image (1, 3, H, W) in 0..1 of the upright image with this index."""
    total = torch.zeros(())
    for variant, whole in _variants(store, image, wanted, device):
        made = (
            in_tiles(network, whole, store.scale, TILE_PX)
            if wanted.run
            else network(whole.lr, whole.images, whole.features)
        )
        upright = transform(made.float(), inverse(variant), SPATIAL) / len(wanted.variants)
        total = total + upright
    return total.clamp(0, 1)


def _variants(store: Store, image: int, wanted: Recipe, device: torch.device) -> Iterator[tuple[str, WholeImage]]:
    lr = decoded_window(store.array(image, PAIRS, "lr"), device)
    for variant in wanted.variants:
        turned = transform(lr, variant, SPATIAL).contiguous()
        answers = read_answers(store, image, wanted.experts, device, wanted.with_features, variant)
        yield variant, WholeImage(turned, turned[:, :, :0], *answers)
