import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import torch

from championship_sr.extract.run.extraction import extract
from championship_sr.store.operations.verify import verify
from tests.extract.stores import checksums

KILLS = 20


def start(config, **environment: str) -> multiprocessing.Process:
    """`extract` in a process of its own, forked so that it starts in milliseconds."""

    def run():
        torch.set_num_threads(1)  # the threads of the parent's OpenMP pool do not survive a fork
        os.environ |= environment
        extract(config)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def n_records(root: Path) -> int:
    return len([*root.glob("pairs/*.json"), *root.glob("experts/*/*.json")])


def test_killed_twenty_times_at_random_the_same_command_ends_with_the_same_store(
    make_config, save_edsr, save_photos, tmp_path
):
    save_photos([(64, 48)] * 24)
    experts = [save_edsr("one"), save_edsr("two", seed=1)]
    undisturbed = make_config(experts=experts, store=str(tmp_path / "undisturbed"))
    extract(undisturbed)
    config = make_config(experts=experts)
    root, rng, kills = Path(config.store), random.Random(0), 0
    while kills < KILLS:
        process, goal = start(config), n_records(root) + rng.randrange(1, 4)
        while process.is_alive() and n_records(root) < goal:
            time.sleep(0.002)
        time.sleep(0.02 * rng.random())  # of the 10 ms or so that a shard takes
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode < 0
        unfinished = verify(root).faults if (root / "store.yaml").exists() else []
        assert all("the next extract removes it" in fault.message for fault in unfinished), unfinished
        if process.exitcode == 0:  # done: the rest of the kills hit a run that begins anew
            assert not unfinished and contents(root) == contents(undisturbed.store)
            shutil.rmtree(root)
    extract(config)
    assert not verify(root).faults
    assert contents(root) == contents(undisturbed.store)
    assert not list(root.rglob("*.tmp"))


def contents(root: str | Path) -> dict[str, bytes]:
    """Every file of the store by its name, but for the date it was made, file times and locks of the dead.

    A record repeats the date, and its checksum is over that as well.
    """
    files = {str(path.relative_to(root)): path for path in Path(root).rglob("*") if path.is_file()}
    return {
        name: re.sub(rb'\n *"?(date|checksum)"?: .*', b"", path.read_bytes())
        for name, path in files.items()
        if not re.search(r"\.lease/|\.lock$|^sources\.json$", name)
    }


def test_ranks_share_the_shards_out_and_make_the_same_store(make_config, save_photos, tmp_path):
    save_photos([(64, 48)] * 6)
    single = make_config()
    extract(single)
    config = make_config(store=str(tmp_path / "ranks"))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(config, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert checksums(config.store) == checksums(single.store)


def test_ranks_that_torchrun_starts_again_meet_each_other_and_not_the_dead(make_config, tmp_path):
    agents = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agents.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    for again in range(2):
        config = make_config(store=str(tmp_path / f"round{again}"))
        common["TORCHELASTIC_RESTART_COUNT"] = str(again)
        ranks = [start(config, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]
        for rank in ranks:
            rank.join(30)
            rank.kill()
        assert [rank.exitcode for rank in ranks] == [0, 0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
