"""The images a run has seen, recorded by their contents so that they are recognised in any store or folder.

images.jsonl    one line an image: id, use (training | validation), hr_sha256, lr_sha256
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.manifest import Manifest
from championship_sr.train.config import ValidationConfig
from championship_sr.train.held_out import split_images, spread
from championship_sr.train.records.checkpoint import folders
from championship_sr.train.records.folder import CONFIG_FILE, RUN_FILE, read_config, read_image_count, read_store

log = logging.getLogger(__name__)

SEEN_FILE, SEEN_MIB = "images.jsonl", 1024  # 200 MB for a million images
Use = Literal["training", "validation"]
USES: tuple[Use, ...] = ("validation", "training")  # the later use counts for an image that has both


def write_seen(run: Path, images: Mapping[Use, Sequence[Image]]) -> None:
    """Records the images that are trained on, and those that checkpoints are chosen by."""
    lines = [
        json.dumps({"id": image.id, "use": use, "hr_sha256": image.hr_sha256, "lr_sha256": image.lr_sha256}) + "\n"
        for use, several in images.items()
        for image in several
    ]
    with files.written(run / SEEN_FILE):
        files.write_atomic(run / SEEN_FILE, "".join(lines).encode(errors="surrogatepass"))


class Seen:
    """The images of a run by the sha256 of their pixels."""

    def __init__(self, lines: Iterable[tuple[Use, str | None, str]]) -> None:
        self._uses: dict[str, Use] = {}
        for use, *digests in sorted(lines, key=lambda line: USES.index(line[0])):
            self._uses |= dict.fromkeys(filter(None, digests), use)

    def use_of(self, hr_sha256: str | None, lr_sha256: str) -> Use | None:
        """What the run did with an image of this HR or this LR; None if it saw neither."""
        uses = {self._uses.get(digest) for digest in (hr_sha256, lr_sha256) if digest}
        return next((use for use in reversed(USES) if use in uses), None)


def read_seen(run: Path) -> Seen | None:
    """The images that the run saw; without a record, those of its store, or None if the store is gone.

    raises  StoreError if the record is damaged
    """
    lines = _read(run)
    return _of_store(run) if lines is None else Seen([(use, hr, lr) for _, use, hr, lr in lines])


def _read(run: Path) -> list[tuple[str, Use, str | None, str]] | None:
    """(id, use, sha256 of HR and LR) of each image; None of a run without a record."""
    path = run / SEEN_FILE
    if not path.exists():
        return None
    try:
        lines = [parse_json(line) for line in read_small(path, SEEN_MIB).splitlines()]
        return [(line["id"], line["use"], line["hr_sha256"], line["lr_sha256"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged ({type(error).__name__}: {error}); copy it again from the run") from None


def held_before(run: Path, images: Sequence[Image], settings: ValidationConfig) -> ValidationConfig:
    """The settings with the ids that a continued run already holds out, however they were chosen.

    images  those of the store that the run knows
    """
    if settings.images or not folders(run):
        return settings
    lines = _read(run)
    recorded = None if lines is None else tuple(name for name, use, *_ in lines if use == "validation")
    ids = spread(images, settings.hold_out) if recorded is None else recorded
    same = len(ids) == min(settings.hold_out, len(images)) and set(ids) <= {image.id for image in images}
    return replace(settings, images=ids) if same else settings


def _of_store(run: Path) -> Seen | None:
    if not (run / RUN_FILE).exists() or not (run / CONFIG_FILE).exists():
        return None  # exported before runs had such a record
    try:
        manifest, settings = Manifest.load(Path(read_store(run))), read_config(run).validation
        count = read_image_count(run)
        images = manifest.images[:count]
        as_then = replace(settings, images=settings.images or spread(images, settings.hold_out))
        apart = settings.store or settings.hr
        training, held = (range(len(images)), ()) if apart else split_images(manifest, as_then, count)
    except (StoreError, ConfigError, OSError) as error:
        log.info("%s: its training images are unknown: %s", run, error)
        return None
    uses: dict[Use, Sequence[int]] = {"training": training, "validation": held}
    return Seen([(use, images[i].hr_sha256, images[i].lr_sha256) for use, several in uses.items() for i in several])
