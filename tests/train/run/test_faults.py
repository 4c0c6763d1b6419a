"""Disturbed runs: damaged checkpoints, full disks, memory that is short, two at once. Nothing saved is lost."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from championship_sr.store.disk import locks
from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.store.shards.reader import Store
from championship_sr.train.combination import combined
from championship_sr.train.processes import World
from championship_sr.train.records.checkpoint import Damaged, checkpoints, load_fusion
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.loop import train
from championship_sr.train.run.sources import make_validation, open_source

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SHORT = {"steps": 4, "checkpoints": {"every": 2, "milestones": []}, "validation": {"every": 2}}


@pytest.fixture(scope="module")
def four_steps(shared_store, make_config, tmp_path_factory) -> Path:
    """A run of four steps with checkpoints of the second and the fourth."""
    torch.set_num_threads(1)
    return train(make_config(**SHORT), shared_store, tmp_path_factory.mktemp("faults") / "run")


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def of_step(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def weights(run: Path, step: int) -> list[torch.Tensor]:
    return list(load_file(of_step(run, step) / "training.safetensors").values())


def same(one: Path, other: Path, step: int) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one, step), weights(other, step), strict=True))


def test_a_run_records_which_images_it_trained_on_by_their_contents(four_steps, shared_store):
    lines = [json.loads(line) for line in (four_steps / "images.jsonl").read_text().splitlines()]
    images = {image.id: (image.hr_sha256, image.lr_sha256) for image in Store(shared_store).images}
    assert {line["id"]: (line["hr_sha256"], line["lr_sha256"]) for line in lines} == images
    validated = read_metrics(four_steps)[-2]["images"]
    assert {line["id"] for line in lines if line["use"] == "validation"} == set(validated)


def test_a_run_without_validation_records_its_images_too(shared_store, make_config, tmp_path):
    run = train(make_config(steps=1, validation={"hold_out": 0}), shared_store, tmp_path / "run")
    uses = [json.loads(line)["use"] for line in (run / "images.jsonl").read_text().splitlines()]
    assert uses == ["training"] * len(Store(shared_store).images)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit of the weights": lambda folder: flip(folder / "weights.safetensors"),
    "a bit of the optimiser's state": lambda folder: flip(folder / "training.safetensors"),
    "no bytes of the state": lambda folder: (folder / "state.json").write_bytes(b""),
    "another number in the state": lambda folder: (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace('"stale": 0', '"stale": 7').replace('"stale": 1', '"stale": 7')
    ),
    "a list in place of the state": lambda folder: (folder / "state.json").write_text("[1, 2]"),
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    damage, four_steps, shared_store, make_config, tmp_path, caplog
):
    run = copied(four_steps, tmp_path)
    DAMAGES[damage](of_step(run, 4))
    with caplog.at_level(logging.WARNING):
        train(make_config(**SHORT), shared_store, run, resume=True)
    lines = [line for line in caplog.messages if "continuing from the previous checkpoint" in line]
    assert len(lines) == 1 and "step-00000004" in lines[0] and "\n" not in lines[0]
    assert same(run, four_steps, 4)
    assert (run / "checkpoints" / "step-00000004.damaged").exists()
    assert [event["step"] for event in read_metrics(run) if event["event"] == "train"] == [1, 2, 3, 4]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(four_steps, shared_store, make_config, tmp_path):
    run = copied(four_steps, tmp_path)
    for step in (2, 4):
        (of_step(run, step) / "state.json").write_bytes(b"")
    with pytest.raises(WeightsError, match="all of its checkpoints are damaged"):
        train(make_config(**SHORT), shared_store, run, resume=True)
    assert of_step(run, 4).exists() and read_metrics(run)[-1]["step"] == 4


def test_damaged_weights_are_not_loaded_for_inference(four_steps, tmp_path):
    run = copied(four_steps, tmp_path)
    flip(of_step(run, 4) / "weights.safetensors")
    with pytest.raises(Damaged, match=r"step-00000004/weights\.safetensors: damaged: its bytes are not"):
        load_fusion(run, 4)
    assert load_fusion(run, 2).checkpoint.step == 2


def test_checkpoints_from_before_checksums_are_read(four_steps, shared_store, make_config, tmp_path):
    run = copied(four_steps, tmp_path)
    for step in (2, 4):
        path = of_step(run, step) / "state.json"
        state = json.loads(path.read_text())
        del state["sha256"]
        path.write_text(json.dumps(state))
    shutil.rmtree(of_step(run, 4))
    train(make_config(**SHORT), shared_store, run, resume=True)
    assert same(run, four_steps, 4)


@pytest.mark.parametrize("full_at", ["training.safetensors", "state.json", "metrics.jsonl"])
def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(
    full_at, four_steps, shared_store, make_config, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    train(make_config(**{**SHORT, "steps": 2}), shared_store, run)
    config = make_config(**SHORT)
    with monkeypatch.context() as disk:
        fill(disk, full_at)
        with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)") as error:
            train(config, shared_store, run, resume=True, changes=True)
    assert "\n" not in str(error.value)
    assert [checkpoint.step for checkpoint in checkpoints(run)] == [2]
    assert not list((run / "checkpoints").glob("*.tmp"))
    train(config, shared_store, run, resume=True)
    assert weights(run, 4) and read_metrics(run)[-1]["event"] == "end"


def fill(disk, name: str) -> None:
    """Lets every write to a file of this name fail as on a full disk."""
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if name == "metrics.jsonl":
        opened = open
        disk.setattr(
            "championship_sr.train.records.journal.open",
            lambda path, *rest, **kw: opened("/dev/full", *rest, **kw),
            raising=False,
        )
        return

    def refuse(function, at):
        def written(*args, **options):
            if any(isinstance(arg, Path) and arg.name == name for arg in args):
                raise no_space
            return function(*args, **options)

        disk.setattr(at, written)

    refuse(Path.write_bytes, "pathlib.Path.write_bytes")
    from championship_sr.train.records.checkpoint import save_file

    refuse(save_file, "championship_sr.train.records.checkpoint.save_file")


def test_memory_that_is_short_in_validation_loses_nothing(four_steps, shared_store, make_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as short:
        short.setattr("championship_sr.train.run.validation.Validation.score", out_of_memory)
        with pytest.raises(StoreError, match="out of memory in validation at step 2, whose checkpoint is saved"):
            train(make_config(**SHORT), shared_store, run)
    assert [(checkpoint.step, checkpoint.psnr) for checkpoint in checkpoints(run)] == [(2, None)]
    train(make_config(**SHORT), shared_store, run, resume=True)
    assert same(run, four_steps, 4)
    assert [checkpoint.psnr for checkpoint in checkpoints(run)] == [c.psnr for c in checkpoints(four_steps)]
    assert kinds(run) == kinds(four_steps)


def test_memory_that_is_short_before_the_first_step_is_told_in_a_line(shared_store, make_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as short:
        short.setattr("championship_sr.train.run.sources.read_stored", out_of_memory)
        with pytest.raises(StoreError, match="out of memory in validation before the first step; run the same command"):
            train(make_config(**SHORT), shared_store, run)
    assert not kinds(run)
    train(make_config(**SHORT, ema_decay=0.5), shared_store, run)
    assert kinds(run)[0] == ("reference", 0)


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("out of memory")


def kinds(run: Path) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in read_metrics(run)]


def test_a_second_run_in_a_folder_leaves_the_firsts_configuration(four_steps, shared_store, make_config, tmp_path):
    run = copied(four_steps, tmp_path)
    shutil.rmtree(run / "checkpoints")  # it has begun, and has none yet
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "run.yaml", "experts.yaml")}
    with locks.locked(run / "run.lock"), pytest.raises(StoreError, match="another process"):
        train(make_config(**SHORT, seed=7), shared_store, run)
    assert {name: (run / name).read_bytes() for name in before} == before


def test_of_two_processes_in_one_folder_the_second_is_refused_and_changes_nothing(shared_store, make_config, tmp_path):
    run, context = tmp_path / "run", multiprocessing.get_context("fork")  # forked: it starts in milliseconds
    first = context.Process(target=train, args=(make_config(**{**SHORT, "steps": 100_000}), shared_store, run))
    first.start()
    try:
        while first.is_alive() and not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        names = ("config.yaml", "run.yaml", "experts.yaml", "images.jsonl")
        before = {name: (run / name).read_bytes() for name in names}
        with pytest.raises(StoreError, match=f"being written by process {first.pid} on ") as error:
            train(make_config(**SHORT, seed=7), shared_store, run)
        assert "\n" not in str(error.value) and first.is_alive()
        assert {name: (run / name).read_bytes() for name in names} == before
    finally:
        first.kill()
        first.join()


def test_validation_goes_on_in_tiles_where_memory_is_short(shared_store, make_config, tmp_path, caplog):
    source = open_source(shared_store, make_config(), World(CPU))
    _, validation = make_validation(source, make_config(), tmp_path, World(CPU))
    whole = validation.read(validation.images[0])
    whole = whole._replace(**{key: value.repeat(*[1] * (value.ndim - 2), 12, 12) for key, value in
                              (("lr", whole.lr), ("hr", whole.hr), ("images", whole.images))}, features={})  # fmt: skip
    validation.read = lambda index: whole

    class Short(torch.nn.Module):
        """The experts' mean, on a device with memory for 100 rows."""

        def forward(self, lr, images, features):
            if lr.shape[-2] > 100:
                raise torch.OutOfMemoryError("out of memory")
            assert images.shape[-2:] == (4 * lr.shape[-2], 4 * lr.shape[-1])
            return images.mean(1)

    mean = whole.images.mean(1)
    assert torch.equal(validation._tiled(Short(), whole), mean)
    assert whole.lr.shape[-2] > 100 >= validation.tile_px
    assert "out of memory; continuing with tiles of" in caplog.text


def test_the_references_are_made_in_tiles_where_memory_is_short(shared_store, make_config, tmp_path, monkeypatch):
    source = open_source(shared_store, make_config(), World(CPU))
    _, validation = make_validation(source, make_config(), tmp_path, World(CPU))
    fitted = dict.fromkeys(source.entries, 1 / len(source.entries))
    wanted = {method: scores.images for method, scores in validation.references(fitted).items()}
    whole = max(max(validation.store.images[image].lr_size) for image in validation.images)
    monkeypatch.setattr("championship_sr.train.run.validation.SMALLEST_TILE_PX", 4)

    def short(images, weights):
        if max(images.shape[-2:]) >= 4 * whole:
            raise torch.OutOfMemoryError("out of memory")
        return combined(images, weights)

    monkeypatch.setattr("championship_sr.train.run.validation.combined", short)
    monkeypatch.setattr("championship_sr.train.data.whole.HALO_PX", 1)
    tiled = validation.references(fitted)
    assert {method: scores.images for method, scores in tiled.items()} == wanted
    assert validation.tile_px == whole // 2
