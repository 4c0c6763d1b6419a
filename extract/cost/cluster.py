"""An extraction on many machines: hours, cost, bandwidth, files and requests for each shard size; which to choose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.cost.estimate import ExpertPlan, Plan, worked_px
from championship_sr.extract.cost.simulate import Cluster, simulate
from championship_sr.store.errors import ConfigError
from championship_sr.store.format.layout import CONTAINERS
from championship_sr.store.remote.bucket import parts_of_upload

SHARD_SIZES = tuple(4**n for n in range(7))
MOST_SHARDS = 400_000  # of all experts; beyond it a simulation takes minutes, and the number of files is the limit
SIMULATED_SHARDS = 1_000_000  # over all trials of one shard size
TRIALS = (5, 50)  # at least, at most
MOST_TRIES = 20  # of a shard on average: larger ones hardly ever end before their node fails
WORTH = 1.02  # a shard size within 2 % of the fastest is as good
IMAGE_LINE_BYTES = 270  # of images.jsonl: two checksums, a name twice, numbers


@dataclass(frozen=True)
class Choice:
    """The cost with one shard size."""

    images_per_shard: int
    shards: int  # of the pairs, and of each expert
    shard_bytes: int  # of the mean shard of the largest expert
    hours: float  # mean over the trials
    worst_hours: float  # of the trials
    trials: int
    lost: float  # share of GPU time spent on shards that were lost to failures
    fixed: float  # share of GPU time that shards cost in addition to the forwards
    inodes: dict[str, int]  # container -> files and folders of the whole store
    objects: dict[str, int]  # container -> objects in a bucket
    requests: dict[str, int]  # container -> requests that put them there


@dataclass(frozen=True)
class ClusterPlan:
    """What an extraction will cost a cluster."""

    cluster: Cluster
    choices: tuple[Choice, ...]
    advised: int  # images per shard: the fewest that cost no time, since an interruption loses a shard
    ideal_hours: float  # all GPUs busy to the end, nothing lost
    price: float | None  # of a GPU for an hour
    bytes: int
    fastest_bytes_per_second: float  # while the expert that writes most is running
    manifest_bytes: int

    @property
    def chosen(self) -> Choice:
        return next(choice for choice in self.choices if choice.images_per_shard == self.advised)

    @property
    def gpu_hours(self) -> float:
        """Of the advised shard size: all GPUs are paid for until the last shard is done."""
        return self.chosen.hours * self.cluster.gpus

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.gpu_hours * self.price

    @property
    def bytes_per_second(self) -> float:
        """On average over the whole extraction."""
        return self.bytes / (self.chosen.hours * 3600)


def plan_cluster(
    plan: Plan,
    config: ExtractConfig,
    sizes: Sequence[tuple[int, int]],
    cluster: Cluster,
    *,
    price: float | None = None,
    seed: int = 0,
) -> ClusterPlan:
    """The plan of an extraction on a cluster, for each sensible shard size.

    plan    of the same images, with the speeds of the cluster's GPUs
    raises  ConfigError if nodes fail so often that no shard would end
    """
    seconds = [image_seconds(expert, config, sizes) for expert in plan.experts]
    slowest = max(per_image.mean() for per_image in seconds)
    longest = cluster.mtbf_hours * 3600 * math.log(MOST_TRIES)
    few = [n for n in {*SHARD_SIZES, config.images_per_shard} if -(-len(sizes) // n) * len(seconds) <= MOST_SHARDS]
    wanted = sorted({min(n, len(sizes)) for n in few if min(n, len(sizes)) * slowest <= longest})
    if not wanted:
        hours = min(few) * slowest / 3600
        raise ConfigError(
            f"--mtbf-hours {cluster.mtbf_hours:g}: a shard of {min(few)} images takes {hours:.3g} h, so "
            "hardly any shard would be done before its node fails"
        )
    choices = tuple(_choice(n, plan, config, seconds, cluster, seed) for n in wanted)
    best = min(choice.hours for choice in choices)
    advised = min(choice.images_per_shard for choice in choices if choice.hours <= best * WORTH)
    rates = [expert.bytes / s.sum() for expert, s in zip(plan.experts, seconds, strict=True) if s.any()]
    return ClusterPlan(
        cluster=cluster,
        choices=choices,
        advised=advised,
        ideal_hours=float(sum(s.sum() for s in seconds)) / 3600 / cluster.gpus,
        price=price,
        bytes=plan.bytes,
        fastest_bytes_per_second=max(rates, default=0.0) * cluster.gpus,
        manifest_bytes=len(sizes) * IMAGE_LINE_BYTES,
    )


def image_seconds(expert: ExpertPlan, config: ExtractConfig, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Seconds that each image takes the expert, all variants together."""
    if expert.px_per_second is None:
        return np.zeros(len(sizes))

    @cache  # a million images have few sizes
    def px(size: tuple[int, int]) -> int:
        return worked_px(size, config, expert.multiple_px, expert.align_px)

    pixels = np.fromiter(map(px, sizes), np.float64, len(sizes))
    return pixels * len(config.variants) / expert.px_per_second


def _choice(
    n: int, plan: Plan, config: ExtractConfig, seconds: list[np.ndarray], cluster: Cluster, seed: int
) -> Choice:
    starts = np.arange(0, plan.images, n)
    work = np.concatenate([np.add.reduceat(per_image, starts) for per_image in seconds])  # one expert after the other
    trials = int(np.clip(SIMULATED_SHARDS // len(work), *TRIALS))
    outcomes = simulate(cluster, work, trials=trials, seed=seed)
    spent = sum(outcome.makespan for outcome in outcomes) * cluster.gpus
    fixed = len(work) * cluster.shard_seconds * trials
    shards = len(starts)
    counts = {name: store_files(plan, config, shards, name) for name in CONTAINERS}
    return Choice(
        images_per_shard=n,
        shards=shards,
        shard_bytes=max(expert.bytes for expert in plan.experts) // shards,
        hours=sum(outcome.makespan for outcome in outcomes) / trials / 3600,
        worst_hours=max(outcome.makespan for outcome in outcomes) / 3600,
        trials=trials,
        lost=sum(outcome.lost for outcome in outcomes) / spent,
        fixed=fixed / spent,
        inodes={name: files + folders for name, (files, folders) in counts.items()},
        objects={name: files for name, (files, _) in counts.items()},
        requests={name: put_requests(plan, config, shards, name) for name in CONTAINERS},
    )


def store_files(plan: Plan, config: ExtractConfig, shards: int, container: str) -> tuple[int, int]:
    """Files and folders of the whole store: the shards with their records, and what describes it."""
    sources = 1 + len(plan.experts)
    arrays = _arrays(plan, config)
    files, folders = shards * sources, 3 + len(plan.experts)  # the records; the store's own folders
    if container == "hdf5":
        files += shards * sources
    else:  # in every folder of a group or an array its zarr.json, and beside an array's the one file of its chunks
        groups = (shards + plan.images) * sources
        files, folders = files + groups + 2 * arrays, folders + groups + arrays
    # store.yaml, images.jsonl, sources.json, experts.txt and each expert.yaml
    return files + 4 + len(plan.experts), folders


def put_requests(plan: Plan, config: ExtractConfig, shards: int, container: str) -> int:
    """Requests that put the store into a bucket: one per file, more for a file that is sent in parts."""
    files, _ = store_files(plan, config, shards, container)
    images = plan.images * len(config.variants)
    if container == "hdf5":
        large = [(shards, plan.pairs_bytes), *((shards, expert.bytes) for expert in plan.experts)]
    else:
        large = [(plan.images, plan.pairs_bytes)]  # hr is nearly all of it
        large += [(images * (1 + len(expert.channels)), expert.bytes) for expert in plan.experts]
    return files + sum(count * _more_requests(n_bytes / count) for count, n_bytes in large)


def _more_requests(n_bytes: float) -> int:
    parts = -(-int(n_bytes) // parts_of_upload(int(n_bytes))[0])
    return 0 if parts <= 1 else parts + 1  # one request each to begin and to complete it


def _arrays(plan: Plan, config: ExtractConfig) -> int:
    """Arrays of the whole store: lr and hr, and of each expert sr and its taps in every variant."""
    of_experts = sum(1 + len(expert.channels) for expert in plan.experts) * len(config.variants)
    return plan.images * (1 + config.data.has_hr + of_experts)
