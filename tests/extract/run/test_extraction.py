import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Picture

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.experts.expert import load_expert
from championship_sr.extract.experts.tiling import Tiling, as_input, run_tiled
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.shares import Part
from championship_sr.store.disk import files
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import transform
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from tests.extract.stores import checksums

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("how", ["tap", "config"])
def test_an_expert_without_features_keeps_its_images_alone(make_config, save_edsr, tmp_path, how):
    extract(make_config(store=str(tmp_path / "full")))
    entry = save_edsr() | ({"tap": "none"} if how == "tap" else {})
    extract(make_config(experts=[entry], features=how == "tap"))
    alone, full = checksums(tmp_path / "store"), checksums(tmp_path / "full")
    assert alone == {key: value for key, value in full.items() if not key.endswith("/features")}
    store = Store(tmp_path / "store")
    assert [spec.name for spec in store.experts["tiny"].arrays] == ["sr"]
    assert not verify(store.root).faults
    with pytest.raises(StoreError, match=r"made differently: arrays.features is None there"):
        extract(make_config())


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
        patch.setattr("championship_sr.extract.run.forwards.run_tiled", interrupt_at(2))
        extract(stopped)
    assert 0 < extract(stopped).experts["tiny"].shards_written < 3
    assert checksums(parts.store) == checksums(whole.store) == checksums(stopped.store)


def test_the_batch_changes_no_byte_on_the_cpu(make_config, tmp_path, monkeypatch):
    extract(make_config(tile_px=12, halo_px=2))
    forward, batches = EDSR.forward, set()
    monkeypatch.setattr(EDSR, "forward", lambda self, x: batches.add(len(x)) or forward(self, x))
    extract(make_config(tile_px=12, halo_px=2, batch_size=3, store=str(tmp_path / "batched")))
    assert batches == {1}
    assert checksums(tmp_path / "batched") == checksums(tmp_path / "store")


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
    monkeypatch.setattr("championship_sr.extract.run.forwards.run_tiled", interrupt_at(1))
    monkeypatch.setattr("championship_sr.extract.images.pairs.decode", interrupt_at(1))
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
    with pytest.raises(ConfigError, match=r"expert three: not in this configuration \(has: one, two\)"):
        extract(config, experts=["three"])
    with pytest.raises(ConfigError, match="expert two: named twice"):
        extract(config, experts=["two", "two"])
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
        patch.setattr("championship_sr.extract.run.forwards.run_tiled", interrupt_at(3))
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
    monkeypatch.setattr("championship_sr.extract.run.job.load_expert", interrupt_at(1))
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


def test_a_store_grows_by_the_new_images_in_shards_of_their_own(make_config, save_photos, tmp_path):
    photos = save_photos()
    config = make_config(images_per_shard=2)
    (photos / "photo0.png").rename(tmp_path / "later.png")
    extract(config)
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in Path(config.store).rglob("shard-*.json")}
    images = Store(config.store).images
    (tmp_path / "later.png").rename(photos / "photo0.png")
    Picture.fromarray(np.full((32, 40, 3), 9, np.uint8)).save(photos / "photo4.png")
    assert extract(config).experts["tiny"].shards_written == 1
    store = Store(config.store)
    assert store.images[:2] == images and [image.shard for image in store.images] == [0, 0, 1, 1]
    assert [image.id for image in store.images] == ["photo1", "photo2", "photo0", "photo4"]
    assert all((path.stat().st_ino, path.read_bytes()) == content for path, content in before.items())
    assert not verify(store.root).faults
    assert extract(config).experts["tiny"].shards_written == 0


def test_growth_that_was_killed_half_way_leaves_the_store_as_it_was(make_config, monkeypatch):
    config, written = make_config(), []
    extract(config, limit=2)

    def killed(path, content):
        written.append(path.name)
        if path.name == "store.yaml":
            raise KeyboardInterrupt
        files.write_atomic(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "championship_sr.store.format.description.files", SimpleNamespace(**vars(files) | {"write_atomic": killed})
        )
        extract(config)
    assert written == ["images.jsonl", "store.yaml"]
    assert [image.id for image in Store(config.store).images] == ["photo0", "photo1"]
    assert extract(config).images == 3
    assert len(Store(config.store, ["tiny"]).images) == 3


def test_a_store_with_fewer_images_than_before_is_refused(make_config):
    config = make_config()
    extract(config)
    with pytest.raises(StoreError, match="holds a different store: with the extra photo2"):
        extract(config, limit=2)


@pytest.mark.parametrize("there", [False, True])
def test_an_extraction_that_fails_before_its_first_shard_leaves_no_store(make_config, save_edsr, there):
    config = make_config(experts=[save_edsr() | {"tap": "nowhere"}])
    root = Path(config.store)
    if there:
        root.mkdir()
    with pytest.raises(ConfigError, match="there is no module nowhere"):
        extract(config)
    assert root.exists() == there and not list(root.rglob("*"))
    with pytest.raises(WeightsError, match="expert gone: no weights at"):
        extract(make_config(experts=[save_edsr(), save_edsr("gone") | {"weights": "gone.pth"}]))
    assert not list(root.rglob("*"))


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


def test_a_smaller_tile_that_was_settled_on_is_kept_by_the_next_run(make_config, monkeypatch):
    config = make_config(tile_px=256)
    with monkeypatch.context() as patch:
        patch.setattr("championship_sr.extract.run.job.Tiling", lambda tile, halo, batch: Tiling(128, halo, batch))
        extract(config, part=Part(1, 2))
    assert extract(config).experts["tiny"].shards_written > 0
    assert Manifest.load(Path(config.store)).experts["tiny"].identity["tiling"]["tile_px"] == 128
