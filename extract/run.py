"""The extraction: the pairs, then one expert after the other over the shards that no record says are done."""

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from extract.config import ExpertConfig, ExtractConfig, expert_configs
from extract.experts import LoadedExpert, NonFiniteError, load_expert, resolve_device
from extract.images import Pair
from extract.prepare import prepare, write_pairs
from extract.shares import Part, Rank, pixels, until_done
from extract.sink import Sink
from extract.tiling import Tiling, run_tiled
from store.codecs import Params, fit_pca, get_codec
from store.config import to_plain
from store.errors import ConfigError, StoreError
from store.files import ShardBusy
from store.layout import PAIRS, transform
from store.manifest import ArraySpec, Expert, Image, Manifest
from store.reader import Store

log = logging.getLogger(__name__)

DEFAULT_CODEC = "float16"
BASIS_IMAGES, BASIS_PX = 32, 64  # the windows that a codec with principal components is fitted on
ADVICE = "set extract.precision to bf16 or fp32 and run again with --rebuild {name}"


@dataclass(frozen=True)
class ExpertSummary:
    """What this process did for one expert."""

    shards_written: int
    lr_px: int  # of all variants
    seconds: float  # from its first forward to its last record


@dataclass(frozen=True)
class Summary:
    """What an extraction did."""

    store: Path
    images: int
    shards: int  # of this part
    experts: dict[str, ExpertSummary]


def extract(
    config: ExtractConfig,
    experts: Sequence[str] = (),
    rebuild: Sequence[str] = (),
    part: Part | None = None,
    limit: int | None = None,
) -> Summary:
    """Fills the store: whatever its records say is done stays, the rest is made.

    experts  only these of the configuration
    rebuild  those that are made anew beside their old shards, and swapped at the end
    part     only this part's shards
    limit    a store of only the first images
    raises   StoreError, WeightsError, ConfigError
    """
    rank = Rank.from_environment()
    device = resolve_device(config.device, rank.local_rank)
    entries = expert_configs(config.experts, (*experts, *(name for name in rebuild if experts and name not in experts)))
    unknown = sorted(set(rebuild) - {entry.name for entry in entries})
    if unknown:
        raise ConfigError(f"--rebuild {unknown[0]}: not in this configuration")
    for codec in config.codecs.values():
        get_codec(codec)
    with rank.first_goes_first():
        manifest, pairs = prepare(
            Path(config.store),
            config.data,
            scale=config.scale,
            container=config.container,
            images_per_shard=config.images_per_shard,
            limit=limit,
        )
    shards = (part or Part()).shards(manifest)
    order = rank.part.shards(manifest, shards)
    order += [shard for shard in shards if shard not in order]  # then whatever the other ranks have not begun
    log.info("extract: %d images, %d of %d shards, on %s", len(pairs), len(shards), manifest.n_shards, device)
    write_pairs(manifest, pairs, order, progress=rank.first)
    done = {}
    for entry in entries:
        job = _Job(config, manifest, pairs, order, rank, device, entry.name in rebuild)
        done[entry.name] = job.run(entry)
    return Summary(manifest.root, len(pairs), len(shards), done)


@dataclass(frozen=True)
class _Job:
    """One expert's run and what it needs."""

    config: ExtractConfig
    manifest: Manifest
    pairs: dict[str, Pair]
    order: list[int]
    rank: Rank
    device: torch.device
    rebuild: bool

    def run(self, entry: ExpertConfig) -> ExpertSummary:
        """The expert's missing shards, written; its rebuilt ones put in place if they are all there."""
        config, manifest = self.config, self.manifest
        with load_expert(
            entry,
            self.device,
            config.scale,
            config.random_weights,
            precision=config.precision,
            channels_last=config.channels_last,
            compiled=config.compile,
        ) as expert:
            with self.rank.first_goes_first():
                tiling = self._register(expert)
            summary = run_expert(
                manifest, expert, self.order, tiling, config.variants, rebuild=self.rebuild, rank=self.rank
            )
        self.rank.wait_for_all()
        if self.rebuild and self.rank.first:
            if manifest.missing_shards(entry.name, rebuild=True):
                log.info("%s: the old shards stay until every part is rebuilt", entry.name)
            else:
                manifest.swap_rebuilt(entry.name)
        self.rank.wait_for_all()
        return summary

    def _register(self, expert: LoadedExpert) -> Tiling:
        """Makes room for the expert in the store; the tiling that was settled on."""
        config, manifest = self.config, self.manifest
        tiling = Tiling(config.tile_px, config.halo_px, config.batch_size)
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


def describe(expert: LoadedExpert, config: ExtractConfig, tiling: Tiling) -> Expert:
    """The expert as the store records it."""
    codec = config.codecs.get
    arrays = [ArraySpec("sr", 3, expert.scale, codec("sr", DEFAULT_CODEC))]
    arrays += [ArraySpec(name, n, 1, codec(name, DEFAULT_CODEC)) for name, n in expert.channels.items()]
    identity = {
        **expert.identity,
        "tiling": {"tile_px": tiling.tile_px, "halo_px": tiling.halo_px},
        "variants": list(config.variants),
    }
    notes = {
        "config": to_plain(expert.config),
        "parameters": expert.n_parameters,
        "tile_px_asked": config.tile_px,
        "batch_size": tiling.batch_size,
        "device": str(expert.device),
        "host": platform.node(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return Expert(expert.name, tuple(arrays), identity, notes)


def run_expert(
    manifest: Manifest,
    expert: LoadedExpert,
    shards: list[int],
    tiling: Tiling,
    variants: Sequence[str] = ("identity",),
    *,
    rebuild: bool = False,
    rank: Rank = Rank(),  # noqa: B008 (frozen)
) -> ExpertSummary:
    """Writes the expert's shards that are not there yet; its entry must be in the store already.

    raises  StoreError naming the image whose output is not finite, or for which memory is too small
    """
    store = Store(manifest.root, experts=(), whole=False)
    index = {image.id: i for i, image in enumerate(store.images)}

    def missing() -> list[int]:
        sink.flush()
        return manifest.missing_shards(expert.name, rebuild)

    started, written, lr_px = time.monotonic(), 0, 0
    with (
        Sink(manifest, expert.name, rebuild) as sink,
        _Progress(manifest, expert.name, shards, len(variants), rebuild, rank) as progress,
        torch.inference_mode(),
    ):
        for shard in until_done(missing, shards):
            with suppress(ShardBusy):
                sink.open(shard)
                for image in manifest.images_of(shard):
                    lr = store.array(index[image.id], PAIRS, "lr").load()
                    for variant, outputs in _outputs(expert, image, lr, tiling, variants):
                        sink.add(image.id, outputs, variant)
                        progress.advance(lr.shape[0] * lr.shape[1])
                sink.close()
                written, lr_px = written + 1, lr_px + pixels(manifest, shard) * len(variants)
                progress.own(shard)
        sink.flush()
    return ExpertSummary(written, lr_px, time.monotonic() - started)


def as_input(lr: np.ndarray) -> Tensor:
    """A stored LR image (h, w, 3) uint8 as (1, 3, h, w) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(lr)).permute(2, 0, 1)[None].float() / 255


def _outputs(
    expert: LoadedExpert, image: Image, lr: np.ndarray, tiling: Tiling, variants: Sequence[str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Variant and what the expert makes of the image so transformed: "sr" and each tap, (1, C, rows, cols)."""
    for variant in variants:
        try:
            sr, features = _run(expert, as_input(transform(lr, variant)), tiling)
        except NonFiniteError as error:
            advice = ADVICE.format(name=expert.name) if expert.precision != "fp32" else "the weights may be damaged"
            raise StoreError(f"image {image.id}: {error}; {advice}") from None
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


def fit_tiling(expert: LoadedExpert, images: Sequence[Image], tiling: Tiling) -> Tiling:
    """The tiling, halved until the largest image runs in the device's memory; tried before anything is recorded.

    raises  StoreError if even the smallest tile is too large
    """
    while True:
        sides = [[min(n, tiling.tile_px) for n in image.lr_size] for image in images]
        height, width = max(sides, key=lambda side: side[0] * side[1])
        tiled = any(max(image.lr_size) > tiling.tile_px for image in images)
        try:
            with torch.inference_mode():
                expert(torch.zeros(tiling.batch_size if tiled else 1, 3, height, width))
            return tiling
        except torch.OutOfMemoryError:
            smaller = tiling.halved()
        torch.cuda.empty_cache()
        if smaller is None:
            raise StoreError(f"expert {expert.name}: out of memory on {expert.device} even with {tiling}")
        log.warning("%s: out of memory with %s; going on with %s", expert.name, tiling, smaller)
        tiling = smaller


def fit_bases(
    expert: LoadedExpert, manifest: Manifest, pairs: dict[str, Pair], specs: Sequence[ArraySpec]
) -> dict[str, Params]:
    """Array name -> basis, fitted on the middles of images from all over the store, whatever part is made here."""
    step = max(1, len(manifest.images) // BASIS_IMAGES)
    samples: dict[str, list[np.ndarray]] = {spec.name: [] for spec in specs}
    for image in tqdm(manifest.images[::step][:BASIS_IMAGES], desc=f"{expert.name} basis", unit="image", disable=None):
        lr, _ = pairs[image.id].read()
        top, left = (max(0, (n - BASIS_PX) // 2) for n in lr.shape[:2])
        with torch.inference_mode():
            _, features = expert(as_input(lr[top : top + BASIS_PX, left : left + BASIS_PX]))
        for name in samples:
            samples[name].append(features[name][0].permute(1, 2, 0).cpu().numpy())
    return {spec.name: fit_pca(samples[spec.name], get_codec(spec.codec).components) for spec in specs}


class _Progress:
    """One line for all ranks: pixels of this one as they are done, of the others as their records appear."""

    def __init__(
        self, manifest: Manifest, name: str, shards: list[int], variants: int, rebuild: bool, rank: Rank
    ) -> None:
        self._manifest, self._name, self._rebuild, self._several = manifest, name, rebuild, rank.world_size > 1
        self._px = {shard: pixels(manifest, shard) * variants for shard in self._missing() & set(shards)}
        self._total, self._done = sum(self._px.values()), 0
        disable = None if rank.first else True
        self._bar = tqdm(total=self._total, desc=name, unit="px", unit_scale=True, smoothing=0.1, disable=disable)

    def _missing(self) -> set[int]:
        return set(self._manifest.missing_shards(self._name, self._rebuild))

    def advance(self, px: int) -> None:
        """This many more pixels are done here."""
        self._bar.update(px)

    def own(self, shard: int) -> None:
        """A shard is done here; look what the others have done meanwhile."""
        self._done += self._px.pop(shard, 0)
        if self._several and not self._bar.disable:
            missing = self._missing()
            others = sum(px for shard, px in self._px.items() if shard not in missing)
            self._bar.n = self._done + others
            self._bar.refresh()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.close()
