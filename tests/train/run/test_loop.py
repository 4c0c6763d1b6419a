"""A whole run on a small store: it learns, it tells, it refuses, and it goes on to the same weights."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from championship_sr.store.disk import locks
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store
from championship_sr.store.shards.writer import write_shard
from championship_sr.train.records.checkpoint import checkpoints, load_fusion
from championship_sr.train.records.folder import read_image_count
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.loop import train
from championship_sr.train.run.watch import Diverged

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNER = """
import sys, torch, yaml
from pathlib import Path
from championship_sr.store.config import build
from championship_sr.train.config import TrainConfig
from championship_sr.train.run.loop import train
torch.set_num_threads(1)
store, out, config = map(Path, sys.argv[1:4])
train(build(TrainConfig, yaml.safe_load(config.read_text()), "config"), store, out, resume=True)
"""


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint has in tensors."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return load_file(folder / "weights.safetensors") | load_file(folder / "training.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("profile", ["swift", "cnn"])
def test_a_fusion_learns_from_experts_with_and_without_features(make_learnable, make_config, tmp_path, profile):
    store = make_learnable(tmp_path / "store", channels={"one": 5, "two": 0})
    fusion = {"profile": profile} if profile == "cnn" else {}
    run = train(make_config(fusion=fusion, steps=4), store, tmp_path / "run")
    loaded = load_fusion(run)
    assert loaded.channels == {"one": 5, "two": 0}
    assert [event["step"] for event in read_metrics(run) if event["event"] == "validation"] == [4]


def test_a_run_begins_with_the_arithmetic_of_its_step_whatever_is_logged(shared_store, make_config, tmp_path, caplog):
    caplog.set_level("WARNING", logger="championship_sr")  # what is shown without --verbose
    train(make_config(steps=1, data={"accumulation": 2}, validation={"hold_out": 0}), shared_store, tmp_path / "run")
    (line,) = [line for line in caplog.messages if line.startswith("a step has")]
    assert "= 1 x 2 x 1; the learning rate is 0.001" in line


def test_images_that_a_store_gets_later_do_not_change_a_run(make_learnable, make_config, tmp_path):
    store = make_learnable(tmp_path / "store")
    run = train(make_config(steps=4), store, tmp_path / "run")
    grown = make_learnable(tmp_path / "grown", seed=1)
    manifest, others = Manifest.load(store), Manifest.load(grown)
    new = [replace(image, shard=1) for image in others.images]
    manifest = Manifest.create(store, scale=4, container="zarr", images=[*manifest.images, *new], grow=True)
    source = Store(grown)
    for name in manifest.sources:
        with write_shard(manifest, name, 1) as out:
            for index, image in enumerate(new):
                arrays = {spec.name: source.array(index, name, spec.name).load() for spec in manifest.specs(name)}
                out.add(image.id, arrays)
    train(make_config(steps=8), store, run, resume=True, changes=True)
    held = [set(event["images"]) for event in read_metrics(run) if event["event"] == "validation"]
    assert held == [{"photo01"}, {"photo01"}] and read_image_count(run) == 3
    both = train(make_config(steps=4), store, tmp_path / "both")
    assert read_image_count(both) == 6


def test_a_run_with_muon_goes_on_to_the_same_weights(make_config, shared_store, tmp_path):
    pytest.importorskip("timm")
    muon = {"optimiser": {"kind": "muon", "learning_rate": 2e-3}, "schedule": {"kind": "constant", "warmup": 1}}
    whole = train(make_config(steps=6, **muon), shared_store, tmp_path / "whole")
    half = train(make_config(steps=3, **muon), shared_store, tmp_path / "half")
    train(make_config(steps=6, **muon), shared_store, half, resume=True, changes=True)
    assert same(weights(whole, 6), weights(half, 6))
    kept = {key.rpartition(":")[2] for key in weights(whole, 6) if key.startswith("optimiser.")}
    assert {"momentum_buffer", "exp_avg_sq"} <= kept


def runner(config, tmp_path: Path, *arguments: str | Path) -> list[str]:
    """The command of a run in a process of its own."""
    from championship_sr.store.config import dump_yaml, to_plain

    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(to_plain(config)))
    return [sys.executable, "-c", RUNNER, *map(str, arguments), str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(shared_store, make_config, tmp_path_factory):
    """A run of 24 steps that nothing disturbed."""
    torch.set_num_threads(1)
    return train(make_config(steps=24), shared_store, tmp_path_factory.mktemp("finished") / "run")


def test_the_trained_network_passes_every_expert_and_their_mean(finished):
    events = read_metrics(finished)
    lines = events[0]["psnr"]
    assert events[0]["event"] == "reference" and set(lines) == {"one", "two", "mean", "fitted"}
    assert load_fusion(finished).checkpoint.psnr > max(lines.values()) + 0.5


def test_the_log_names_every_step_validation_and_the_end(finished):
    events = read_metrics(finished)
    kinds = [event["event"] for event in events]
    assert kinds.count("train") == 24 and kinds.count("validation") == 6 and kinds[-1] == "end"
    step = next(event for event in events if event["event"] == "train")
    assert step["losses"]["l1"] == pytest.approx(step["loss"]) and step["stage"] == "pixels"
    assert step["gradient_norm"] > 0 and step["steps_per_second"] > 0 and 0 <= step["waiting"] <= 1


def test_what_is_scored_is_what_is_saved_and_loaded(finished, shared_store):
    from championship_sr.store.shards.reader import Store
    from championship_sr.train.data.whole import read_stored
    from championship_sr.train.metrics import psnr, rgb_to_y, round_to_8bit

    loaded = load_fusion(finished)
    assert not loaded.network.training and loaded.experts == ("one", "two") and loaded.channels == {"one": 5, "two": 7}
    store = Store(shared_store)
    held = next(e for e in read_metrics(finished) if e["event"] == "validation")["images"]
    index = [image.id for image in store.images].index(next(iter(held)))
    whole = read_stored(store, index, loaded.experts, torch.device("cpu"))
    with torch.no_grad():
        sr = loaded.network(whole.lr, whole.images, whole.features)
    found = psnr(rgb_to_y(round_to_8bit(sr)), rgb_to_y(round_to_8bit(whole.hr)), border=4).item()
    assert found == pytest.approx(loaded.checkpoint.psnr, abs=1e-6)
    scored, trained = (load_file(loaded.checkpoint.path / f"{name}.safetensors") for name in ("weights", "training"))
    assert any(not torch.equal(value, trained[f"network.{key}"]) for key, value in scored.items())


def test_validation_images_are_not_trained_on(finished, shared_store, make_config, tmp_path):
    from championship_sr.store.shards.reader import Store
    from championship_sr.train.processes import World
    from championship_sr.train.run.sources import make_loader, make_validation, open_source

    config, cpu = make_config(validation={"images": ["photo00"]}), torch.device("cpu")
    source = open_source(shared_store, config, cpu)
    training, validation = make_validation(source, config, tmp_path, World(cpu))
    assert validation.images == [0] and training == [1, 2]
    loader = make_loader(source, training, config, World(cpu))
    seen = {place.image for step in range(50) for place in loader.places(step)}
    assert seen == {1, 2} and len(Store(shared_store).images) == 3


@pytest.mark.slow
def test_a_run_killed_at_random_steps_ends_with_the_same_weights_bit_for_bit(
    finished, shared_store, make_config, tmp_path
):
    out, rng = tmp_path / "run", random.Random(time.time_ns())
    command = runner(make_config(steps=24), tmp_path, shared_store, out)
    kills = 0
    while True:
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
        goal = rng.randint(1, 23) if kills < 3 else 10**9
        while process.poll() is None and len(read_lines(out)) < goal:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert process.returncode == 0, process.communicate()[1].decode()
    assert kills == 3
    assert same(weights(out, 24), weights(finished, 24))
    assert [c.step for c in checkpoints(out)] == [c.step for c in checkpoints(finished)]
    assert steps_of(out) == steps_of(finished)


def read_lines(run: Path) -> list[str]:
    """The steps in the log, as far as they are written."""
    path = run / "metrics.jsonl"
    return [line for line in path.read_text().splitlines() if '"train"' in line] if path.exists() else []


def steps_of(run: Path) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in read_metrics(run)]


def test_sigterm_ends_in_a_checkpoint_and_the_run_goes_on_to_the_same_weights(
    finished, shared_store, make_config, tmp_path
):
    out = tmp_path / "run"
    command = runner(make_config(steps=24), tmp_path, shared_store, out)
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    while len(read_lines(out)) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode not in (0, -signal.SIGTERM)
    stopped = checkpoints(out)[-1].step
    assert 2 <= stopped < 24
    train(make_config(steps=24), shared_store, out, resume=True)
    assert same(weights(out, 24), weights(finished, 24))


def test_a_finished_run_is_left_as_it_is(finished, shared_store, make_config):
    before = steps_of(finished)
    train(make_config(steps=24), shared_store, finished, resume=True)
    assert [event for event in steps_of(finished) if event[0] != "end"] == [e for e in before if e[0] != "end"]


def test_accumulation_gives_the_gradient_of_the_whole_batch(shared_store, make_config, tmp_path):
    whole, parts = (
        train(make_config(steps=4, data={"batch_size": 4, "accumulation": n}), shared_store, tmp_path / str(n))
        for n in (1, 2)
    )
    a, b = (load_fusion(run, "last").network.state_dict() for run in (whole, parts))
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(shared_store, make_config, tmp_path):
    config = make_config(steps=6, data={"batch_size": 4}, validation={"hold_out": 2})
    alone = train(config, shared_store, tmp_path / "alone")
    script = tmp_path / "run.py"
    script.write_text(RUNNER)
    _, _, _, *arguments = runner(config, tmp_path, shared_store, tmp_path / "together")
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *meeting]
    done = subprocess.run(
        [*launcher, script, *arguments], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (load_fusion(run, "last") for run in (alone, tmp_path / "together"))
    for key, value in a.network.state_dict().items():
        torch.testing.assert_close(b.network.state_dict()[key], value, atol=1e-5, rtol=0)
    assert b.checkpoint.psnr == pytest.approx(a.checkpoint.psnr, abs=1e-3)
    assert [e["step"] for e in read_metrics(tmp_path / "together")] == [e["step"] for e in read_metrics(alone)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def poisoned(make_learnable, tmp_path):
    """A store one of whose images has a feature so large that the network overflows."""
    return make_learnable(tmp_path / "poisoned", poison="photo02", sizes=((16, 16),) * 3, codec="float32")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(poisoned, make_config, tmp_path):
    config = make_config(steps=40, data={"batch_size": 1}, validation={"every": 1000, "images": ["photo00"]},
                         checkpoints={"every": 1})  # fmt: skip
    with pytest.raises(Diverged, match=r"step \d+: the loss or its gradient is nan; its windows: photo02 at"):
        train(config, poisoned, tmp_path / "run")
    kept = checkpoints(tmp_path / "run")
    for checkpoint in kept:
        assert all(value.isfinite().all() for value in load_file(checkpoint.path / "weights.safetensors").values())
    assert kept or not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_patience_ends_the_run_early(shared_store, make_config, tmp_path):
    config = make_config(
        steps=40, validation={"every": 1, "patience": 2, "hold_out": 1}, optimiser={"learning_rate": 1e-12}
    )
    run = train(config, shared_store, tmp_path / "run")
    end = read_metrics(run)[-1]
    assert end["reason"] == "patience" and end["step"] < 40
    train(config, shared_store, run, resume=True)
    assert checkpoints(run)[-1].step == end["step"]


def test_an_expert_that_the_store_lacks_is_named(shared_store, make_config, tmp_path):
    with pytest.raises(StoreError, match=r"no features for three.*extract --expert three"):
        train(make_config(experts=["one", "three"]), shared_store, tmp_path / "run")


def test_random_weights_are_refused_unless_told(make_learnable, make_config, tmp_path):
    store = make_learnable(tmp_path / "store", random_weights=True)
    with pytest.raises(StoreError, match=r"one, two had random weights.*allow_random_weights=true"):
        train(make_config(), store, tmp_path / "run")
    train(make_config(steps=1, allow_random_weights=True), store, tmp_path / "run")


def test_a_folder_with_a_run_is_not_overwritten(finished, shared_store, make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"already holds a run\. Continue it with --resume"):
        train(make_config(steps=24), shared_store, finished)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a run and not empty"):
        train(make_config(), shared_store, tmp_path)


def test_a_run_that_failed_before_its_first_checkpoint_may_begin_anew(shared_store, make_config, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        train(
            make_config(
                steps=1,
                losses={"stages": [{"length": "100 %", "weights": {"vgg": 1}}], "vgg_weights": str(tmp_path / "none")},
            ),
            shared_store,
            tmp_path / "run",
        )
    assert checkpoints(train(make_config(steps=1), shared_store, tmp_path / "run"))


def test_two_processes_cannot_train_one_run(shared_store, make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with locks.locked(tmp_path / "run" / "run.lock"), pytest.raises(StoreError, match="another process"):
        train(make_config(), shared_store, tmp_path / "run")


def test_resuming_with_another_configuration_names_what_differs(finished, shared_store, make_config):
    with pytest.raises(ConfigError, match=r"another configuration: seed is 42 there, 7 now"):
        train(make_config(steps=24, seed=7), shared_store, finished, resume=True)
    with pytest.raises(ConfigError, match=r"fusion\.hierarchy is 8 there, 16 now"):
        train(make_config(steps=24, fusion={"hierarchy": 16}), shared_store, finished, resume=True, changes=True)


def test_resuming_from_a_store_with_other_experts_names_what_differs(finished, make_learnable, make_config, tmp_path):
    store = make_learnable(tmp_path / "store", channels={"two": 7, "one": 5})
    with pytest.raises(StoreError, match="the store's one is not the one the run started with: weights_sha256"):
        train(make_config(steps=24, experts=["one", "two"]), store, finished, resume=True, changes=True)


def test_resuming_from_a_store_with_other_channel_widths_names_them(finished, make_learnable, make_config, tmp_path):
    store = make_learnable(tmp_path / "store", channels={"one": 6, "two": 7})
    with pytest.raises(StoreError, match="the store's one has 6 feature channels, but the run's network takes 5"):
        train(make_config(steps=24), store, finished, resume=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_goes_on_to_the_same_weights(precision, shared_store, make_config, tmp_path):
    config = make_config(steps=4, precision=precision, checkpoints={"every": 2}, validation={"every": 4})
    whole = train(config, shared_store, tmp_path / "whole")
    shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    train(config, shared_store, tmp_path / "resumed", resume=True)
    assert same(weights(tmp_path / "resumed", 4), weights(whole, 4))
    state = json.loads((whole / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert bool(state["extra"]["scaler"]) == (precision == "fp16")


def test_mixup_and_cutblur_change_what_is_trained_on(shared_store, make_config, tmp_path):
    plain, mixed, cut = (
        [event["loss"] for event in read_metrics(train(make_config(steps=2, data=data), shared_store, tmp_path / name))
         if event["event"] == "train"]
        for name, data in (("plain", {}), ("mixup", {"mixup": 1.0}), ("cutblur", {"cutblur": 1.0}))
    )  # fmt: skip
    assert plain[0] != mixed[0] and plain[0] != cut[0]
