"""One process or several under torchrun: ranks, and the mean over them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from championship_sr.extract.device import pick_device


@dataclass(frozen=True)
class World:
    """This process among `size`.

    nodes  how many processes each machine has; () means that one has them all
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    node: int = 0
    nodes: tuple[int, ...] = ()
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def beside(self) -> range:
        """The processes of this machine."""
        first = self.rank - self.local_rank
        return range(first, first + (self.nodes[self.node] if self.nodes else self.size))

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replaces the float tensors by their mean over all processes, in one exchange."""
        if self.size == 1:
            return
        joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(joined)
        joined /= self.size
        parts = joined.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Waits until every process has reached this point."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def world(device: str, timeout: timedelta | None = None) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    device   "auto" takes this process's GPU if there is one; otherwise as torch names it
    timeout  how long a process waits for the others before it gives up; None: torch's ten to thirty minutes
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    place = pick_device(device, local)
    if size == 1:
        yield World(place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timeout)
    try:
        alone = World(place, rank, size)
        yield replace(alone, node=int(os.environ.get("GROUP_RANK", "0")), nodes=_nodes(alone), local_rank=local)
    finally:
        dist.destroy_process_group()


def _nodes(processes: World) -> tuple[int, ...]:
    """How many processes each node has, in the order of torchrun's GROUP_RANK."""
    counts = Counter(processes.gather(int(os.environ.get("GROUP_RANK", "0"))))
    return tuple(counts[node] for node in sorted(counts))


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))  # set by torchrun
