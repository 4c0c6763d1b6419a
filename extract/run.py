"""The extraction: the pairs, then one expert after the other over the shards that no record says are done."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from championship_sr.extract.config import ExpertConfig, ExtractConfig, expert_configs
from championship_sr.extract.entry import describe, fit_bases, fit_tiling
from championship_sr.extract.experts import LoadedExpert, NonFiniteError, load_expert, resolve_device
from championship_sr.extract.images import Pair
from championship_sr.extract.prepare import PairsWriter, prepare
from championship_sr.extract.progress import Progress
from championship_sr.extract.shares import Part, Rank, pixels, unless_busy, until_done
from championship_sr.extract.sink import Sink
from championship_sr.extract.tiling import Tiling, as_input, run_tiled
from championship_sr.store.codecs import get_codec
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.entries import Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import transform
from championship_sr.store.remote.bucket import is_remote
from championship_sr.store.remote.staging import Staging
from championship_sr.store.shards.reader import Store

if TYPE_CHECKING:
    from championship_sr.extract.engine_ray import RayOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertSummary:
    """What this process did for one expert."""

    shards_written: int
    lr_px: int  # of all variants
    seconds: float  # from its first forward to its last record


@dataclass(frozen=True)
class Summary:
    """What an extraction did."""

    store: str  # its folder or URL
    images: int
    shards: int  # of this part
    experts: dict[str, ExpertSummary]


def extract(
    config: ExtractConfig,
    experts: Sequence[str] = (),
    rebuild: Sequence[str] = (),
    part: Part | None = None,
    limit: int | None = None,
    staging: Path | None = None,
    cluster: "RayOptions | None" = None,
) -> Summary:
    """Fills the store: whatever its records say is done stays, the rest is made.

    experts  only these of the configuration
    rebuild  those that are made anew beside their old shards, and swapped at the end
    part     only this part's shards
    limit    a store of only the first images
    staging  the folder that the shards of a store in object storage pass through
    cluster  run the experts there instead of here
    raises   StoreError, WeightsError, ConfigError
    """
    rank = Rank.from_environment()
    device = torch.device("cpu") if cluster else resolve_device(config.device, rank.local_rank)
    if cluster:
        from championship_sr.extract.engine_ray import connect, run_on_ray  # it needs ray, an extra

        connect(cluster, rank)
    entries = expert_configs(config.experts, (*experts, *(name for name in rebuild if experts and name not in experts)))
    unknown = sorted(set(rebuild) - {entry.name for entry in entries})
    if unknown:
        raise ConfigError(f"--rebuild {unknown[0]}: not in this configuration")
    for codec in config.codecs.values():
        get_codec(codec)
    with ExitStack() as stack:
        staged = stack.enter_context(Staging(config.store, staging)) if is_remote(config.store) else None
        with rank.first_goes_first():
            manifest, pairs = _prepared(config, limit, staged, rank)
        shards = (part or Part()).shards(manifest)
        order = rank.part.shards(manifest, shards)
        order += [shard for shard in shards if shard not in order]  # then whatever the other ranks have not begun
        log.info("extract: %d images, %d of %d shards, on %s", len(pairs), len(shards), manifest.n_shards, device)
        written = stack.enter_context(PairsWriter(manifest, pairs, order, progress=rank.first))
        if staged or cluster:
            written.finish()  # uploads are one after the other, and other nodes see only what is there
        done = {}
        for entry in entries:
            job = Job(config, manifest, pairs, order, rank, device, entry.name in rebuild, written.wait)
            done[entry.name] = run_on_ray(job, entry, cluster, staging) if cluster else job.run(entry)
        manifest.flush()
    return Summary(config.store, len(pairs), len(shards), done)


def _prepared(
    config: ExtractConfig, limit: int | None, staged: Staging | None, rank: Rank
) -> tuple[Manifest, dict[str, Pair]]:
    """The store, begun or gone on with, and its pairs by image id."""
    if staged:
        staged.describe()
    manifest, pairs = prepare(
        staged.root if staged else Path(config.store),
        config.data,
        scale=config.scale,
        container=config.container,
        images_per_shard=config.images_per_shard,
        limit=limit,
        progress=rank.first,
    )
    return staged.adopt(manifest) if staged else manifest, pairs


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

    def run(self, entry: ExpertConfig) -> ExpertSummary:
        """The expert's missing shards, written; its rebuilt ones put in place if they are all there."""
        with self.load(entry) as expert:
            with self.rank.first_goes_first():
                tiling = self.register(expert)
            summary = run_expert(
                self.manifest,
                expert,
                self.order,
                tiling,
                self.config.variants,
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

    def register(self, expert: LoadedExpert) -> Tiling:
        """Makes room for the expert in the store; the tiling that was settled on."""
        config, manifest = self.config, self.manifest
        # a batch changes the last bits of a float; what the CPU makes is the same for all of them
        batch = 1 if self.device.type == "cpu" else config.batch_size
        tiling = Tiling(config.tile_px, config.halo_px, batch)
        there = None if self.rebuild else manifest.experts.get(expert.name)
        if there is not None and there.notes.get("tile_px_asked") == config.tile_px:
            tiling = replace(tiling, tile_px=there.identity["tiling"]["tile_px"])  # as small as it had to be then
        if self.device.type == "cuda":
            tiling = fit_tiling(expert, manifest.images, tiling)
        described = describe(expert, config, tiling)
        needed = manifest.needs_basis(described, self.rebuild)
        basis = fit_bases(expert, manifest, self.pairs, needed) if needed else None
        manifest.add_expert(described, rebuild=self.rebuild, basis=basis)
        return tiling


def run_expert(
    manifest: Manifest,
    expert: LoadedExpert,
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
    expert: LoadedExpert, image: Image, lr: np.ndarray, tiling: Tiling, variants: Sequence[str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Variant and what the expert makes of the image so transformed: "sr" and each tap, (1, C, rows, cols)."""
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
