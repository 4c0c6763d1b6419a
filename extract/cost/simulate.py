"""Simulates, shard by shard and with a seed, how long a cluster takes for its shards and what failures cost."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cluster:
    """Machines that share the shards: the next free GPU takes the next one.

    speed_spread     standard deviation of the logarithm of a node's speed; the mean speed is 1
    mtbf_hours       mean time between the failures of a node, exponentially distributed; inf: it never fails
    restart_seconds  until a failed node computes again, and its shards are free for others
    shard_seconds    of each shard beside its forwards: opening, syncing, uploading
    """

    nodes: int = 1
    gpus_per_node: int = 1
    speed_spread: float = 0.0
    mtbf_hours: float = math.inf
    restart_seconds: float = 0.0
    shard_seconds: float = 0.0

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Outcome:
    """The outcome of one simulated run, in seconds."""

    makespan: float  # until the last shard is done
    lost: float  # of GPU time spent on shards that a failure ended
    failures: int  # of nodes, while shards were being made


def simulate(cluster: Cluster, work: np.ndarray, *, trials: int, seed: int = 0) -> list[Outcome]:
    """One outcome per trial, each with its own speeds and failures.

    work  seconds that each shard's forwards take a GPU of mean speed, in the order in which shards are begun
    """
    return [_run(cluster, work.tolist(), rng) for rng in np.random.default_rng(seed).spawn(trials)]


def _run(cluster: Cluster, work: list[float], rng: np.random.Generator) -> Outcome:
    nodes = [_Node(cluster, rng) for _ in range(cluster.nodes)]
    free = [(0.0, gpu) for gpu in range(cluster.gpus)]  # a heap of when each GPU is free
    lost_shards: list[tuple[float, float]] = []  # a heap of when a lost shard is free again, and its work
    waiting, done, lost, failed = iter(work), 0.0, 0.0, set()
    while free:
        now, gpu = heapq.heappop(free)
        node = nodes[gpu // cluster.gpus_per_node]
        begin, shard = _next(now, waiting, lost_shards)
        if shard is None:
            continue  # nothing is left for it: whatever others still lose was taken before now
        begin, failure = node.up(begin)
        end = begin + shard / node.speed + cluster.shard_seconds
        if end <= failure:
            done = max(done, end)
            heapq.heappush(free, (end, gpu))
        else:
            back = failure + cluster.restart_seconds
            lost += failure - begin
            failed.add((gpu // cluster.gpus_per_node, failure))
            heapq.heappush(lost_shards, (back, shard))
            heapq.heappush(free, (back, gpu))
    return Outcome(done, lost, len(failed))


def _next(now: float, waiting: Iterator[float], lost_shards: list[tuple[float, float]]) -> tuple[float, float | None]:
    """When a GPU that is free now begins its next shard, and that shard's work; None where there is none."""
    if lost_shards and lost_shards[0][0] <= now:
        return now, heapq.heappop(lost_shards)[1]
    shard = next(waiting, None)
    if shard is None and lost_shards:
        return heapq.heappop(lost_shards)
    return now, shard


class _Node:
    """Speed and failures of one machine; queried for rising times only, up to the length of a shard."""

    def __init__(self, cluster: Cluster, rng: np.random.Generator) -> None:
        spread = cluster.speed_spread
        self.speed = math.exp(rng.normal(0, spread) - spread**2 / 2) if spread else 1.0
        self._mean, self._restart, self._rng = cluster.mtbf_hours * 3600, cluster.restart_seconds, rng
        self._failures = [self._drawn(0.0)]

    def up(self, time: float) -> tuple[float, float]:
        """When the node computes, at `time` or after its restart, and when it fails after that."""
        while self._failures[-1] <= time:
            self._failures.append(self._drawn(self._failures[-1] + self._restart))
        # other GPUs of the node may have asked for a later time already
        place = len(self._failures) - 1
        while place and self._failures[place - 1] > time:
            place -= 1
        begin = max(time, self._failures[place - 1] + self._restart) if place else time
        return begin, self._failures[place]

    def _drawn(self, after: float) -> float:
        return after + (self._rng.exponential(self._mean) if math.isfinite(self._mean) else math.inf)
