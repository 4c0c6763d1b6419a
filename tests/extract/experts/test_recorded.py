import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.architecture import USER, Origin
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
    with pytest.raises(WeightsError, match="tiny: was made with weights of sha256"):
        live_expert(entry_of(config), 4, torch.device("cpu"), elsewhere)
    live_expert(entry_of(config), 4, torch.device("cpu"), elsewhere, any_weights=True).close()


def test_an_entry_without_a_configuration_is_named():
    with pytest.raises(StoreError, match="expert bare: its entry records no configuration"):
        recorded_config(Expert("bare", (), {}, {}), USER)


OWN_CODE = """
from championship_sr.extract.edsr import EDSR


def make():
    return EDSR(num_feat=8, num_block=2, res_scale=1.0)
"""


def test_other_code_is_refused_as_other_weights_are(make_config, save_edsr, tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(experts=[save_edsr() | {"architecture": "own_code:make"}])
    extract(config)
    entry, root = entry_of(config), Path(config.store)
    digest = hashlib.sha256(OWN_CODE.encode()).hexdigest()
    assert entry.identity["code"] == {"module": "own_code", "file_sha256": digest}
    trusted = Origin(root / "experts/tiny/expert.yaml", ("own_code",))
    live_expert(entry, 4, torch.device("cpu"), recorded_config(entry, trusted)).close()
    (tmp_path / "own_code.py").write_text(OWN_CODE + "# changed")
    with pytest.raises(WeightsError, match="tiny: the code of own_code:make has changed since it was made"):
        live_expert(entry, 4, torch.device("cpu"), recorded_config(entry, trusted))
    (checked,) = check_live(root, 1, trusted=["own_code"])
    assert [text[:7] for text in checked.changed] == ["code is"]
    with pytest.raises(StoreError, match=r"code\.file_sha256 is"):
        extract(config)


def test_a_store_begun_before_the_code_was_recorded_goes_on(make_config, save_edsr, tmp_path, monkeypatch):
    (tmp_path / "old_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(experts=[save_edsr() | {"architecture": "old_code:make"}])
    extract(config)
    path = Path(config.store) / "experts/tiny/expert.yaml"
    content = yaml.safe_load(path.read_text())
    del content["identity"]["code"]
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(content))
    assert extract(config).experts["tiny"].shards_written == 3
    assert not check_live(Path(config.store), 1, trusted=["old_code"])[0].changed
