"""Shards written behind the forward passes: one thread encodes, writes and publishes, a few images at most behind."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

from torch import Tensor

from store.manifest import Manifest
from store.writer import ShardWriter, write_shard

BEHIND = 2  # images whose arrays may wait in memory


class Sink:
    """A `with` block around any number of shards, one open at a time.

    What goes wrong in the thread is raised by the next call. An exception in the block leaves no trace of the open
    shard; shards that were closed before are published.
    """

    def __init__(self, manifest: Manifest, source: str, rebuild: bool = False) -> None:
        self._manifest, self._source, self._rebuild = manifest, source, rebuild
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future] = deque()
        self._context: AbstractContextManager[ShardWriter] | None = None

    def open(self, shard: int) -> None:
        """Begins a shard.

        raises  ShardBusy if another process has it
        """
        context = write_shard(self._manifest, self._source, shard, rebuild=self._rebuild)
        self._out = context.__enter__()
        self._context = context

    def add(self, image_id: str, outputs: dict[str, Tensor], variant: str) -> None:
        """Hands over one image's (1, C, rows, cols) tensors, which must not change any more."""
        self._submit(_add, self._out, image_id, outputs, variant)

    def close(self) -> None:
        """Publishes the open shard, once its images are written."""
        context, self._context = self._context, None
        self._submit(context.__exit__, None, None, None)

    def flush(self) -> None:
        """Returns when all that was handed over is written, and the closed shards are published."""
        self._drain(0)

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            try:
                self._drain(0)
            except BaseException as late:
                kind, error, traceback = type(late), late, late.__traceback__
                self._abandon(kind, error, traceback)
                raise
        self._abandon(kind, error, traceback)

    def _submit(self, work: Callable, *args: object) -> None:
        self._waiting.append(self._pool.submit(work, *args))
        self._drain(BEHIND)

    def _drain(self, left: int) -> None:
        while len(self._waiting) > left:
            self._waiting.popleft().result()

    def _abandon(self, kind, error, traceback) -> None:
        self._pool.shutdown()  # what is closed is still published
        if self._context is not None:
            context, self._context = self._context, None
            context.__exit__(kind, error, traceback)


def _add(out: ShardWriter, image_id: str, outputs: dict[str, Tensor], variant: str) -> None:
    out.add(image_id, {name: tensor[0].permute(1, 2, 0).numpy() for name, tensor in outputs.items()}, variant)
