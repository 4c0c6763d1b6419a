"""Pairs on disk -> the store's list of images and its `pairs` shards; every file is decoded before any expert runs."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from championship_sr.extract.config import DataConfig
from championship_sr.extract.images.identify import SOURCES_FILE, _identify, _read_sources, in_threads, sha256_of
from championship_sr.extract.images.pairs import Pair, find_pairs, joined
from championship_sr.extract.run.shares import until_done
from championship_sr.store.disk import leases
from championship_sr.store.disk.files import write_atomic
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import LOCK_FILE, Manifest, assign_shards
from championship_sr.store.shards.writer import write_shard

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01


def prepare(
    root: Path,
    data: DataConfig,
    *,
    scale: int,
    container: str,
    images_per_shard: int,
    limit: int | None = None,
    progress: bool = True,
) -> tuple[Manifest, dict[str, Pair]]:
    """The store of these images, made or gone on with, and its pairs by image id.

    limit    only the first of the images
    raises   StoreError listing every image that does not fit, or naming what the store in `root` has differently
    """
    faults: list[str] = []
    pairs = find_pairs(data, scale, left_out=faults)[:limit]
    known = _read_sources(root)
    sources = _identify(pairs, known, faults, progress)
    if faults:
        raise StoreError(joined(faults))
    images = assign_shards(
        (
            Image(
                id=pair.id,
                name=pair.name,
                lr_size=sources[pair.id].lr_size,
                lr_sha256=sources[pair.id].lr_sha256,
                hr_sha256=sources[pair.id].hr_sha256,
                shard=0,
                lr_source=pair.lr_source,
            )
            for pair in pairs
        ),
        images_per_shard,
    )
    manifest = Manifest.create(root, scale=scale, container=container, images=images)
    if sources != known:
        content = {name: asdict(source) for name, source in sources.items()}
        with leases.held(root / LOCK_FILE, wait=True):  # of many processes that begin at once
            write_atomic(root / SOURCES_FILE, json.dumps(content).encode())
    return manifest, {pair.id: pair for pair in pairs}


class PairsWriter:
    """Writes the shards of LR and HR images that are not there yet, in a thread, while experts read those that are.

    A `with` block around the experts. What goes wrong in the thread, such as a file that is no longer what it was when
    the store was made, is raised by `wait`, `finish` and at the end of the block; an exception in it stops the thread.
    """

    def __init__(self, manifest: Manifest, pairs: dict[str, Pair], shards: list[int], progress: bool = True) -> None:
        self._manifest, self._pairs, self._shards, self._progress = manifest, pairs, shards, progress
        self._stopped = False

    def wait(self, shard: int) -> None:
        """Returns when the shard's pairs are there."""
        while not self._manifest.is_recorded(PAIRS, shard) and not self._written.done():
            time.sleep(POLL_SECONDS)
        if self._written.done():
            self._written.result()

    def finish(self) -> None:
        """Returns when all pairs are there."""
        self._written.result()

    def __enter__(self) -> "PairsWriter":
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pairs")
        self._written = self._pool.submit(self._write)
        return self

    def __exit__(self, kind: type | None, *_exception: object) -> None:
        self._stopped = kind is not None
        self._pool.shutdown()
        if kind is None:
            self.finish()

    def _write(self) -> None:
        missing = set(self._manifest.missing_shards(PAIRS)) & set(self._shards)
        total = sum(len(self._manifest.images_of(shard)) for shard in missing)
        with tqdm(total=total, desc="pairs", unit="image", disable=None if self._progress else True) as bar:
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
                if (sha256_of(lr), sha256_of(hr)) != (image.lr_sha256, image.hr_sha256):
                    hr_path = self._pairs[image.id].hr
                    raise StoreError(f"{hr_path}: changed while the store was being made; run the command again")
                out.add(image.id, {"lr": lr, "hr": hr})
                bar.update()
