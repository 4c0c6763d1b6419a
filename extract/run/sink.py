"""Writes shards in the background, at most a few images behind the forward passes.

Several threads encode and hash; one writes, in the order of the images; one syncs and publishes finished shards while
the next one is written.
"""

import logging
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from championship_sr.extract.run.on_device import Arriving
from championship_sr.store.disk.locks import ShardBusy
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.encoding import Encoded, Memory
from championship_sr.store.shards.writer import Ready, write_shard

log = logging.getLogger(__name__)

THREADS = max(2, min(4, os.cpu_count() or 1))  # that encode and hash
BEHIND = THREADS  # images whose arrays may wait in memory
UNPUBLISHED = 1  # shards that may wait to be synced


class Sink:
    """A `with` block around any number of shards, one open at a time.

    What goes wrong in a thread is raised by the next call. An exception in the block leaves no trace of the open
    shard; shards that were closed before are published, but for those that another process has taken over.
    """

    def __init__(
        self, manifest: Manifest, source: str, rebuild: bool = False, made_on: Mapping[str, Any] | None = None
    ) -> None:
        """made_on  what the shards' records say of the device; the CPU is not named"""
        self._manifest, self._source, self._rebuild, self._made_on = manifest, source, rebuild, dict(made_on or {})
        self._encoders = ThreadPoolExecutor(THREADS, thread_name_prefix="encoder")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        self._waiting: deque[Future] = deque()
        self._publishing: deque[Future] = deque()
        self._open: _OpenShard | None = None
        self._memory = Memory()  # of all shards
        self.published: list[int] = []

    def open(self, shard: int) -> None:
        """Begins a shard.

        raises  ShardBusy if another process has it
        """
        self._open = _OpenShard(self._manifest, self._source, shard, self._rebuild, self._made_on, self._memory)

    def made_from(self, files: dict[str, str]) -> None:
        """Records the files from which the open shard's images are read: image id -> sha256."""
        self._current.made_from(files)

    def made_in_batches_of(self, count: int) -> None:
        """Records that memory only sufficed for smaller forwards of the open shard: they decide its last bits."""
        self._current.made_in_batches_of(count)

    def add(self, image_id: str, outputs: dict[str, Tensor] | Arriving, variant: str) -> None:
        """Hands over one image's (1, C, rows, cols) tensors, which must not change any more, or its encoded arrays."""
        ready = self._encoders.submit(self._current.encode, image_id, outputs, variant)
        self._waiting.append(self._writer.submit(self._current.write, ready))
        _drain(self._waiting, BEHIND)

    def close(self) -> None:
        """Publishes the open shard, once its images are written."""
        shard, self._open = self._current, None
        self._publishing.append(self._publisher.submit(self._publish, shard, list(self._waiting)))
        _drain(self._publishing, UNPUBLISHED)

    @property
    def _current(self) -> "_OpenShard":
        assert self._open is not None, "no shard is open"
        return self._open

    def flush(self) -> None:
        """Waits until everything handed over is written and the closed shards are published."""
        _drain(self._waiting, 0)
        _drain(self._publishing, 0)

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            try:
                self.flush()
            except BaseException as late:
                kind, error, traceback = type(late), late, late.__traceback__
                self._abandon(kind, error, traceback)
                raise
        self._abandon(kind, error, traceback)

    def _publish(self, shard: "_OpenShard", images: list[Future]) -> None:
        """images  of the shard, those that may still have to be written"""
        try:
            _drain(deque(images), 0)
        except BaseException as error:
            shard.close(type(error), error, error.__traceback__)
            raise
        shard.close()
        if not shard.lost:
            self.published.append(shard.number)

    def _abandon(self, kind, error, traceback) -> None:
        self._writer.shutdown()
        self._publisher.shutdown()  # closed shards are still published
        self._encoders.shutdown()
        if self._open is not None:
            self._open.close(kind, error, traceback)


def _drain(waiting: deque[Future], left: int) -> None:
    """Waits for the oldest until at most this many are left; raises their errors."""
    while len(waiting) > left:
        waiting.popleft().result()


class _OpenShard:
    """One shard's writer; once another process has taken the shard over, further images are dropped."""

    def __init__(
        self, manifest: Manifest, source: str, number: int, rebuild: bool, made_on: dict[str, Any], memory: Memory
    ) -> None:
        self.number, self.lost = number, False
        self._context = ExitStack()
        self._out = self._context.enter_context(write_shard(manifest, source, number, rebuild=rebuild))
        self._out.made_on, self._out.memory = dict(made_on), memory

    def made_from(self, files: dict[str, str]) -> None:
        self._out.files = files

    def made_in_batches_of(self, count: int) -> None:
        if "batch_size" in self._out.made_on:
            self._out.made_on["batch_size"] = min(count, self._out.made_on["batch_size"])

    def encode(self, image_id: str, outputs: dict[str, Tensor] | Arriving, variant: str) -> list[Ready]:
        arrays: Mapping[str, Encoded | Tensor]
        if isinstance(outputs, Arriving):
            arrays = outputs.wait()
        else:
            arrays = {name: tensor[0].permute(1, 2, 0) for name, tensor in outputs.items()}
        return [] if self.lost else self._out.encode(image_id, arrays, variant)

    def write(self, ready: Future) -> None:
        arrays = ready.result()
        if self.lost:
            return
        try:
            self._out.write(arrays)
        except OSError as error:
            self.close(type(error), error, error.__traceback__)
            if not self.lost:
                raise

    def close(self, kind=None, error=None, traceback=None) -> None:
        try:
            self._context.__exit__(kind, error, traceback)
        except ShardBusy as busy:
            log.warning("%s", busy)
            self.lost = True
