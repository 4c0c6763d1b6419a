"""Two writers at one shard in any order of their steps: crashes, clocks that jump and stand still, and no harm."""

import secrets
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import floats, integers, sampled_from

from championship_sr.store.disk import files, leases
from championship_sr.store.disk.locks import ShardBusy

WRITERS = (0, 1)
WHO = sampled_from(WRITERS)


class Writer:
    """What a process knows: its machine, its clock, what it has seen of the lease, and how far it is."""

    def __init__(self, folder: Path):
        self.folder, self.machine, self.clock, self.seen = folder, secrets.token_hex(8), 0.0, {}
        self.lease: leases.Lease | None = None
        self.next = self.take

    def tmp(self, ending: str) -> Path:
        return self.folder / f"shard-00000.{self.lease.token}.{ending}.tmp"

    def step(self, patch: pytest.MonkeyPatch) -> None:
        """Does what it does next, as `writer.claimed` and `Claim.publish` do it."""
        patch.setattr(leases, "_MACHINE", self.machine)
        patch.setattr(leases, "_seen", self.seen)
        patch.setattr(leases.time, "monotonic", lambda: self.clock)
        try:
            self.next()
        except (ShardBusy, FileNotFoundError):
            self.stop()

    def take(self) -> None:
        self.lease = leases.Lease(self.folder / "shard-00000.lock")
        self.next = self.clear

    def clear(self) -> None:
        leases._clear(self.folder / "shard-00000.lock")
        self.next = self.look

    def look(self) -> None:
        if (self.folder / "shard-00000.json").exists():
            return self.stop()
        files.remove(self.folder / "shard-00000.h5")
        self.next = self.write

    def write(self) -> None:
        for ending in ("h5", "json"):
            self.tmp(ending).write_text(self.lease.token)
        self.next = self.beat

    def beat(self) -> None:
        self.lease.beat()
        self.next = self.name_shard

    def name_shard(self) -> None:
        self.tmp("h5").rename(self.folder / "shard-00000.h5")
        self.next = self.name_record

    def name_record(self) -> None:
        self.tmp("json").rename(self.folder / "shard-00000.json")
        self.stop()

    def stop(self) -> None:
        """Ends as an exception or the block's end does."""
        if self.lease:
            for ending in ("h5", "json"):
                self.tmp(ending).unlink(missing_ok=True)
            self.lease.let_go()
        self.lease, self.next = None, self.take

    def crash(self) -> None:
        """Leaves everything as it is; another process of another machine comes in its place."""
        if self.lease:
            self.lease._over.set()  # its heart
        self.__init__(self.folder)


class TwoWriters(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder, self.patch = Path(tempfile.mkdtemp()), pytest.MonkeyPatch()
        self.writers = [Writer(self.folder) for _ in WRITERS]

    def teardown(self):
        try:
            self.in_the_end_one_makes_it()
        finally:
            for writer in self.writers:
                writer.crash()
            self.patch.undo()
            shutil.rmtree(self.folder)

    @rule(who=WHO, steps=integers(1, 7))
    def step(self, who, steps):
        for _ in range(steps):
            self.writers[who].step(self.patch)
            self.a_record_is_of_the_shard_beside_it()

    @rule(who=WHO, seconds=floats(0, 3 * leases.STANDING_SECONDS))
    def jump(self, who, seconds):
        self.writers[who].clock += seconds

    @precondition(lambda self: any(writer.lease for writer in self.writers))
    @rule(who=WHO)
    def crash(self, who):
        self.writers[who].crash()

    @rule()
    def take_away(self):
        """A repair removes the shard while nobody writes it."""
        if not any(writer.lease for writer in self.writers):
            files.remove(self.folder / "shard-00000.json")
            files.remove(self.folder / "shard-00000.h5")

    @invariant()
    def a_record_is_of_the_shard_beside_it(self):
        record = self.folder / "shard-00000.json"
        assert not record.exists() or (self.folder / "shard-00000.h5").read_text() == record.read_text()

    @invariant()
    def one_holds_it(self):
        assert len(list(self.folder.glob("shard-00000.lease/*"))) <= 1

    def in_the_end_one_makes_it(self):
        writer = Writer(self.folder)
        for _ in range(12):
            writer.clock += leases.STANDING_SECONDS + 1
            writer.step(self.patch)
        writer.stop()
        self.a_record_is_of_the_shard_beside_it()
        assert sorted(path.name for path in self.folder.iterdir()) == ["shard-00000.h5", "shard-00000.json"]


TestTwoWriters = TwoWriters.TestCase
TestTwoWriters.settings = settings(max_examples=60, stateful_step_count=20, deadline=None, derandomize=True)
