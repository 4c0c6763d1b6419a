"""A GPU's way from images to encoded arrays, taken by the CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from championship_sr.extract.commands.store import store
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.experts.tiling import Tiling
from championship_sr.extract.run import job, register
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.forwards import groups, views
from championship_sr.store.errors import StoreError
from championship_sr.store.operations.info import info
from tests.extract.stores import checksums

CODECS = [{}, {"features": "int8", "sr": "uint8"}, {"features": "bfloat16", "sr": "float32"}]


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("tile_px", [8, 512])
def test_what_a_device_encodes_is_what_the_writers_would_encode(make_config, tmp_path, request, codecs, tile_px):
    common = {"codecs": codecs, "tile_px": tile_px, "halo_px": 2, "variants": ["identity", "mirror"]}
    config = make_config(store=str(tmp_path / "host"), **common)
    extract(config)
    request.getfixturevalue("pretended_gpu")
    extract(make_config(store=str(tmp_path / "device"), **common))
    assert checksums(tmp_path / "host") == checksums(tmp_path / "device")


def test_only_encoded_bytes_come_back(make_config, pretended_gpu):
    extract(make_config(codecs={"features": "int8", "sr": "uint8"}))
    assert len(pretended_gpu) == 3  # images
    for (height, width), copies in zip(((16, 12), (12, 20), (10, 10)), pretended_gpu, strict=True):
        large = [copied for copied in copies if len(copied[0]) == 3]
        assert large == [((4 * height, 4 * width, 3), 48 * height * width), ((height, width, 8), 8 * height * width)]
        assert sum(n_bytes for _, n_bytes in copies) - sum(n_bytes for _, n_bytes in large) < 100  # ranges and scales


def test_images_of_one_size_share_a_forward_within_their_shard(make_config, save_photos, pretended_gpu, monkeypatch):
    seen, forward, batch = [], EDSR.forward, 2
    config = make_config(images_per_shard=5, batch_size=batch)
    save_photos([(64, 48), (40, 40), (64, 48), (64, 48), (40, 40)])
    monkeypatch.setattr(EDSR, "forward", lambda self, x: seen.append(tuple(x.shape)) or forward(self, x))
    monkeypatch.setattr(job.Job, "register", _with_batch(batch))
    extract(config)
    assert seen[-3:] == [(2, 3, 16, 12), (2, 3, 10, 10), (1, 3, 16, 12)]
    assert not job.Manifest.load(Path(config.store)).missing_shards("tiny")


def _with_batch(batch):
    usual = job.Job.register
    return lambda self, expert: job.replace(usual(self, expert), batch_size=batch)


def test_groups_are_a_function_of_the_shard_and_hold_each_view_once():
    rng = np.random.default_rng(0)
    images = [(f"i{n}", np.zeros((rng.choice([8, 10, 30]), 10, 3), np.uint8)) for n in range(40)]
    shard = views(images, ("identity", "mirror"))
    found = list(groups(shard, Tiling(16, 2, batch_size=3), 1))
    assert sorted((v.image_id, v.variant) for group in found for v in group) == sorted(
        (v.image_id, v.variant) for v in shard
    )
    assert all(len({view.lr.shape for view in group}) == 1 and len(group) <= 3 for group in found)
    assert all(len(group) == 1 for group in found if group[0].lr.shape[0] == 30)  # its own tiles share forwards
    assert found == list(groups(shard, Tiling(16, 2, batch_size=3), 1))


@pytest.fixture
def named_devices(monkeypatch):
    """Sets the name that the device goes by."""

    def use(name):
        def made(device, batch_size, precision):
            return {"device": name, "batch_size": batch_size}

        monkeypatch.setattr(job, "made_on", made)
        monkeypatch.setattr(register, "made_on", made)

    return use


@pytest.mark.parametrize(("tile_px", "sizes"), [(512, {0: 1, 1: 4}), (8, {0: 2, 1: 4})])
def test_a_shard_records_the_batch_for_which_memory_sufficed(
    make_config, save_photos, pretended_gpu, named_devices, monkeypatch, tile_px, sizes
):
    forward, failed = EDSR.forward, []

    def short(self, x):
        if len(x) > 2 and not failed:  # once, in the first shard
            failed.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    config = make_config(images_per_shard=3, batch_size=4, tile_px=tile_px, halo_px=2)
    save_photos([(96, 96)] * 6)
    named_devices("GPU A")
    monkeypatch.setattr(EDSR, "forward", short)
    monkeypatch.setattr(job.Job, "register", _with_batch(4))
    extract(config)
    for shard, size in sizes.items():
        record = json.loads(Path(config.store, f"experts/tiny/shard-{shard:05}.json").read_text())
        assert failed and record["made_on"] == {"device": "GPU A", "batch_size": size}


def test_a_store_of_two_devices_says_so(make_config, pretended_gpu, named_devices):
    config = make_config()
    named_devices("GPU A")
    extract(config)
    record = Path(config.store, "experts/tiny/shard-00001.json")
    assert json.loads(record.read_text())["made_on"] == {"device": "GPU A", "batch_size": 1}
    record.unlink()
    named_devices("GPU B")
    extract(config)
    (tiny,) = (source for source in info(Path(config.store)).sources if source.name == "tiny")
    assert tiny.devices == {"GPU A, batch 1": 2, "GPU B, batch 1": 1}
    told = CliRunner().invoke(store, ["info", config.store]).output
    assert "MADE IN SEVERAL WAYS: GPU A, batch 1 (2 shards) / GPU B, batch 1 (1 shard)" in told


def test_an_extraction_can_be_told_to_keep_to_one_device(make_config, pretended_gpu, named_devices):
    config = make_config(one_device=True)
    named_devices("GPU A")
    extract(config)
    named_devices("GPU B")
    with pytest.raises(StoreError, match=r"made_on.*GPU A.*GPU B"):
        extract(config)
    assert extract(config, rebuild=["tiny"]).experts["tiny"].shards_written == 3
