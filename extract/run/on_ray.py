"""`--engine ray`: actors that hold an expert on a GPU or a share of CPU cores, one task per shard, on a cluster.

The store, the images and the weights lie on a file system that all nodes share; a store in object storage needs no
other. What is done is what the store's records say: a lost node's shards go to the other actors, and a run that was
stopped continues with the same command, with or without Ray.
"""

import logging
import os
import platform
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from championship_sr.extract.config import ExpertConfig, ExtractConfig
from championship_sr.extract.device import pick_device
from championship_sr.extract.experts.tiling import Tiling
from championship_sr.extract.images.pairs import find_pairs
from championship_sr.extract.run.job import ExpertSummary, Job, opened, run_expert
from championship_sr.extract.run.shares import Rank, pixels
from championship_sr.store.codecs import get_codec
from championship_sr.store.disk import leases
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.layout import lock_path
from championship_sr.store.progress import progress

log = logging.getLogger(__name__)

TRIES = 3  # for a shard whose actor is lost each time: a third loss is hardly the node's fault
ANSWER_SECONDS = 10.0
PATIENCE_SECONDS = 30.0  # without a single actor, before the user is told


@dataclass(frozen=True)
class RayOptions:
    """Where the cluster is and each actor's resources; None for those that `actor_shares` finds in the cluster."""

    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    cpus_per_actor: int | None = None


@dataclass(frozen=True)
class Shares:
    """How many actors there are, and what each of them takes."""

    actors: int
    gpus: float
    cpus: int


@dataclass(frozen=True)
class ActorPlace:
    """Where an actor runs."""

    node: str
    pid: int

    def __str__(self) -> str:
        return f"node {self.node} (process {self.pid})"


def actor_shares(options: RayOptions, nodes: list[dict[str, float]], device: str) -> Shares:
    """What each actor gets: one GPU and its part of the node's cores; without GPUs the cores of the smallest node.

    nodes   resources of each, as Ray counts them: "CPU", "GPU"
    raises  ConfigError if no node has room for an actor
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    gpus = options.gpus_per_actor
    if gpus is None:
        gpus = 1 if with_gpu and device in ("auto", "cuda") else 0
    useful = [node for node in (with_gpu if gpus else nodes) if node.get("CPU", 0) >= 1]
    cpus = options.cpus_per_actor or min(
        (max(1, int(node["CPU"] / (node["GPU"] / gpus if gpus else 1))) for node in useful), default=1
    )
    room = sum(int(min(node["CPU"] / cpus, node["GPU"] / gpus if gpus else node["CPU"])) for node in useful)
    if not room:
        there = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(f"an actor needs {cpus} CPUs and {gpus:g} GPUs, which no node has (nodes have: {there})")
    return Shares(options.actors or room, gpus, cpus)


def connect(options: RayOptions, rank: Rank = Rank()) -> Any:  # noqa: B008 (frozen)
    """The ray module, connected to the cluster; without an address that of RAY_ADDRESS, else one on this machine.

    raises  ConfigError if ray is not installed or torchrun runs as well; StoreError if nothing answers at the address
    """
    if rank.world_size > 1:
        raise ConfigError("--engine ray under torchrun: start it once, without torchrun; Ray starts the workers")
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'championship-sr[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        address = options.address or os.environ.get("RAY_ADDRESS")
        try:
            host, _, port = (address or "").rpartition(":")
            if port.isdigit() and "/" not in host:
                socket.create_connection((host, int(port)), ANSWER_SECONDS).close()  # Ray itself tries for minutes
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(f"--address {address}: no Ray cluster answers there ({error})") from None
    return ray


class Worker:
    """What an actor does: it holds one expert and makes shards with it."""

    def __init__(self, folder: str, cpus: int, config: ExtractConfig, entry: ExpertConfig, rebuild: bool, staging):
        torch.set_num_threads(cpus)
        self._folder, self._config, self._entry, self._rebuild, self._staging = folder, config, entry, rebuild, staging
        self._stack = ExitStack()

    def place(self) -> ActorPlace:
        return ActorPlace(platform.node(), os.getpid())

    def begin(self, tiling: Tiling | None) -> Tiling:
        """Loads the expert; if there is no tiling yet, chooses one and makes room for the expert in the store."""
        config, pairs = self._config, {}
        os.chdir(self._folder)  # paths in the configuration may be relative
        manifest = self._stack.enter_context(opened(config, self._staging))
        if tiling is None and any(get_codec(codec).components for codec in config.codecs.values()):
            pairs = {pair.id: pair for pair in find_pairs(config.data, config.scale)}  # that a basis is fitted to
        self._job = Job(config, manifest, pairs, [], Rank(), pick_device(config.device), self._rebuild)
        self._expert = self._stack.enter_context(self._job.load(self._entry))
        return tiling or self._job.register(self._expert)

    def make(self, shard: int, tiling: Tiling) -> None:
        """Writes one shard."""
        variants = self._config.variants
        run_expert(self._job.manifest, self._expert, [shard], tiling, variants, rebuild=self._rebuild)


def run_on_ray(job: Job, entry: ExpertConfig, options: RayOptions, staging: Path | None = None) -> ExpertSummary:
    """Writes the expert's missing shards with actors that live as long as this call.

    raises  StoreError, WeightsError, ConfigError naming expert, shard and node
    """
    ray = connect(options)
    job.manifest.flush()  # workers on other nodes read the pairs from the bucket, not from this machine's folder
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = actor_shares(options, nodes, job.config.device)
    log.info("%s: %d actors of %d CPUs and %g GPUs", entry.name, shares.actors, shares.cpus, shares.gpus)
    args = (os.getcwd(), shares.cpus, job.config, entry, job.rebuild, staging)
    with _Crew(ray, job, entry.name, shares, args) as crew:
        summary = crew.run()
    job.settle(entry.name)
    return summary


@dataclass(eq=False)
class _Member:
    """One actor: where its process runs, once it does, and the shard that it makes, once it holds the expert."""

    actor: Any
    place: ActorPlace | None = None
    shard: int | None = None

    @property
    def task(self) -> str:
        if self.shard is not None:
            return f"shard {self.shard}"
        return "loading" if self.place else "starting"

    @property
    def where(self) -> str:
        return str(self.place or "a node of the cluster")


class _Crew:
    """One expert's actors and the shards that they are making; a context manager."""

    def __init__(self, ray: Any, job: Job, name: str, shares: Shares, args: tuple) -> None:
        self._ray, self._job, self._name, self._shares, self._args = ray, job, name, shares, args
        path = os.environ.get("PYTHONPATH", "")  # of this process: experts' own modules lie there
        self._worker = ray.remote(
            num_cpus=shares.cpus, num_gpus=shares.gpus, runtime_env={"env_vars": {"PYTHONPATH": path}}
        )(Worker)
        self._waiting: dict[Any, _Member] = {}  # request to an actor -> the actor
        self._started: list[_Member] = []  # processes without the expert: the first one makes room in the store alone
        self._idle: list[_Member] = []
        self._todo: deque[int] = deque()
        self._lost: Counter[int | None] = Counter()
        self._tiling: Tiling | None = None
        self._made: list[int] = []

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_exception: object) -> None:
        for member in (*self._waiting.values(), *self._started, *self._idle):
            self._ray.kill(member.actor)  # frees the memory for the next expert

    def run(self) -> ExpertSummary:
        """Makes every shard that is missing."""
        started, told = time.monotonic(), False
        for _ in range(max(1, min(self._shares.actors, self._expected()))):
            self._hire()
        with progress(desc=self._name, unit="px", unit_scale=True, smoothing=0.1) as bar:
            while self._tiling is None or self._todo or self._busy():
                ready, _ = self._ray.wait(list(self._waiting), timeout=PATIENCE_SECONDS)
                for reference in ready:
                    self._take(reference, self._waiting.pop(reference), bar)
                if not ready and not told and not any(member.place for member in self._waiting.values()):
                    told = True
                    log.warning(
                        "%s: waiting for a node with %d CPUs and %g GPUs free",
                        self._name, self._shares.cpus, self._shares.gpus,
                    )  # fmt: skip
        return ExpertSummary(len(self._made), self._pixels(self._made), time.monotonic() - started)

    def _pixels(self, shards: Iterable[int]) -> int:
        return sum(pixels(self._job.manifest, shard) for shard in shards) * len(self._job.config.variants)

    def _busy(self) -> list[_Member]:
        return [member for member in self._waiting.values() if member.shard is not None]

    def _expected(self) -> int:
        """The most shards to make: a rebuild that was begun with other settings starts again."""
        job = self._job
        return len(job.order if job.rebuild else set(job.order) & set(job.manifest.missing_shards(self._name)))

    def _hire(self) -> None:
        member = _Member(self._worker.remote(*self._args))
        self._waiting[member.actor.place.remote()] = member

    def _take(self, reference: Any, member: _Member, bar: tqdm) -> None:
        """Handles an actor's result: its process runs, it holds the expert, it has made its shard, or it is lost."""
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            kind = type(cause) if isinstance(cause, (ConfigError, WeightsError)) else StoreError
            text = str(cause) if isinstance(cause, (kind, OSError)) else f"{type(cause).__name__}: {cause}"
            raise kind(f"{self._name}: {member.task} on {member.where}: {text}") from None
        except self._ray.exceptions.RayActorError as error:
            return self._replace(member, error)
        if member.place is None:
            member.place = result
            self._started.append(member)
        else:
            if member.shard is None:
                self._plan(result, bar)
            else:
                self._made.append(member.shard)
                bar.update(self._pixels([member.shard]))
            member.shard = None
            self._idle.append(member)
        self._give()
        nodes = {member.place.node for member in self._busy() if member.place}
        bar.set_postfix_str(f"{len(nodes)} nodes", refresh=False)

    def _plan(self, tiling: Tiling, bar: tqdm) -> None:
        if self._tiling is not None:
            return
        job, self._tiling = self._job, tiling
        missing = set(job.manifest.missing_shards(self._name, job.rebuild))
        self._todo += [shard for shard in job.order if shard in missing]
        bar.total = self._pixels(self._todo)

    def _give(self) -> None:
        """Shards to the actors that hold the expert; the expert to as many others as there are shards left.

        Before the store has room for the expert, one actor alone loads it: whichever runs first, for a node that has
        just died may keep the others waiting and those that run keep their cores.
        """
        while self._todo and self._idle:
            member = self._idle.pop()
            member.shard = self._todo.popleft()
            self._waiting[member.actor.make.remote(member.shard, self._tiling)] = member
        wanted = 1 if self._tiling is None else len(self._todo)
        while self._started and self._loading() < wanted:
            member = self._started.pop(0)
            self._waiting[member.actor.begin.remote(self._tiling)] = member

    def _loading(self) -> int:
        return sum(member.task == "loading" for member in self._waiting.values())

    def _replace(self, member: _Member, error: Exception) -> None:
        """Gives a lost actor's shard to another one."""
        self._lost[member.shard] += 1
        if self._lost[member.shard] == TRIES:
            raise StoreError(
                f"{self._name}: {member.task} has lost its worker {TRIES} times, last on {member.where}: {error}"
            )
        log.warning("%s: %s was lost with %s; another worker will make it", self._name, member.task, member.where)
        self._ray.kill(member.actor)
        if member.shard is not None:
            self._todo.append(member.shard)
            if member.place:
                lock = lock_path(self._job.manifest.root, self._name, member.shard, self._job.rebuild)
                leases.revoke(lock, member.place.node, member.place.pid)
        if not self._idle and not self._started:
            self._hire()
        self._give()
