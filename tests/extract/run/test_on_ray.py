"""Extraction on a Ray cluster of several nodes, all of them on this machine's loopback."""

import json
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from championship_sr.extract.config import expert_configs
from championship_sr.extract.run import on_ray as engine_ray
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.on_ray import RayOptions, Shares, Worker, actor_shares, connect
from championship_sr.extract.run.shares import Rank
from championship_sr.store.disk.leases import Holder
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.operations.verify import verify
from championship_sr.store.remote.transfer import pull
from tests.s3_server import Fault

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for "this machine" and puts its outer address in its place
OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes
NETWORKS = """
import os, time
from championship_sr.extract.edsr import EDSR

class Halting(EDSR):
    "On Ray, each actor makes two images and halts in the third, until one node is dead."
    images = 0
    def forward(self, x):
        if "RAY_RAYLET_PID" in os.environ and x.shape[-1] == 12:
            self.images += 1
            while self.images == 3 and not os.path.exists("NODE_IS_DEAD"):
                time.sleep(0.01)
        return super().forward(x)

class Broken(EDSR):
    def forward(self, x):
        return super().forward(x) / (0 if x.shape[-1] == 20 else 1)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one CPU each; this process is connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    common = {"node_ip_address": LOOPBACK, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # its 15 makes an import of torch a minute where others are busy
        cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 1})
        try:
            cluster.add_node(**common, num_cpus=1)
            ray.init(address=cluster.address, _node_ip_address=LOOPBACK, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


class ActorLost(Exception):
    """What the stand-in for Ray raises in place of its RayActorError."""


class StandIn:
    """As much of Ray as a crew of actors needs, in this process, with some actors that are never placed or are lost.

    nowhere  actors, by the order of their hiring, that no node ever starts
    dying    actors that are lost when they load the expert
    """

    exceptions = SimpleNamespace(RayActorError=ActorLost, RayTaskError=KeyError)

    def __init__(self, nowhere: set[int], dying: set[int]) -> None:
        self.nowhere, self.dying, self.hired, self.killed = nowhere, dying, 0, []
        self.loaders: list[int] = []

    def remote(self, **_resources):
        return lambda cls: SimpleNamespace(remote=lambda *args: self.hire(cls(*args)))

    def hire(self, worker) -> SimpleNamespace:
        actor, self.hired = self.hired, self.hired + 1

        def begin(tiling):
            self.loaders.append(actor)
            if actor in self.dying:
                raise ActorLost(f"actor {actor}")
            return worker.begin(tiling)

        def method(call):
            return SimpleNamespace(remote=lambda *args: (actor, partial(call, *args)))

        return SimpleNamespace(index=actor, place=method(worker.place), begin=method(begin), make=method(worker.make))

    def wait(self, references, timeout):
        ready = [reference for reference in references if reference[0] not in self.nowhere]
        assert ready, "nothing that is waited for can ever come"
        return ready[:1], references

    def get(self, reference):
        return reference[1]()

    def kill(self, actor):
        self.killed.append(actor.index)


@pytest.mark.parametrize(
    ("nowhere", "dying", "loaders"),
    [
        ({0}, set(), [1]),  # placed on a node that has just died, whose cores nobody else gives back
        ({0, 2}, {1}, [1, 3]),  # so is the one that takes the place of a lost one
        (set(), {0}, [0, 1]),
    ],
)
def test_whichever_actor_runs_first_loads_the_expert(make_config, monkeypatch, nowhere, dying, loaders):
    alone = make_config()
    extract(alone)
    config, ray = make_config(store=str(Path(alone.store).with_name("crew"))), StandIn(nowhere, dying)
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 2}}]
    monkeypatch.setattr(engine_ray, "connect", lambda *_args: ray)
    monkeypatch.setattr(engine_ray.leases, "revoke", lambda *_args: None)
    extract(config, cluster=RayOptions(actors=len(nowhere | dying) + 1, cpus_per_actor=1))
    assert ray.loaders[: len(loaders)] == loaders
    assert checksums(config.store) == checksums(alone.store)
    assert sorted(set(ray.killed)) == list(range(ray.hired))


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """Entries of experts that only PYTHONPATH finds."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/networks_on_ray.py").write_text(NETWORKS.replace("NODE_IS_DEAD", str(tmp_path / "dead")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.syspath_prepend(tmp_path / "code")

    def entry(name: str) -> dict:
        yaml = {"name": name.lower(), "weights": "none", "tap": "conv_after_body"}
        return yaml | {
            "architecture": f"networks_on_ray:{name}", "hyperparameters": {"num_feat": 4, "num_block": 1},
        }  # fmt: skip

    yield entry
    sys.modules.pop("networks_on_ray", None)


def checksums(root: str | Path) -> dict[str, str]:
    return {
        f"{path.parent.name}/{key}": array["sha256"]
        for path in Path(root).rglob("shard-*.json")
        for key, array in json.loads(path.read_text())["arrays"].items()
    }


def kill_node_in_the_middle(cluster, folder: Path, killed: list, stop: threading.Event, mark: Path) -> None:
    """Kills the second node with a process of it that holds a shard and halts in it."""
    (node,) = cluster.worker_nodes
    raylet = node.all_processes["raylet"][0].process.pid
    while not killed and not stop.wait(0.005):
        if len(list(folder.glob("shard-*.json"))) < 4:
            continue
        for held in folder.glob("*.lease/*"):
            pid = Holder.of(held.name).pid
            if parent_of(pid) == raylet and not held.parent.with_suffix(".json").exists():  # else it is just letting go
                for process in (raylet, pid):
                    os.kill(process, signal.SIGKILL)
                killed.append(int(held.parent.stem.removeprefix("shard-")))
                cluster.remove_node(node, allow_graceful=False)
                mark.touch()
                break


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_failed_task_names_expert_shard_and_node(cluster, make_config, networks):
    config = make_config(experts=[networks("Broken")], random_weights=True)
    where = rf"shard 1 on node {os.uname().nodename} \(process \d+\)"
    with pytest.raises(StoreError, match=rf"^broken: {where}: image photo1: expert broken: "):
        extract(config, cluster=RayOptions(actors=1))
    assert not list(Path(config.store).rglob("*.tmp"))


def test_a_store_made_while_a_node_is_killed_equals_one_made_alone(
    cluster, make_config, networks, save_photos, tmp_path, caplog
):
    options = {"data": {"hr": [str(save_photos([(64, 48)] * 10))]}, "random_weights": True}
    experts = [networks("Halting"), networks("Halting") | {"name": "after"}]
    alone = make_config(experts=experts, **options)
    extract(alone)
    config = make_config(experts=experts, **options, store=str(Path(alone.store).with_name("on-ray")))
    folder, killed, stop = Path(config.store, "experts/halting"), [], threading.Event()
    args = (cluster, folder, killed, stop, tmp_path / "dead")
    killer = threading.Thread(target=kill_node_in_the_middle, args=args)
    killer.start()
    try:
        summary = extract(config, cluster=RayOptions(cpus_per_actor=1))
    finally:
        stop.set()
        killer.join()
    assert {name: done.shards_written for name, done in summary.experts.items()} == {"halting": 10, "after": 10}
    assert f"halting: shard {killed[0]} was lost with node" in caplog.text
    assert checksums(config.store) == checksums(alone.store)
    assert not verify(Path(config.store)).faults


def interrupt(*_args) -> None:
    raise KeyboardInterrupt


def test_workers_commit_to_a_bucket_from_folders_of_their_own(make_config, bucket, proxy, tmp_path, monkeypatch):
    alone = make_config(codecs={"features": "pca4-int8"})
    extract(alone)
    config = make_config(store=f"{bucket}/ray.store", codecs={"features": "pca4-int8"})
    proxy.faults.append(Fault("stall", "PUT", "pairs/shard-00000"))  # the others wait behind it
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine_ray, "connect", lambda *_args: SimpleNamespace(nodes=lambda: []))
        patch.setattr(engine_ray, "actor_shares", interrupt)  # every pair must be in the bucket when workers start
        extract(config, staging=tmp_path / "driver", cluster=RayOptions())
    monkeypatch.chdir(tmp_path)
    tiling, (entry,) = None, expert_configs(config.experts)
    for shard in range(3):
        worker = Worker(str(tmp_path), 1, config, entry, False, tmp_path / f"node{shard}")
        tiling = worker.begin(tiling)
        worker.make(shard, tiling)
    pull(config.store, tmp_path / "pulled")
    assert checksums(tmp_path / "pulled") == checksums(alone.store)


def nodes(*cpus_and_gpus: tuple[float, float]) -> list[dict[str, float]]:
    return [{"CPU": cpus} | ({"GPU": gpus} if gpus else {}) for cpus, gpus in cpus_and_gpus]


@pytest.mark.parametrize(
    ("options", "device", "there", "expected"),
    [
        ({}, "auto", nodes((64, 8), (64, 8)), Shares(16, 1, 8)),
        ({}, "auto", nodes((2, 0), (32, 4)), Shares(4, 1, 8)),
        ({}, "cpu", nodes((64, 8), (16, 0)), Shares(5, 0, 16)),
        ({}, "auto", nodes((0, 0), (8, 0), (4, 0)), Shares(3, 0, 4)),
        ({"gpus_per_actor": 0.5}, "auto", nodes((16, 2)), Shares(4, 0.5, 4)),
        ({"cpus_per_actor": 2}, "auto", nodes((8, 0), (5, 0)), Shares(6, 0, 2)),
        ({"actors": 3}, "auto", nodes((64, 8)), Shares(3, 1, 8)),
    ],
)
def test_actors_share_the_nodes_out(options, device, there, expected):
    assert actor_shares(RayOptions(**options), there, device) == expected


@pytest.mark.parametrize("options", [{"gpus_per_actor": 1}, {"cpus_per_actor": 9}])
def test_a_cluster_without_room_for_an_actor_is_refused(options):
    with pytest.raises(ConfigError, match=r"which no node has \(nodes have: 8 CPUs, 0 GPUs; 4 CPUs, 0 GPUs\)"):
        actor_shares(RayOptions(**options), nodes((8, 0), (4, 0)), "auto")


def test_without_ray_it_says_what_to_install(monkeypatch, make_config):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'championship-sr\[ray\]'"):
        extract(make_config(), cluster=RayOptions())


def test_an_address_where_nothing_answers_is_named_at_once(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(StoreError, match=rf"--address {address}: no Ray cluster answers there \(.*refused\)"):
            connect(RayOptions(address))


def test_torchrun_and_ray_do_not_mix():
    with pytest.raises(ConfigError, match="without torchrun"):
        connect(RayOptions(), Rank(1, 1, 2))
