from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.networks import Network
from championship_sr.extract.experts.tiling import Tiling
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.job import Job, run_expert
from championship_sr.extract.run.register import fit_tiling
from championship_sr.extract.run.shares import Rank
from championship_sr.store.disk import files
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.writer import ShardWriter, write_shard

CPU = torch.device("cpu")


class Fragile(nn.Module):
    """x4; Inf where the red of the first pixel is 7 of 255; out of memory above `limit_px` pixels."""

    def __init__(self):
        super().__init__()
        self.body, self.limit_px, self.seen = nn.Conv2d(3, 4, 1), 10**9, []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        if x.shape[0] * x.shape[2] * x.shape[3] > self.limit_px:
            self.body(x)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        x = torch.where(x[:, :1, :1, :1] * 255 == 7, float("inf"), x)
        return self.body(x)[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)


def fragile(precision: str = "fp32", limit_px: int = 10**9) -> LoadedExpert:
    model = Fragile()
    config = load_expert_config({"name": "fragile", "weights": "none", "tap": "body"})
    expert = LoadedExpert(config, Network(model, model, 1, 1, 1, "Fragile", {}, None), CPU, 4, precision=precision)
    model.seen.clear()
    model.limit_px = limit_px
    return expert


@pytest.fixture
def small_store(tmp_path):
    """A store of two images, whose `bad` one makes Fragile's output infinite, with room for the expert."""
    images = [Image(name, name, (20, 24), name, name, i, "file") for i, name in enumerate(("good", "bad"))]
    manifest = Manifest.create(tmp_path / "small", scale=4, container="zarr", images=images)
    for shard, value in enumerate((0, 7)):
        with write_shard(manifest, PAIRS, shard) as out:
            lr = np.full((20, 24, 3), value, np.uint8)
            out.add(images[shard].id, {"lr": lr, "hr": np.zeros((80, 96, 3), np.uint8)})
    arrays = (ArraySpec("sr", 3, 4, "float16"), ArraySpec("features", 4, 1, "float16"))
    manifest.add_expert(Expert("fragile", arrays, {}))
    return manifest


def test_a_value_that_is_not_finite_names_the_image_and_advises_on_precision(small_store):
    expected = (
        r"image bad: expert fragile: .* at precision fp16; "
        "set extract.precision to bf16 or fp32 and run again with --rebuild fragile"
    )
    with pytest.raises(StoreError, match=expected):
        run_expert(small_store, fragile("fp16"), [0, 1], Tiling(64, 8))
    assert small_store.missing_shards("fragile") == [1]  # what was done before stays


def test_out_of_memory_halves_the_batch_and_goes_on(small_store, caplog, pretended_gpu):
    expert = fragile(limit_px=2 * 16 * 16)
    run_expert(small_store, expert, [0], Tiling(16, 2, batch_size=4))
    assert small_store.missing_shards("fragile") == [1]
    assert [shape[0] for shape in expert._network.model.seen][:3] == [4, 2, 2]
    assert "out of memory; continuing with 2 tiles at a time" in caplog.text
    assert not expert._seen  # of the failed forward, whose tap had an output already


def test_out_of_memory_with_one_tile_on_a_gpu_is_no_traceback_either(small_store, pretended_gpu):
    with pytest.raises(StoreError, match=r"image good: out of memory on cpu with one tile of 16 px .*extract.tile_px"):
        run_expert(small_store, fragile(limit_px=100), [0], Tiling(16, 2))


def test_a_value_that_a_gpu_finds_not_finite_names_the_image_too(small_store, pretended_gpu):
    with pytest.raises(
        StoreError, match=r"image bad: expert fragile: .* contains NaN or Inf at precision fp32; the weights"
    ):
        run_expert(small_store, fragile(), [0, 1], Tiling(64, 8))
    assert small_store.missing_shards("fragile") == [1]


def test_out_of_memory_with_one_tile_names_the_image_and_what_to_do(small_store):
    with pytest.raises(StoreError, match=r"image good: out of memory on cpu with one tile of 16 px .*extract.tile_px"):
        run_expert(small_store, fragile(limit_px=100), [0], Tiling(16, 2))


def test_the_tile_is_halved_until_the_largest_image_fits_before_anything_is_recorded(caplog):
    images = [Image("a", "a", (300, 500), "", "", 0, "file"), Image("b", "b", (400, 200), "", "", 0, "file")]
    tiling = fit_tiling(fragile(limit_px=130 * 130), images, Tiling(512, 16, batch_size=2))
    assert tiling == Tiling(128, 16, 1)
    assert "out of memory with" in caplog.text
    with pytest.raises(StoreError, match="out of memory on cpu even with"):
        fit_tiling(fragile(limit_px=100), images, Tiling(512, 16))


def test_a_device_with_little_memory_gets_smaller_tiles_and_batches_and_the_run_goes_on(
    small_store, make_config, monkeypatch, caplog
):
    small_store.remove_expert("fragile")
    expert = fragile(limit_px=10**9)
    monkeypatch.setattr("championship_sr.extract.experts.tiling.SMALLEST_TILE_PX", 8)
    monkeypatch.setattr(Job, "load", lambda self, entry: expert)
    config = make_config(tile_px=16, halo_px=2, batch_size=4)
    job = Job(config, small_store, {}, [0], Rank(), torch.device("cuda"), False)
    expert._network.model.limit_px = 16 * 16 - 1  # one tile of 16 x 16 is too much
    assert job.run(expert.config).shards_written == 1
    assert small_store.experts["fragile"].identity["tiling"] == {"tile_px": 8, "halo_px": 2}
    assert [m for m in caplog.messages if "out of memory" in m and "continuing with Tiling(tile_px=8, halo_px=2" in m]
    assert expert._network.model.seen[-1][2:] == (8, 8)


def test_a_shard_that_another_process_has_is_left_to_it_and_then_taken(small_store, monkeypatch):
    held = write_shard(small_store, "fragile", 0)
    held.__enter__()

    def let_go(_seconds):
        error = RuntimeError("the other process dies")
        with pytest.raises(RuntimeError):
            if not held.__exit__(RuntimeError, error, None):
                raise error

    monkeypatch.setattr("championship_sr.extract.run.shares.time.sleep", let_go)
    assert run_expert(small_store, fragile(), [0], Tiling(64, 8)).shards_written == 1
    assert small_store.missing_shards("fragile") == [1]


@pytest.mark.parametrize("at", ["write", "finish"])
def test_a_shard_that_another_process_took_over_is_dropped_and_the_run_goes_on(make_config, monkeypatch, caplog, at):
    config = make_config()
    once, work = [], getattr(ShardWriter, at)

    def stand_still(self, *args):
        if self._source == "tiny" and not once:
            once.append(self._final)
            (holder,) = Path(self._final.parent, "shard-00000.lease").iterdir()
            holder.unlink()  # as if taken over, what was unfinished cleared away, and given back
            files.remove(self._claim.unfinished)
        return work(self, *args)

    monkeypatch.setattr(ShardWriter, at, stand_still)
    assert extract(config).experts["tiny"].shards_written == 3
    assert "shard-00000: taken over by another process while this process was suspended" in caplog.text
    assert not verify(Path(config.store)).faults


def test_a_full_disk_leaves_nothing_half_written(make_config, monkeypatch):
    config = make_config()

    def full(self, ready):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("championship_sr.store.shards.writer.ShardWriter.write", full)
        extract(config)
    left = {path.name for path in Path(config.store).rglob("*") if path.is_file()}
    assert not left and not Path(config.store).exists()
    assert extract(config).experts["tiny"].shards_written == 3
