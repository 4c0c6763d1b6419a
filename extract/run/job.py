"""One expert's work: its images through it, a shard at a time."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from championship_sr.extract.config import ExpertConfig, ExtractConfig
from championship_sr.extract.device import check_tf32
from championship_sr.extract.experts.expert import LoadedExpert, NonFiniteError, load_expert
from championship_sr.extract.experts.tiling import Tiling, as_input, run_tiled
from championship_sr.extract.images.pairs import Pair
from championship_sr.extract.images.results import ResultImages
from championship_sr.extract.run.progress import Progress
from championship_sr.extract.run.register import describe, fit_bases, fit_tiling, register_results
from championship_sr.extract.run.shares import Rank, pixels, unless_busy, until_done
from championship_sr.extract.run.sink import Sink
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import transform
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
    ready: Callable[[int], object] = lambda shard: None  # returns when a shard's pairs are there
    results: Mapping[str, ResultImages] = field(default_factory=dict)  # the experts that are folders of images

    def run(self, entry: ExpertConfig) -> ExpertSummary:
        """The expert's missing shards, written; its rebuilt ones put in place if they are all there."""
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
            log.info("%s: the old shards stay until every part is rebuilt", name)
        else:
            self.manifest.swap_rebuilt(name)

    def register(self, expert: LoadedExpert | ResultImages) -> Tiling:
        """Makes room for the expert in the store; the tiling that was settled on."""
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

    ready   returns when a shard's pairs are there
    raises  StoreError naming the image whose output is not finite, or for which memory is too small
    """
    store = Store(manifest.root, experts=(), whole=False)
    index = {image.id: i for i, image in enumerate(store.images)}

    def missing() -> list[int]:
        sink.flush()
        return manifest.missing_shards(expert.name, rebuild)

    started, told = time.monotonic(), []
    with (
        Sink(manifest, expert.name, rebuild) as sink,
        Progress(manifest, expert.name, shards, len(variants), rebuild, rank) as progress,
        torch.inference_mode(),
    ):
        for shard in until_done(missing, shards):
            ready(shard)
            with unless_busy(told, expected=rank.world_size > 1):
                sink.open(shard)
                with manifest.needed(PAIRS, shard):
                    images = [(i, store.array(index[i.id], PAIRS, "lr").load()) for i in manifest.images_of(shard)]
                store.forget(PAIRS, shard)
                if isinstance(expert, ResultImages):
                    sink.made_from({image.id: expert.digests[image.id] for image, _ in images})
                for image, lr in images:
                    for variant, outputs in _outputs(expert, image, lr, tiling, variants):
                        sink.add(image.id, outputs, variant)
                        progress.advance(lr.shape[0] * lr.shape[1])
                sink.close()
                progress.own(shard)
        sink.flush()
    manifest.flush()
    lr_px = sum(pixels(manifest, shard) for shard in sink.published) * len(variants)
    return ExpertSummary(len(sink.published), lr_px, time.monotonic() - started)


def _outputs(
    expert: LoadedExpert | ResultImages, image: Image, lr: np.ndarray, tiling: Tiling, variants: Sequence[str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Variant and what the expert makes of the image so transformed: "sr" and each tap, (1, C, rows, cols)."""
    if isinstance(expert, ResultImages):
        yield "identity", {"sr": expert.given(image.id).image}
        return
    for variant in variants:
        try:
            sr, features = _run(expert, as_input(transform(lr, variant)), tiling)
        except NonFiniteError as error:
            again = "" if expert.precision == "fp32" else f" and run again with --rebuild {expert.name}"
            raise StoreError(f"image {image.id}: {error}{again}") from None
        except torch.OutOfMemoryError:
            raise StoreError(
                f"image {image.id}: out of memory on {expert.device} with one tile of {tiling.tile_px} px at a time; "
                "free the device and run the same command again, or set a smaller extract.tile_px with --rebuild"
            ) from None
        yield variant, {"sr": sr} | features


def _run(expert: LoadedExpert, lr: Tensor, tiling: Tiling) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole image's outputs; with smaller and smaller batches of tiles while memory is too small."""
    while True:
        try:
            return run_tiled(expert, lr, tiling.tile_px, tiling.halo_px, tiling.batch_size)
        except torch.OutOfMemoryError:
            if tiling.batch_size == 1:  # the tile is part of the store's identity and cannot change any more
                raise
            tiling = tiling.halved()
            log.warning("%s: out of memory; going on with %d tiles at a time", expert.name, tiling.batch_size)
        torch.cuda.empty_cache()
