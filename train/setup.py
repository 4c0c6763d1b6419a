"""What a run is fed with: its store, its windows, and the images that it is scored on."""

from pathlib import Path

from store.config import to_plain
from store.errors import ConfigError, StoreError
from store.reader import Store
from train.config import DataConfig, TrainConfig
from train.distributed import World
from train.loader import Loader
from train.validate import Validation, check_apart, split_images

LOADER_KEYS = (
    "batch_size",
    "crop_px",
    "augment",
    "repeat_factor",
    "weighting",
    "crops_per_visit",
    "pool_visits",
    "threads",
    "buffer_mib",
    "ahead_mib",
)


def open_store(root: Path, config: TrainConfig) -> Store:
    """The store, whole for the experts that the configuration names.

    raises  StoreError if one is missing or has random weights
    """
    store = Store(root, config.experts or None)
    if not store.experts:
        raise StoreError(f"{root}: no experts in it. Run: pipeline.py extract")
    random = [name for name, entry in store.experts.items() if entry.identity.get("random_weights")]
    if random and not config.allow_random_weights:
        raise StoreError(
            f"{root}: {', '.join(random)} had random weights, which is for sizing a run. "
            "Extract with real weights, or set train.allow_random_weights=true"
        )
    return store


def make_loader(store: Store, images: list[int], config: TrainConfig, world: World) -> Loader:
    """This process's share of the windows of these images."""
    check_shares(config.data, world.size)
    return Loader(
        store,
        tuple(store.experts),
        images=images,
        features=config.fusion.features,
        device=world.device,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        **loader_options(config.data),
    )


def make_validation(store: Store, config: TrainConfig, world: World) -> tuple[list[int], Validation]:
    """The training images of the store, by index, and the validation on others."""
    experts, settings = tuple(store.experts), config.validation
    if settings.store:
        training, held = list(range(len(store.images))), Store(settings.store, experts)
        check_apart(store, held, experts)
        scored = list(range(len(held.images)))
    else:
        held = store
        training, scored = split_images(store, settings)
    features = config.fusion.features
    return training, Validation(held, scored, experts, features=features, pictures=settings.pictures, world=world)


def loader_options(data: DataConfig) -> dict:
    """The part of the configuration that the loader takes."""
    return {key: value for key, value in to_plain(data).items() if key in LOADER_KEYS}


def check_shares(data: DataConfig, processes: int) -> None:
    """Raises ConfigError if a step's windows can't be shared evenly."""
    if data.batch_size % (processes * data.accumulation):
        raise ConfigError(
            f"data.batch_size={data.batch_size}: cannot be shared evenly by {processes} processes "
            f"with {data.accumulation} micro-batches each"
        )
