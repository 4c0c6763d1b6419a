"""Divides the shards between machines (parts) and processes (torchrun's ranks): disjoint, balanced by pixels."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import prod

import torch.distributed as dist

from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.manifest import Manifest

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LONGEST_WAIT = timedelta(days=7)  # ranks wait for the shards of the slowest


@dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that `I/N` means.

        raises  ConfigError
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part {text}: expected I/N with 1 <= I <= N, for example 2/8")
        return cls(int(match[1]), int(match[2]))

    def shards(self, manifest: Manifest, among: list[int] | None = None) -> list[int]:
        """This part's shards of `among`: the largest goes first, to the part with the least; all parts agree."""
        weights = {shard: pixels(manifest, shard) for shard in (range(manifest.n_shards) if among is None else among)}
        loads = [0] * self.count
        own = []
        for shard in sorted(weights, key=lambda shard: (-weights[shard], shard)):
            lightest = loads.index(min(loads))
            loads[lightest] += weights[shard]
            if lightest == self.index - 1:
                own.append(shard)
        return sorted(own)


def pixels(manifest: Manifest, shard: int) -> int:
    """LR pixels of a shard's images."""
    return sum(prod(image.lr_size) for image in manifest.images_of(shard))


@dataclass(frozen=True)
class Rank:
    """This process among those that torchrun started; the only one without torchrun."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Rank":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names)) if all(name in os.environ for name in names) else cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> Part:
        return Part(self.rank + 1, self.world_size)

    def wait_for_all(self) -> None:
        """Waits until every rank has reached this point.

        raises  StoreError if one of them never does
        """
        if self.world_size > 1:
            try:
                if not dist.is_initialized():
                    self._meet()
                dist.barrier()
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise StoreError(
                    f"rank {self.rank}: another rank has died ({reason}); no finished shard is lost, "
                    "so run the same command again to continue"
                ) from None

    def _meet(self) -> None:
        """Joins the ranks; restarted ranks do not find the addresses of the dead ones that they replace."""
        store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
        round_ = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart {round_}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The block, on the first rank and then on all the others."""
        if not self.first:
            self.wait_for_all()
        yield
        if self.first:
            self.wait_for_all()


def until_done(missing: Callable[[], list[int]], order: list[int]) -> Iterator[int]:
    """The shards to try, in this order, again and again until all of them are done.

    Shards that another process holds are tried again later: it may finish them, or die and release them.
    """
    while left := _still(order, missing()):
        yield from left
        if len(_still(order, missing())) == len(left):
            time.sleep(POLL_SECONDS)


@contextmanager
def unless_busy(told: list[str], expected: bool) -> Iterator[None]:
    """Runs the block, and leaves it if another process has the shard.

    told      processes that the log has named; only the first one is
    expected  several processes share the work, so there is nothing to report
    """
    try:
        yield
    except ShardBusy as busy:
        if not told and not expected:
            log.warning("%s; skipping it, since each shard is made only once", busy)
            told.append(str(busy))


def _still(order: list[int], missing: list[int]) -> list[int]:
    there = set(missing)
    return [shard for shard in order if shard in there]
