import json
from pathlib import Path

import numpy as np
import pytest
import torch

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.architecture import USER
from championship_sr.extract.experts.recorded import check_live, live_expert, recorded_config
from championship_sr.extract.run.extraction import extract
from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.store.format.entries import Expert
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store


@pytest.mark.parametrize("codecs", [{}, {"features": "pca4-int8", "sr": "uint8"}, {"features": "int8", "sr": "uint16"}])
def test_a_store_equals_its_live_experts_within_a_step_of_its_codec(make_config, codecs):
    config = make_config(codecs=codecs, variants=["identity", "rot90"], tile_px=12, halo_px=2)
    extract(config)
    (checked,) = check_live(Path(config.store), 2)
    assert not checked.faults
    assert {(d.image, d.array) for d in checked.differences} == {
        (image, array + variant)
        for image in ("photo0", "photo2")
        for array in ("sr", "features")
        for variant in ("", "@rot90")
    }


def test_other_weights_and_other_values_are_named(make_config, save_edsr):
    config = make_config()
    extract(config)
    save_edsr(seed=5)
    (checked,) = check_live(Path(config.store), 1)
    assert any("tiny: weights_sha256 is" in fault for fault in checked.faults)
    assert any("image photo0, features: " in fault for fault in checked.faults)


def test_a_value_changed_on_disk_is_named(make_config):
    config = make_config(container="hdf5")
    extract(config)
    manifest = Manifest.load(Path(config.store))
    record = json.loads(manifest.record_path("tiny", 1).read_text())["arrays"]["photo1/features"]
    content = bytearray(manifest.shard_path("tiny", 1).read_bytes())
    at = record["offset"]
    content[at : at + 2] = np.float16(1000).tobytes()
    manifest.shard_path("tiny", 1).write_bytes(content)
    assert Store(manifest.root).array(1, "tiny", "features").load()[0, 0, 0] == 1000
    (checked,) = check_live(manifest.root, 3)
    assert len(checked.faults) == 1 and "image photo1, features: " in checked.faults[0]


def entry_of(config) -> Expert:
    return Store(config.store).experts["tiny"]


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"channels_last": True}, {"compile": True}])
def test_an_expert_is_run_again_as_it_was_run_for_the_store(make_config, monkeypatch, settings):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    config = make_config(**settings)
    extract(config)
    made = entry_of(config).identity
    entry = entry_of(config)
    with live_expert(entry, 4, torch.device("cpu"), recorded_config(entry, USER)) as expert:
        assert expert.identity.items() <= made.items()
    assert all(made[key] == value for key, value in settings.items())


def test_an_expert_with_other_weights_is_refused_unless_told(make_config, save_edsr):
    config = make_config()
    extract(config)
    elsewhere = load_expert_config(save_edsr(seed=5))
    with pytest.raises(WeightsError, match="tiny: was made with other weights"):
        live_expert(entry_of(config), 4, torch.device("cpu"), elsewhere)
    live_expert(entry_of(config), 4, torch.device("cpu"), elsewhere, any_weights=True).close()


def test_an_entry_without_a_configuration_is_named():
    with pytest.raises(StoreError, match="expert bare: its entry holds no configuration"):
        recorded_config(Expert("bare", (), {}, {}), USER)
