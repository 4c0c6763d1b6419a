"""One expert's work: it runs over its images, shard by shard."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from championship_sr.extract.config import ExpertConfig, ExtractConfig
from championship_sr.extract.device import check_tf32
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.experts.tiling import Tiling
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.images.results import ResultImages
from championship_sr.extract.run.forwards import Forwards, on_host, views
from championship_sr.extract.run.on_device import Arriving, DeviceEncoder, made_on
from championship_sr.extract.run.progress import Progress
from championship_sr.extract.run.register import describe, fit_bases, fit_tiling, register_results
from championship_sr.extract.run.shares import Rank, pixels, unless_busy, until_done
from championship_sr.extract.run.sink import Sink
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.remote.bucket import is_remote
from championship_sr.store.remote.staging import Staging
from championship_sr.store.shards.reader import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertSummary:
    """What this process did for one expert."""

    shards_written: int
    lr_px: int  # of all variants
    seconds: float  # from its first forward to its last record


@contextmanager
def opened(config: ExtractConfig, staging: Path | None) -> Iterator[Manifest]:
    """The store that another process has prepared, as its writers see it."""
    if not is_remote(config.store):
        yield Manifest.load(Path(config.store))
        return
    with Staging(config.store, staging) as staged:
        staged.describe()
        yield staged.adopt(Manifest.load(staged.root))


@dataclass(frozen=True)
class Job:
    """One expert's run and what it needs."""

    config: ExtractConfig
    manifest: Manifest
    pairs: dict[str, Pair]
    order: list[int]
    rank: Rank
    device: torch.device
    rebuild: bool
    ready: Callable[[int], object] = lambda shard: None  # waits for a shard's pairs
    results: Mapping[str, ResultImages] = field(default_factory=dict)  # the experts that are folders of images

    def run(self, entry: ExpertConfig) -> ExpertSummary:
        """Writes the expert's missing shards, and swaps in a rebuild that is complete."""
        with self.results.get(entry.name) or self.load(entry) as expert:
            with self.rank.first_goes_first():
                tiling = self.register(expert)
            summary = run_expert(
                self.manifest,
                expert,
                self.order,
                tiling,
                ("identity",) if entry.images else self.config.variants,
                rebuild=self.rebuild,
                rank=self.rank,
                ready=self.ready,
            )
        self.rank.wait_for_all()
        if self.rank.first:
            self.settle(entry.name)
        self.rank.wait_for_all()
        return summary

    def load(self, entry: ExpertConfig) -> LoadedExpert:
        """The expert on this process's device."""
        config = self.config
        check_tf32(config.precision, self.device)
        return load_expert(
            entry,
            self.device,
            config.scale,
            config.random_weights,
            precision=config.precision,
            channels_last=config.channels_last,
            compiled=config.compile,
        )

    def settle(self, name: str) -> None:
        """Puts a rebuilt expert in its place, if all of its shards are there."""
        if not self.rebuild:
            return
        if self.manifest.missing_shards(name, rebuild=True):
            log.info("%s: the old shards are kept until every part is rebuilt", name)
        else:
            self.manifest.swap_rebuilt(name)

    def register(self, expert: LoadedExpert | ResultImages) -> Tiling:
        """Makes room for the expert in the store and returns the tiling that was chosen."""
        config, manifest = self.config, self.manifest
        if isinstance(expert, ResultImages):
            register_results(expert, config, manifest, self.rebuild)
            return Tiling(config.tile_px, config.halo_px)
        # a batch changes the last bits of a float; what the CPU makes is the same for all of them
        batch = 1 if self.device.type == "cpu" else config.batch_size
        tiling = Tiling(config.tile_px, config.halo_px, batch)
        there = None if self.rebuild else manifest.experts.get(expert.name)
        if there is not None and there.notes.get("tile_px_asked") == config.tile_px:
            tiling = replace(tiling, tile_px=there.identity["tiling"]["tile_px"])  # as small as it had to be then
        if self.device.type == "cuda":
            tiling = fit_tiling(expert, manifest.images, tiling)
        described = describe(expert, config, tiling, there)
        needed = manifest.needs_basis(described, self.rebuild)
        basis = fit_bases(expert, manifest, self.pairs, needed) if needed else None
        manifest.add_expert(described, rebuild=self.rebuild, basis=basis)
        return tiling


def run_expert(
    manifest: Manifest,
    expert: LoadedExpert | ResultImages,
    shards: list[int],
    tiling: Tiling,
    variants: Sequence[str] = ("identity",),
    *,
    rebuild: bool = False,
    rank: Rank = Rank(),  # noqa: B008 (frozen)
    ready: Callable[[int], object] = lambda shard: None,
) -> ExpertSummary:
    """Writes the expert's shards that are not there yet; its entry must be in the store already.

    ready   waits for a shard's pairs
    raises  StoreError naming the image whose output is not finite, or for which memory is too small
    """
    store = Store(manifest.root, experts=(), whole=False)
    index = {image.id: i for i, image in enumerate(store.images)}

    def missing() -> list[int]:
        sink.flush()
        return manifest.missing_shards(expert.name, rebuild)

    started, told = time.monotonic(), list[str]()
    encoder = device_encoder(expert, manifest, rebuild)
    device = None
    if encoder and not isinstance(expert, ResultImages):
        device = made_on(expert.device, tiling.batch_size, expert.precision)
    with (
        Sink(manifest, expert.name, rebuild, device) as sink,
        Progress(manifest, expert.name, shards, len(variants), rebuild, rank) as progress,
        torch.inference_mode(),
    ):
        for shard in until_done(missing, shards):
            ready(shard)
            with unless_busy(told, expected=rank.world_size > 1):
                sink.open(shard)
                with manifest.needed(PAIRS, shard):
                    ids = [image.id for image in manifest.images_of(shard)]
                    images = [(image_id, store.array(index[image_id], PAIRS, "lr").load()) for image_id in ids]
                store.forget(PAIRS, shard)
                if isinstance(expert, ResultImages):
                    sink.made_from({image_id: expert.digests[image_id] for image_id in ids})
                for image_id, variant, outputs in _outputs(expert, images, tiling, variants, encoder, sink):
                    sink.add(image_id, outputs, variant)
                    progress.advance(prod(store.images[index[image_id]].lr_size))
                sink.close()
                progress.own(shard)
        sink.flush()
    manifest.flush()
    lr_px = sum(pixels(manifest, shard) for shard in sink.published) * len(variants)
    return ExpertSummary(len(sink.published), lr_px, time.monotonic() - started)


def _outputs(
    expert: LoadedExpert | ResultImages,
    images: Sequence[tuple[str, np.ndarray]],
    tiling: Tiling,
    variants: Sequence[str],
    encoder: DeviceEncoder | None,
    sink: Sink,
) -> Iterator[tuple[str, str, dict[str, Tensor] | Arriving]]:
    """Image, variant and its outputs: "sr" and each tap, (1, C, rows, cols), or their encoded arrays."""
    if isinstance(expert, ResultImages):
        yield from ((image_id, "identity", {"sr": expert.given(image_id).image}) for image_id, _ in images)
        return
    if encoder:
        forwards = Forwards(expert, tiling, encoder, sink.made_in_batches_of)
        for view, outputs in forwards.of_shard(views(images, variants)):
            yield view.image_id, view.variant, outputs
        return
    for view in views(images, variants):
        yield view.image_id, view.variant, on_host(expert, view, tiling)


def device_encoder(
    expert: LoadedExpert | ResultImages, manifest: Manifest, rebuild: bool = False
) -> DeviceEncoder | None:
    """The encoder of the expert's outputs on its device; None on the CPU, where the writers encode."""
    if isinstance(expert, ResultImages) or expert.device.type == "cpu":
        return None
    return DeviceEncoder(expert.device, manifest.specs(expert.name, rebuild), manifest.basis(expert.name, rebuild))
