"""The extraction: the pairs, then one expert after the other over the shards that have no record."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from championship_sr.extract.config import ExpertConfig, ExtractConfig, chosen_experts
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.weights_file import found_weights
from championship_sr.extract.run.job import ExpertSummary, Job
from championship_sr.extract.run.prepare import PairsWriter, Prepared, prepare
from championship_sr.extract.run.shares import Part, Rank
from championship_sr.store.codecs import get_codec
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.description import take_back
from championship_sr.store.format.entries import STORE_FILE
from championship_sr.store.remote.bucket import is_remote
from championship_sr.store.remote.staging import Staging

if TYPE_CHECKING:
    from championship_sr.extract.run.on_ray import RayOptions

log = logging.getLogger(__name__)


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
    """Fills the store: shards that its records say are done stay, the others are made.

    experts  only these: names of the configuration or of configs/experts, or YAML files
    rebuild  those that are rebuilt beside their old shards and swapped in at the end
    part     only this part's shards
    limit    a store of only the first images
    staging  the folder that the shards of a store in object storage pass through
    cluster  run the experts there instead of here
    raises   StoreError, WeightsError, ConfigError
    """
    rank = Rank.from_environment()
    device = torch.device("cpu") if cluster else pick_device(config.device, rank.local_rank)
    if cluster:
        from championship_sr.extract.run.on_ray import connect, run_on_ray  # it needs ray, an extra

        connect(cluster, rank)
    entries = chosen_experts(config, (*experts, *(name for name in rebuild if experts and name not in experts)))
    unknown = sorted(set(rebuild) - {entry.name for entry in entries})
    if unknown:
        raise ConfigError(f"--rebuild {unknown[0]}: not in this configuration")
    for codec in config.codecs.values():
        get_codec(codec)
    if not config.random_weights:
        for entry in (entry for entry in entries if not entry.images):
            found_weights(entry)  # before any image is read
    with ExitStack() as stack:
        stack.enter_context(_no_empty_store(config.store, rank))
        staged = stack.enter_context(Staging(config.store, staging)) if is_remote(config.store) else None
        with rank.first_goes_first():
            manifest, pairs, results = _prepared(config, entries, limit, staged, rank)
        shards = (part or Part()).shards(manifest)
        order = rank.part.shards(manifest, shards)
        order += [shard for shard in shards if shard not in order]  # then shards that the other ranks have not begun
        log.info("extract: %d images, %d of %d shards, on %s", len(pairs), len(shards), manifest.n_shards, device)
        written = stack.enter_context(PairsWriter(manifest, pairs, order, first=rank.first))
        if staged or cluster:
            written.finish()  # uploads run one after the other, and other nodes only see uploaded shards
        done = {}
        for entry in entries:
            job = Job(config, manifest, pairs, order, rank, device, entry.name in rebuild, written.wait, results)
            if cluster and not entry.images:  # there is nothing to compute in copying images
                done[entry.name] = run_on_ray(job, entry, cluster, staging)
            else:
                done[entry.name] = job.run(entry)
        manifest.flush()
    return Summary(config.store, len(pairs), len(shards), done)


@contextmanager
def _no_empty_store(store: str, rank: Rank) -> Iterator[None]:
    """Removes a new store again if the block fails before any of its shards has been begun."""
    root = Path(store)
    if is_remote(store) or (root / STORE_FILE).exists() or rank.world_size > 1:
        yield
        return
    leave = root.exists()
    try:
        yield
    except (ConfigError, StoreError, WeightsError, OSError):
        if (root / STORE_FILE).exists():
            take_back(root, leave)
        raise


def _prepared(
    config: ExtractConfig, entries: Sequence[ExpertConfig], limit: int | None, staged: Staging | None, rank: Rank
) -> Prepared:
    """The store, new or continued, and what it is filled from."""
    if staged:
        staged.describe()
    prepared = prepare(
        staged.root if staged else Path(config.store),
        config.data,
        scale=config.scale,
        container=config.container,
        images_per_shard=config.images_per_shard,
        limit=limit,
        grow=staged is None,
        results=[entry for entry in entries if entry.images],
        first=rank.first,
    )
    return prepared._replace(manifest=staged.adopt(prepared.manifest)) if staged else prepared
