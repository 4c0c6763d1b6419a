"""The inputs of a run: its store or live experts, its windows, and the images it is scored on."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from championship_sr.store.config import to_plain
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.remote.bucket import cache_folder, is_remote
from championship_sr.store.remote.cache import RemoteStoreReader, ShardCache
from championship_sr.store.remote.objects import RemoteStore
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import DataConfig, TrainConfig
from championship_sr.train.data.loader import Buffers, Loader, Ranks, Sampling
from championship_sr.train.data.whole import WholeImage, read_pair, read_stored
from championship_sr.train.held_out import check_apart, split_images
from championship_sr.train.losses.combined import TEACHER
from championship_sr.train.processes import World
from championship_sr.train.records.folder import read_image_count
from championship_sr.train.records.seen import held_before
from championship_sr.train.run.live import LiveExperts, LiveLoader, load_experts, window_px
from championship_sr.train.run.validation import Validation
from championship_sr.train.students.teacher import made_teacher

if TYPE_CHECKING:
    from championship_sr.extract.config import ExpertConfig

log = logging.getLogger(__name__)

VALIDATION_STORE = "validation.store"
SAMPLING_KEYS = {field.name for field in fields(Sampling)} - {"crop_px", "seed"}


@dataclass(frozen=True)
class Source:
    """A store and its experts, in the order of the network's inputs.

    live     where they are run in the step
    cache    if the store is in object storage
    trusted  modules that it may name as its experts' networks
    teacher  the store's name for the images to learn from
    """

    store: Store
    entries: dict[str, Expert]
    live: LiveExperts | None = None
    cache: ShardCache | None = None
    trusted: tuple[str, ...] = ()
    teacher: str | None = None

    def close(self) -> None:
        for part in (self.live, self.cache):
            if part:
                part.close()


def open_source(
    place: Path | str,
    config: TrainConfig,
    world: World,
    trusted: Sequence[str] = (),
    stopping: threading.Event | None = None,
) -> Source:
    """The store, whole for the experts that the configuration names, or only its images, and live experts.

    trusted   modules that the store may name as its experts' networks
    stopping  interrupts the making of a teacher, which the next call continues
    raises    StoreError if HR or an expert is missing, or one has random weights;
              ConfigError for what a store cannot answer
    """
    if not config.live.enabled:
        _check_answerable(config)
    teacher = _teacher(place, config, world, stopping or threading.Event(), trusted) if config.teacher.of else None
    alone = config.live.enabled or config.student  # with the images themselves
    store = open_store(place, () if alone else config.experts or None, config.data, teacher)
    _check_hr(store, config)
    live = load_experts(store.root, config, world.device, trusted) if config.live.enabled else None
    entries = live.entries if live else {name: entry for name, entry in store.experts.items() if name != teacher}
    if not config.student:
        _check_entries(place, entries, config)
    if not isinstance(store, RemoteStoreReader):
        return Source(store, entries, live, trusted=tuple(trusted), teacher=teacher)
    cache = ShardCache(store, config.data.cache_gb, fetches=world.local_rank == 0, alone=len(world.beside) == 1)
    return Source(store, entries, live, cache, tuple(trusted), teacher)


def _teacher(
    place: Path | str, config: TrainConfig, world: World, stopping: threading.Event, trusted: Sequence[str]
) -> str:
    manifest, local = _manifest(place, config.data), not is_remote(place)
    return made_teacher(manifest, config.teacher, world, stopping, local=local, trusted=trusted)


def _manifest(place: Path | str, data: DataConfig) -> Manifest:
    if is_remote(place):
        return RemoteStore(place).describe(data.cache or cache_folder(place, "cache"), None)
    return Manifest.load(Path(place))


def _check_hr(store: Store, config: TrainConfig) -> None:
    """Raises StoreError if there are no HR images and a loss needs them."""
    if list(config.losses.used) != [TEACHER]:
        store.check_hr("training")


def open_store(place: Path | str, experts: Sequence[str] | None, data: DataConfig, teacher: str | None = None) -> Store:
    """The store in a folder, or one in object storage whose shards a cache will hold; with a teacher beside experts."""
    if teacher:
        experts = [*(_manifest(place, data).answering if experts is None else experts), teacher]
    if is_remote(place):
        return RemoteStoreReader(RemoteStore(place), data.cache or cache_folder(place, "cache"), experts)
    return Store(place, experts, check=data.check)


def make_loader(source: Source, images: list[int], config: TrainConfig, world: World) -> Loader | LiveLoader:
    """This process's share of the windows of these images."""
    data, live = config.data, source.live
    check_shares(data, world.size)
    loader = Loader(
        source.store,
        sampling_of(config),
        () if live else tuple(source.entries),
        images=images,
        features=config.fusion.features,
        device=world.device,
        buffers=Buffers(data.threads, data.buffer_mib, data.ahead_mib),
        ranks=Ranks(world.rank, world.size, world.nodes, world.node, world.local_rank),
        cache=source.cache,
        teacher=source.teacher,
    )
    return LiveLoader(loader, live, config.live, crop_px=data.crop_px, seed=config.seed) if live else loader


def make_validation(
    source: Source, config: TrainConfig, run: Path, world: World
) -> tuple[list[int], Validation | None]:
    """The training images of the store, by index, and the validation on others, if there is one."""
    settings, store, experts = config.validation, source.store, tuple(source.entries)
    images = range(len(store.images))[
        : read_image_count(run)
    ]  # so that a store that grows later does not change the run
    root = settings.store or (extracted(config, source, run) if settings.hr else None)
    if root:
        training, held = list(images), Store(root, experts)
        held.check_hr("validation")
        check_apart(source.store, source.entries, held)
        scored = list(range(len(held.images)))
    else:
        held = store
        settings = held_before(run, store.images[: len(images)], settings)
        training, scored = split_images(store, settings, len(images))
        if source.cache:
            mine = {image for rank in world.beside for image in scored[rank :: world.size]}
            source.cache.pin(sorted({store.images[image].shard for image in mine}))
    if config.student:
        training = _large_enough(store, training, config.data.crop_px)
    if not scored:
        return training, None
    return training, Validation(
        held,
        scored,
        experts,
        _reader(held, source, config, world.device),
        pictures=settings.pictures,
        world=world,
        taught=held is store and source.teacher is not None,
    )


def _large_enough(store: Store, images: Sequence[int], crop_px: int) -> list[int]:
    """The images that are large enough for a crop; a student's store is often made of assorted photographs.

    raises  StoreError if there is none
    """
    fitting = [image for image in images if min(store.images[image].lr_size) >= crop_px]
    small = f"{len(images) - len(fitting)} images are smaller than data.crop_px={crop_px} LR pixels"
    if not fitting:
        raise StoreError(f"{store.root}: {small}, and no others are left to train on")
    if len(fitting) < len(images):
        log.warning("%s: %s and are left out", store.root, small)
    return fitting


def _reader(held: Store, source: Source, config: TrainConfig, device: torch.device) -> Callable[[int], WholeImage]:
    live = source.live
    if held.experts or live is None:
        teacher = source.teacher if held is source.store else None
        features = config.fusion.features
        return partial(
            read_stored, held, experts=tuple(source.entries), device=device, features=features, teacher=teacher
        )

    def answered(image: int) -> WholeImage:
        lr, hr = read_pair(held, image, device)
        return WholeImage(lr, hr, *live(lr))

    return answered


def extracted(config: TrainConfig, source: Source, run: Path) -> Path:
    """A store of the validation folders' images in the run's folder, made by the experts as the source records them."""
    # only for validation on folders; every process takes part
    from championship_sr.extract.config import ExtractConfig
    from championship_sr.extract.run.extraction import extract
    from championship_sr.store.config import build

    settings = config.validation
    first = next((entry.identity for entry in source.entries.values()), {})
    content = {
        "store": str(run / VALIDATION_STORE),
        "data": {"hr": [str(path) for path in settings.hr], "lr": [str(path) for path in settings.lr]},
        "experts": [to_plain(config) for config in _expert_configs(source)],
        "scale": source.store.scale,
        "precision": first.get("precision", "fp32"),
        "random_weights": bool(first.get("random_weights")),
        "device": config.device,
        **{key: first["tiling"][key] for key in ("tile_px", "halo_px") if "tiling" in first},
    }
    extract(build(ExtractConfig, content, "validation", "extract"))
    return run / VALIDATION_STORE


def _expert_configs(source: Source) -> list["ExpertConfig"]:
    """How the source's experts are loaded again; live ones have already been confirmed as trusted."""
    from championship_sr.extract.experts.recorded import recorded_config, store_origin

    if source.live:
        return [expert.config for expert in source.live.experts.values()]
    return [
        recorded_config(entry, store_origin(source.store.root, name, source.trusted))
        for name, entry in source.entries.items()
    ]


def sampling_of(config: TrainConfig) -> Sampling:
    """Which windows the steps of a run see."""
    data = {key: value for key, value in to_plain(config.data).items() if key in SAMPLING_KEYS}
    live = config.live
    return Sampling(
        **data, crop_px=window_px(live, config.data.crop_px) if live.enabled else config.data.crop_px, seed=config.seed
    )


def whole_batch(data: DataConfig, processes: int) -> DataConfig:
    """The same with the `batch_size` of all processes, if that of each was given."""
    return replace(data, batch_size=data.batch_per_process * processes) if data.batch_per_process else data


def check_shares(data: DataConfig, processes: int) -> None:
    """Raises ConfigError if a step's windows cannot be shared evenly."""
    if data.batch_size % (processes * data.accumulation):
        raise ConfigError(
            f"data.batch_size={data.batch_size}: cannot be shared evenly by {processes} processes "
            f"with {data.accumulation} micro-batches each"
        )


def _check_answerable(config: TrainConfig) -> None:
    if config.live.augmentations:
        raise ConfigError(
            f"live.{config.live.augmentations[0]}: a store holds the experts' outputs for the unchanged images, "
            "which do not fit changed ones. Train with --live to run the experts"
        )


def _check_entries(root: Path | str, entries: dict[str, Expert], config: TrainConfig) -> None:
    if not entries:
        raise StoreError(f"{root}: contains no experts. Run: pipeline.py extract")
    random = [name for name, entry in entries.items() if entry.identity.get("random_weights")]
    if random and not config.allow_random_weights:
        raise StoreError(
            f"{root}: {', '.join(random)} had random weights, which only serve to estimate time and size. "
            "Extract with real weights, or set train.allow_random_weights=true"
        )
