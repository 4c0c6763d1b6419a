"""Which images are held out of training, and a check that another store's images are not among those trained on."""

import hashlib
from collections.abc import Mapping, Sequence

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Expert, Image
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import ValidationConfig

DECIDING = ("architecture", "hyperparameters", "weights_sha256", "taps")  # the keys by which two experts are the same


def split_images(
    store: Store | Manifest, config: ValidationConfig, count: int | None = None
) -> tuple[list[int], list[int]]:
    """(training, validation) images of one store, by index; none is in both.

    `hold_out` images are those of the lowest hashes. In a store that has grown they are new or were held out before: a
    later run never holds out what an earlier one was trained on.

    count   only the first so many of the store; None: all
    raises  ConfigError if an id is not in the store or nothing is left to train on
    """
    index = {image.id: number for number, image in enumerate(store.images[:count])}
    unknown = [name for name in config.images if name not in index]
    if unknown:
        raise ConfigError(f"validation.images: {store.root} has no image {', '.join(unknown[:3])}")
    if config.images:
        chosen = {index[name] for name in config.images}
    else:
        chosen = {index[name] for name in sorted(index, key=_hash)[: config.hold_out]}
    left = [number for number in range(len(index)) if number not in chosen]
    if not left:
        raise ConfigError(
            f"validation: all {len(index)} images of {store.root} are held out and none is left to train on; "
            "lower validation.hold_out, or give another store with validation.store"
        )
    return left, sorted(chosen)


def _hash(image_id: str) -> bytes:
    return hashlib.sha256(image_id.encode(errors="surrogatepass")).digest()


def spread(images: Sequence[Image], hold_out: int) -> tuple[str, ...]:
    """The ids of `count` images, spread over the store, which runs without a record of their images hold out."""
    held = min(hold_out, len(images))
    return tuple(images[int((number + 0.5) * len(images) / held)].id for number in range(held))


def check_apart(training: Store, experts: Mapping[str, Expert], validation: Store) -> None:
    """Raises StoreError if a validation store shares an image with the training store or has other experts."""
    if training.scale != validation.scale:
        raise StoreError(f"{validation.root}: scale {validation.scale}; the training store has {training.scale}")
    known = {image.hr_sha256 for image in training.images}
    shared = [image.id for image in validation.images if image.hr_sha256 in known]
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise StoreError(f"{validation.root}: contains images that are also trained on: {', '.join(shared[:3])}{more}")
    for name, mine in experts.items():
        theirs = validation.experts[name]
        differing = [key for key in DECIDING if mine.identity.get(key) != theirs.identity.get(key)]
        if differing:
            raise StoreError(
                f"{validation.root}: its {name} differs from the training store's in {', '.join(differing)}"
            )
