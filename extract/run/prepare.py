"""Pairs on disk -> the store's list of images and its `pairs` shards; every file is decoded before any expert runs."""

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from championship_sr.extract.config import ExpertConfig, ImagesConfig
from championship_sr.extract.images.identify import SourceFiles, digests, identify, in_threads, read_sources
from championship_sr.extract.images.pairs import Pair, find_pairs, joined
from championship_sr.extract.images.results import (
    ResultImages,
    asked_of,
    match_results,
    warn_of_artefacts,
)
from championship_sr.extract.run.shares import until_done
from championship_sr.store.disk import leases
from championship_sr.store.disk.files import write_atomic
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.description import assign_shards
from championship_sr.store.format.entries import STORE_FILE, Image
from championship_sr.store.format.layout import LOCK_FILE, PAIRS, SOURCES_FILE
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.progress import progress
from championship_sr.store.shards.writer import write_shard

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01
NO_GROWTH = (
    "the store has {there} of these {given} images, and in object storage none grows: extract into a local "
    "store, which does, and push that to a URL of its own"
)


class Prepared(NamedTuple):
    """A store and what its shards are made from: image id -> pair, and the experts that are folders of images."""

    manifest: Manifest
    pairs: dict[str, Pair]
    results: dict[str, ResultImages]


def prepare(
    root: Path,
    data: ImagesConfig,
    *,
    scale: int,
    container: str,
    images_per_shard: int,
    limit: int | None = None,
    grow: bool = True,
    results: Sequence[ExpertConfig] = (),
    first: bool = True,
) -> Prepared:
    """The store of these images, new or continued, and what it is filled from.

    limit    only the first of the images
    grow     append the missing images to a store of some of them, in shards of their own
    results  experts that are folders of images; each must have one for every image
    raises   StoreError listing every image that does not fit, or naming what the store in `root` has differently
    """
    faults: list[str] = []
    pairs = find_pairs(data, scale, left_out=faults)[:limit]
    known = read_sources(root)
    asked = asked_of(pairs)
    files = {entry.name: match_results(entry, asked, scale, faults) for entry in results}
    sources = identify(pairs, files, known, faults, first)
    if faults:
        raise StoreError(joined(faults))
    warn_of_artefacts({name: {id_: sources[id_].results[name] for id_ in files[name]} for name in files})
    there = Manifest.load(root).images if (root / STORE_FILE).exists() else ()
    if there and not grow and {image.id for image in there} < sources.keys():
        raise StoreError(NO_GROWTH.format(there=len(there), given=len(pairs)))
    images = arranged(there, [_image(pair, sources[pair.id]) for pair in pairs], images_per_shard)
    manifest = Manifest.create(root, scale=scale, container=container, images=images, grow=grow)
    if sources != known:
        _save_sources(root, sources)
    digests = {name: {id_: sources[id_].results[name].sha256 for id_ in files[name]} for name in files}
    made = {entry.name: ResultImages(entry, scale, files[entry.name], digests[entry.name]) for entry in results}
    return Prepared(manifest, {pair.id: pair for pair in pairs}, made)


def _save_sources(root: Path, sources: dict[str, SourceFiles]) -> None:
    content = {name: asdict(source) for name, source in sources.items()}
    with leases.held(root / LOCK_FILE, wait=True):  # of many processes that begin at once
        write_atomic(root / SOURCES_FILE, json.dumps(content).encode())


def _image(pair: Pair, source: SourceFiles) -> Image:
    return Image(
        id=pair.id,
        name=pair.name,
        lr_size=source.lr_size,
        lr_sha256=source.lr_sha256,
        hr_sha256=source.hr_sha256,
        shard=0,
        lr_source=pair.lr_source,
    )


def arranged(there: Sequence[Image], images: Sequence[Image], images_per_shard: int) -> tuple[Image, ...]:
    """The images with shard numbers: those of the store keep theirs, new ones come after them."""
    if not there:
        return assign_shards(images, images_per_shard)
    by_id, old = {image.id: image for image in images}, {image.id for image in there}
    stay = (replace(by_id[image.id], shard=image.shard) for image in there if image.id in by_id)
    new = assign_shards((image for image in images if image.id not in old), images_per_shard)
    first = 1 + max(image.shard for image in there)
    return (*stay, *(replace(image, shard=first + image.shard) for image in new))


class PairsWriter:
    """Writes the shards of LR and HR images that are not there yet, in a thread, while experts read those that are.

    A `with` block around the experts. The thread begins when the first shard is waited for, so that nothing is written
    for an expert that cannot be loaded. What goes wrong in it, such as a file that is no longer what it was when the
    store was made, is raised by `wait`, `finish` and at the end of the block; an exception in the block stops it.
    """

    def __init__(self, manifest: Manifest, pairs: dict[str, Pair], shards: list[int], first: bool = True) -> None:
        self._manifest, self._pairs, self._shards, self._first = manifest, pairs, shards, first
        self._stopped = False
        self._thread: Future | None = None

    def wait(self, shard: int) -> None:
        """Waits for the shard's pairs."""
        written = self._written()
        while not self._manifest.is_recorded(PAIRS, shard) and not written.done():
            time.sleep(POLL_SECONDS)
        if written.done():
            written.result()

    def finish(self) -> None:
        """Waits for all pairs."""
        self._written().result()

    def __enter__(self) -> "PairsWriter":
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pairs")
        return self

    def __exit__(self, kind: type | None, *_exception: object) -> None:
        self._stopped = kind is not None
        if kind is None:
            self._written()
        self._pool.shutdown()
        if kind is None:
            self.finish()

    def _written(self) -> Future:
        if self._thread is None:
            self._thread = self._pool.submit(self._write)
        return self._thread

    def _write(self) -> None:
        missing = set(self._manifest.missing_shards(PAIRS)) & set(self._shards)
        total = sum(len(self._manifest.images_of(shard)) for shard in missing)
        with progress(total=total, desc="pairs", unit="image", first=self._first) as bar:
            for shard in until_done(lambda: self._manifest.missing_shards(PAIRS), self._shards):
                with suppress(ShardBusy):
                    self._write_shard(shard, bar)
                if self._stopped:
                    return

    def _write_shard(self, shard: int, bar: tqdm) -> None:
        images = self._manifest.images_of(shard)
        with write_shard(self._manifest, PAIRS, shard) as out:
            read = in_threads(lambda image: self._pairs[image.id].read(), images)
            for image, (lr, hr) in zip(images, read, strict=True):
                if digests(lr, hr) != (image.lr_sha256, image.hr_sha256):
                    path = self._pairs[image.id].path
                    raise StoreError(f"{path}: changed while the store was being made; run the command again")
                out.add(image.id, {"lr": lr} | ({} if hr is None else {"hr": hr}))
                bar.update()
