"""Extraction under torchrun, as the user starts it, with one rank killed in the middle of a shard."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from championship_sr.extract.run.extraction import extract
from championship_sr.store.config import to_plain
from championship_sr.store.disk.leases import Holder
from championship_sr.store.operations.verify import verify

NETWORK = """
import os, time
from championship_sr.extract.edsr import EDSR

class Halting(EDSR):
    "Under torchrun, each rank makes two images and halts in the third."
    images = 0
    def forward(self, x):
        self.images += x.shape[-1] == 12
        while self.images == 3 and "WORLD_SIZE" in os.environ:
            time.sleep(0.1)
        return super().forward(x)
"""


def checksums(root: Path) -> dict[str, str]:
    return {
        f"{path.parent.name}/{key}": array["sha256"]
        for path in root.rglob("shard-*.json")
        for key, array in json.loads(path.read_text())["arrays"].items()
    }


def process_of_rank(folder: Path, rank: int) -> int | None:
    """The process of this rank that holds a shard."""
    for lease in folder.glob("*.lease/*"):
        pid = Holder.of(lease.name).pid
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    return None


def read_all(handle: int) -> str:
    """What was written to a terminal, when nobody has it open any more."""
    text = b""
    while True:
        try:
            text += os.read(handle, 1 << 16)
        except OSError:  # EIO: the last writer is gone
            return text.decode()


def test_a_rank_that_dies_costs_one_exit_status_and_no_finished_shard(make_config, save_photos, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/halting_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    options = {"data": {"hr": [str(save_photos([(64, 48)] * 8))]}, "random_weights": True}
    entry = {
        "name": "halting", "weights": "none", "tap": "conv_after_body",
        "architecture": "halting_network:Halting", "hyperparameters": {"num_feat": 4, "num_block": 1},
    }  # fmt: skip
    alone = make_config(experts=[entry], **options)
    extract(alone)
    config = make_config(experts=[entry], **options, store=str(tmp_path / "ranks"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"extract": to_plain(config)}))
    store = Path(config.store)

    code, text = torchrun_and_kill(tmp_path / "config.yaml", store / "experts/halting")
    assert code == 1
    assert len(re.findall(r"halting: +0%", text)) == 1  # one progress line, of the first rank
    records = {path: path.read_bytes() for path in store.glob("experts/halting/shard-*.json")}
    assert len(records) == 4
    assert all("the next extract removes it" in fault.message for fault in verify(store).faults)
    assert extract(config).experts["halting"].shards_written == 4
    assert {path: path.read_bytes() for path in records} == records
    assert checksums(store) == checksums(Path(alone.store))
    assert not verify(store).faults


def torchrun_and_kill(config: Path, folder: Path) -> tuple[int, str]:
    """torchrun's exit status and terminal, with rank 1 killed once both ranks have made two shards and hold a third."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, 100))
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "pipeline.py", "extract", "--config", config]
    run = subprocess.Popen(command, stderr=theirs, stdout=theirs, cwd=Path(__file__).parents[3])
    os.close(theirs)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(read_all, ours)
        try:
            kill_rank(1, run, folder)
            return run.wait(30), text.result()
        finally:
            run.kill()
            run.wait()
            text.result()
            os.close(ours)


def kill_rank(rank: int, run: subprocess.Popen, folder: Path) -> None:
    until = time.monotonic() + 60
    while len(list(folder.glob("shard-*.json"))) < 4 or not (doomed := process_of_rank(folder, rank)):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(doomed, signal.SIGKILL)
