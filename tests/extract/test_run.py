import json
import multiprocessing
import os
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Picture
from torch import nn

from extract.config import load_expert_config
from extract.entry import fit_tiling
from extract.experts import LoadedExpert, load_expert
from extract.networks import Network
from extract.run import extract, run_expert
from extract.shares import Part
from extract.tiling import Tiling, as_input, run_tiled
from store import files
from store.errors import ConfigError, StoreError
from store.layout import PAIRS, transform
from store.manifest import ArraySpec, Expert, Image, Manifest
from store.merge import merge
from store.reader import Store
from store.verify import verify
from store.writer import ShardWriter, write_shard

CPU = torch.device("cpu")


def checksums(root: Path) -> dict[str, str]:
    """`source/array` -> sha256, from the records."""
    return {
        f"{path.parent.name}/{key}": array["sha256"]
        for path in sorted(Path(root).rglob("shard-*.json"))
        for key, array in json.loads(path.read_text())["arrays"].items()
    }


def test_the_store_holds_what_the_expert_says(make_config):
    config = make_config()
    summary = extract(config)
    assert (summary.images, summary.shards, summary.experts["tiny"].shards_written) == (3, 3, 3)
    store = Store(summary.store)
    expert = load_expert(load_expert_config(config.experts[0]), CPU, 4)
    for i in range(3):
        lr = store.array(i, PAIRS, "lr").load()
        sr, features = expert(as_input(lr))
        stored = store.array(i, "tiny", "features").load()
        assert np.array_equal(stored, features["features"][0].permute(1, 2, 0).half().float().numpy())
        assert np.array_equal(store.array(i, "tiny", "sr").load(), sr[0].permute(1, 2, 0).half().float().numpy())


def test_pairs_are_the_images_and_their_hashes(make_config, tmp_path):
    extract(make_config())
    store = Store(tmp_path / "store")
    hr = np.asarray(Picture.open(tmp_path / "HR/photo0.png"))
    assert store.images[0].name == "photo0.png" and store.images[0].lr_source == "bicubic"
    assert np.array_equal(store.array(0, PAIRS, "hr").load(), hr)
    assert set(checksums(tmp_path / "store")) >= {"pairs/photo0/lr", "pairs/photo0/hr"}
    assert checksums(tmp_path / "store")["pairs/photo0/lr"] == store.images[0].lr_sha256


def test_parts_order_and_restarts_give_the_same_bytes(make_config, tmp_path, monkeypatch):
    whole = make_config(tile_px=12, halo_px=2, batch_size=2)
    extract(whole)
    parts = make_config(store=str(tmp_path / "parts"), tile_px=12, halo_px=2, batch_size=2)
    assert extract(parts, part=Part(2, 2)).experts["tiny"].shards_written in (1, 2)
    extract(parts, part=Part(1, 2))
    stopped = make_config(store=str(tmp_path / "stopped"), tile_px=12, halo_px=2, batch_size=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("extract.run.run_tiled", interrupt_at(2))
        extract(stopped)
    assert 0 < extract(stopped).experts["tiny"].shards_written < 3
    assert checksums(parts.store) == checksums(whole.store) == checksums(stopped.store)


def interrupt_at(n: int):
    """`run_tiled`, interrupted in its n-th image."""
    calls = []

    def run(*args):
        calls.append(args)
        if len(calls) == n:
            raise KeyboardInterrupt
        return run_tiled(*args)

    return run


def test_parts_in_stores_of_their_own_merge_to_the_whole(make_config, save_edsr, tmp_path):
    experts = [save_edsr("one"), save_edsr("two", seed=1)]
    extract(make_config(experts=experts))
    extract(make_config(experts=experts, store=str(tmp_path / "a")), part=Part(1, 2))
    extract(make_config(experts=experts, store=str(tmp_path / "b")), ["one"], part=Part(2, 2))
    extract(make_config(experts=experts, store=str(tmp_path / "c")), ["two"])
    merge([tmp_path / name for name in "abc"], tmp_path / "merged")
    assert checksums(tmp_path / "merged") == checksums(tmp_path / "store")
    Store(tmp_path / "merged", ["one", "two"])


def test_a_part_reads_only_its_own_images(make_config):
    config = make_config()
    extract(config, part=Part(1, 3))
    manifest = Manifest.load(Path(config.store))
    assert len(manifest.missing_shards("tiny")) == len(manifest.missing_shards(PAIRS)) == 2


def test_what_is_done_is_not_done_again(make_config, monkeypatch):
    config = make_config()
    extract(config)
    monkeypatch.setattr("extract.run.run_tiled", interrupt_at(1))
    monkeypatch.setattr("extract.images.decode", interrupt_at(1))
    assert extract(config).experts["tiny"].shards_written == 0


def test_a_missing_shard_alone_is_made_again(make_config):
    config = make_config()
    extract(config)
    before = checksums(config.store)
    Path(config.store, "experts/tiny/shard-00001.json").unlink()
    assert extract(config).experts["tiny"].shards_written == 1
    assert checksums(config.store) == before


def test_only_the_experts_that_are_asked_for_run(make_config, save_edsr):
    config = make_config(experts=[save_edsr("one"), save_edsr("two", seed=1)])
    assert set(extract(config, experts=["two"]).experts) == {"two"}
    assert set(Manifest.load(Path(config.store)).experts) == {"two"}
    with pytest.raises(ConfigError, match="expert three: not in this configuration"):
        extract(config, experts=["three"])
    with pytest.raises(ConfigError, match="three: not in this configuration"):
        extract(config, rebuild=["three"])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tile_px": 12, "halo_px": 2}, "tiling.tile_px is 512 there, 12 now"),
        ({"variants": ["identity", "mirror"]}, "variants is"),
        ({"precision": "bf16"}, "precision is fp32 there, bf16 now"),
        ({"codecs": {"sr": "uint8"}}, "arrays.sr.codec is float16 there, uint8 now"),
    ],
)
def test_settings_that_would_change_the_bytes_are_named_and_stop_the_run(make_config, changed, named):
    extract(make_config())
    with pytest.raises(StoreError, match=rf"expert tiny was made differently: .*{named}.*--rebuild tiny"):
        extract(make_config(**changed))


def test_changed_weights_are_named_and_stop_the_run(make_config, save_edsr):
    config = make_config()
    extract(config)
    save_edsr(seed=5)
    with pytest.raises(StoreError, match=r"expert tiny was made differently: weights_sha256 is"):
        extract(config)


def test_a_rebuilt_expert_is_swapped_in_and_the_others_stay(make_config, save_edsr):
    config = make_config(experts=[save_edsr("one"), save_edsr("two", seed=1)])
    extract(config)
    before = checksums(config.store)
    save_edsr("two", seed=2)
    extract(config, rebuild=["two"])
    after = checksums(config.store)
    assert before.keys() == after.keys()
    assert {key.partition("/")[0] for key in before if before[key] != after[key]} == {"two"}
    assert not list(Path(config.store).glob("experts/*.rebuild"))
    assert extract(config).experts["two"].shards_written == 0


def test_an_interrupted_rebuild_leaves_the_old_expert_and_goes_on(make_config, save_edsr, monkeypatch):
    config = make_config()
    extract(config)
    before = checksums(Path(config.store, "experts/tiny"))
    save_edsr(seed=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("extract.run.run_tiled", interrupt_at(3))
        extract(config, rebuild=["tiny"])
    assert checksums(Path(config.store, "experts/tiny")) == before
    Store(config.store, ["tiny"])
    done = extract(config, rebuild=["tiny"]).experts["tiny"].shards_written
    assert 0 < done < 3
    assert checksums(Path(config.store, "experts/tiny")) != before


def test_a_changed_source_image_is_named(make_config, tmp_path):
    config = make_config()
    extract(config)
    Picture.fromarray(np.zeros((48, 80, 3), np.uint8)).save(tmp_path / "HR/photo1.png")
    with pytest.raises(StoreError, match=r"image photo1: hr_sha256 is"):
        extract(config)


def test_a_touched_source_image_is_still_the_same(make_config, tmp_path):
    config = make_config()
    extract(config)
    os.utime(tmp_path / "HR/photo1.png")
    assert extract(config).experts["tiny"].shards_written == 0


def test_every_damaged_image_is_named_before_any_expert_runs(make_config, tmp_path, monkeypatch):
    config = make_config()
    monkeypatch.setattr("extract.run.load_expert", interrupt_at(1))
    for name in ("photo0", "photo2"):
        path = tmp_path / f"HR/{name}.png"
        path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "HR/text.png").write_text("no image")
    with pytest.raises(
        StoreError, match=r"3 images do not fit: .*text.png: not an.*photo0.png: trunc.*photo2.png: trunc"
    ):
        extract(config)


def test_a_limit_makes_a_store_of_the_first_images(make_config):
    config = make_config()
    assert extract(config, limit=2).images == 2
    assert [image.id for image in Store(config.store).images] == ["photo0", "photo1"]


def test_variants_are_the_experts_answers_to_transformed_images(make_config):
    config = make_config(variants=["identity", "mirror", "rot90"])
    extract(config)
    store = Store(config.store)
    expert = load_expert(load_expert_config(config.experts[0]), CPU, 4)
    lr = store.array(0, PAIRS, "lr").load()
    for variant in config.variants:
        _, features = expert(as_input(transform(lr, variant)))
        expected = features["features"][0].permute(1, 2, 0).half().float().numpy()
        assert np.array_equal(store.array(0, "tiny", "features", variant).load(), expected)


def test_random_weights_are_stamped_into_the_store(make_config):
    entry = {
        "name": "sized", "weights": "nowhere.pth", "tap": "conv_after_body",
        "architecture": "extract.edsr:EDSR", "hyperparameters": {"num_feat": 4, "num_block": 1},
    }  # fmt: skip
    config = make_config(experts=[entry], random_weights=True)
    extract(config)
    recorded = yaml.safe_load(Path(config.store, "experts/sized/expert.yaml").read_text())
    assert recorded["identity"]["random_weights"] is True


def test_the_record_says_how_to_make_the_expert_again(make_config):
    config = make_config()
    extract(config)
    notes = Manifest.load(Path(config.store)).experts["tiny"].notes
    assert load_expert_config(notes["config"]) == load_expert_config(config.experts[0])


def test_hdf5_holds_the_same_values(make_config, tmp_path):
    extract(make_config())
    extract(make_config(store=str(tmp_path / "h5"), container="hdf5"))
    one, two = checksums(tmp_path / "store"), checksums(tmp_path / "h5")
    assert one == two


def test_a_codec_with_principal_components_has_the_same_basis_for_every_part(make_config, tmp_path):
    codecs = {"features": "pca4-int8", "sr": "uint8"}
    extract(make_config(codecs=codecs))
    parts = make_config(codecs=codecs, store=str(tmp_path / "parts"))
    extract(parts, part=Part(2, 2))
    extract(parts, part=Part(1, 2))
    assert checksums(tmp_path / "parts") == checksums(tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.array(0, "tiny", "features").raw_channels == 4


class Fragile(nn.Module):
    """x4; Inf where the red of the first pixel is 7 of 255; out of memory above `limit_px` pixels."""

    def __init__(self):
        super().__init__()
        self.body, self.limit_px, self.seen = nn.Conv2d(3, 4, 1), 10**9, []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        if x.shape[0] * x.shape[2] * x.shape[3] > self.limit_px:
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


def test_out_of_memory_halves_the_batch_and_goes_on(small_store, caplog):
    expert = fragile(limit_px=2 * 16 * 16)
    run_expert(small_store, expert, [0], Tiling(16, 2, batch_size=4))
    assert small_store.missing_shards("fragile") == [1]
    assert [shape[0] for shape in expert._network.model.seen][:3] == [4, 2, 2]
    assert "out of memory; going on with 2 tiles at a time" in caplog.text


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


def test_a_smaller_tile_that_was_settled_on_is_kept_by_the_next_run(make_config, monkeypatch):
    config = make_config(tile_px=256)
    with monkeypatch.context() as patch:
        patch.setattr("extract.run.Tiling", lambda tile, halo, batch: Tiling(128, halo, batch))
        extract(config, part=Part(1, 2))
    assert extract(config).experts["tiny"].shards_written > 0
    assert Manifest.load(Path(config.store)).experts["tiny"].identity["tiling"]["tile_px"] == 128


def test_a_shard_that_another_process_has_is_left_to_it_and_then_taken(small_store, monkeypatch):
    held = write_shard(small_store, "fragile", 0)
    held.__enter__()

    def let_go(_seconds):
        error = RuntimeError("the other process dies")
        with pytest.raises(RuntimeError):
            if not held.__exit__(RuntimeError, error, None):
                raise error

    monkeypatch.setattr("extract.shares.time.sleep", let_go)
    assert run_expert(small_store, fragile(), [0], Tiling(64, 8)).shards_written == 1
    assert small_store.missing_shards("fragile") == [1]


@pytest.mark.parametrize("at", ["add", "finish"])
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
    assert "shard-00000: taken over by another process while this process stood still" in caplog.text
    assert not verify(Path(config.store)).faults


def test_a_full_disk_leaves_nothing_half_written(make_config, monkeypatch):
    config = make_config()

    def full(self, image_id, arrays, variant="identity"):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("store.writer.ShardWriter.add", full)
        extract(config)
    left = {path.name for path in Path(config.store).rglob("*") if path.is_file()}
    assert left == {"store.yaml", "images.jsonl", "sources.json"}
    assert extract(config).experts["tiny"].shards_written == 3


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


def test_killed_at_any_moment_the_same_command_ends_with_the_same_store(make_config, save_photos, tmp_path):
    save_photos([(64, 48)] * 12)
    undisturbed = make_config(store=str(tmp_path / "undisturbed"))
    extract(undisturbed)
    config = make_config()
    root, rng, kills = Path(config.store), random.Random(0), 0
    for _ in range(8):
        process = start(config)
        goal = n_records(root) + rng.randrange(1, 4)
        while process.is_alive() and n_records(root) < goal:
            time.sleep(0.001 * rng.random())
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills >= 5
    extract(config)
    assert checksums(root) == checksums(undisturbed.store)
    Store(root)
    assert not list(root.rglob("*.tmp"))


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
