import shutil

import pytest

from championship_sr.extract.cost.estimate import plan, worked_px


def test_bytes_are_those_of_the_arrays(make_config, save_edsr):
    entry = save_edsr() | {"tap": None, "taps": {"features": "conv_after_body", "early": "conv_first"}}
    made = plan(make_config(experts=[entry]), [(339, 510)] * 3450)
    px = 3450 * 339 * 510
    assert (made.images, made.lr_px, made.shards, made.pairs_bytes) == (3450, px, 3450, px * 51)
    (expert,) = made.experts
    assert expert.bytes_by_codec["float32 + float32"] == px * (2 * 8 * 4 + 48 * 4)
    assert expert.bytes_by_codec["float16 + uint8"] == px * (2 * 8 * 2 + 48)
    assert expert.bytes_by_codec["pca64-int8 + uint8"] == px * (2 * 64 + 48)
    assert made.total_bytes("int8 + uint8") == px * (51 + 2 * 8 + 48)
    assert made.bytes_without_features == px * (51 + 48 * 2)  # SR in float16


def test_a_planned_store_has_the_bytes_of_a_real_one(make_config):
    from championship_sr.extract.run.extraction import extract
    from championship_sr.store.format.manifest import Manifest
    from championship_sr.store.shards.reader import Store

    config = make_config()
    made = plan(config)
    extract(config)
    store = Store(config.store)
    names = ("sr", "features")
    real = sum(store.array(i, "tiny", name).read().nbytes for i in range(3) for name in names)
    assert made.experts[0].bytes_by_codec["float16 + float16"] == real
    assert made.shards == Manifest.load(store.root).n_shards


def test_variants_multiply_bytes_and_hours(make_config):
    one, two = (plan(make_config(variants=v), [(20, 20)]) for v in (["identity"], ["identity", "mirror"]))
    assert two.experts[0].bytes_by_codec["float16 + uint8"] == 2 * one.experts[0].bytes_by_codec["float16 + uint8"]
    assert two.hours * two.experts[0].px_per_second == pytest.approx(2 * one.hours * one.experts[0].px_per_second)


def test_work_counts_window_padding_and_overlaps(make_config):
    config = make_config(tile_px=64, halo_px=8)
    assert worked_px((30, 33), config, 1, 1) == 30 * 33
    assert worked_px((30, 33), config, 16, 16) == 32 * 48
    # 100 = two tiles of 58 (overlap 16) in columns
    assert worked_px((64, 100), config, 1, 1) == 64 * 2 * 58


def test_missing_weights_are_measured_with_random_ones_and_nothing_is_written(make_config, tmp_path):
    entry = {
        "name": "sized",
        "weights": "nowhere.pth",
        "tap": "conv_after_body",
        "architecture": "extract.edsr:EDSR",
        "hyperparameters": {"num_feat": 4, "num_block": 1},
    }
    before = sorted(tmp_path.rglob("*"))
    made = plan(make_config(experts=[entry], store=str(tmp_path / "deep/er/store")), [(8, 8)])
    assert made.experts[0].random_weights and made.experts[0].px_per_second > 0
    assert made.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert sorted(p for p in tmp_path.rglob("*") if "HR" not in p.parts) == [p for p in before if "HR" not in p.parts]
