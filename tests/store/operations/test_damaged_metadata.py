"""What records, containers and codecs say is checked against each other, in both versions of the format."""

import json
import os
import shutil

import h5py
import pytest

from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.convert import convert
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.repair import repair
from championship_sr.store.operations.verify import verify
from championship_sr.store.shards.reader import Store
from tests.conftest import edit_record
from tests.store.operations.damage import BOTH, SHARD, content, flip, old_form, values_file


@pytest.fixture
def make_store(copied_store):
    return copied_store


def change_scale(record):
    record["arrays"]["img002/features"]["params"]["scale"][1] *= 2


CHANGES = {
    "scale": change_scale,
    "nan": lambda record: record["arrays"]["img002/features"]["params"]["scale"].__setitem__(0, float("nan")),
    "none": lambda record: record["arrays"]["img002/features"].update(params={}),
    "basis": lambda record: record["arrays"]["img002/features"]["params"].update(basis=[1.0]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["old", "raw", "sealed"])
@BOTH
def test_changed_parameters_of_a_codec_are_never_handed_on(tmp_path, make_store, container, form, change):
    root = make_store(tmp_path / "s", {"a": 5}, container=container, codecs={"features": "int8"})
    if form == "old":
        old_form(root)
    path = root / "experts/a/shard-00001.json"
    if form == "raw":
        record = json.loads(path.read_text())
        CHANGES[change](record)
        path.write_text(json.dumps(record))
    else:
        edit_record(path, CHANGES[change])
    assert [fault.shard for fault in verify(root).faults] == [1]
    for act in (
        lambda: Store(root, check=True).array(2, "a", "features"),
        lambda: convert(root, tmp_path / "converted"),
        lambda: merge([root], tmp_path / "merged"),
    ):
        with pytest.raises(StoreError, match=r"params|checksum|attributes scale|img002/features"):
            act()


@BOTH
def test_a_store_of_version_1_is_read_verified_gone_on_with_and_merged(tmp_path, make_store, samples, container):
    root = old_form(make_store(tmp_path / "s", container=container))
    expected = Store(root).array(2, "a", "features").load()
    assert not verify(root).faults
    shutil.rmtree(root / "experts/a" / SHARD[container]) if container == "zarr" else values_file(
        root, container
    ).unlink()
    repair(root, verify(root).faults)
    samples.add_expert(Manifest.load(root), "a", 5, 0, {}, ("identity",))
    record = json.loads((root / "experts/a/shard-00001.json").read_text())
    assert record["format_version"] == 1 and "checksum" not in record
    assert not verify(root).faults
    merge([root], tmp_path / "merged")
    assert "format_version: 2" in (tmp_path / "merged/store.yaml").read_text()
    assert not verify(tmp_path / "merged").faults
    assert (Store(tmp_path / "merged").array(2, "a", "features").load() == expected).all()


def test_version_1_knows_which_file_is_wrong_and_moves_nothing(tmp_path, make_store):
    root = old_form(make_store(tmp_path / "s"))
    before, path = content(root), root / "experts/a/expert.yaml"
    path.write_text(path.read_text().replace("weights_sha256: a0", "weights_sha256: a1"))
    (root / "store.yaml").write_text((root / "store.yaml").read_text().replace("scale: 4", "scale: 3"))
    faults = verify(root).faults
    assert len(faults) == 2 and not any(fault.shard is not None for fault in faults)
    repair(root, faults)
    path.write_text(path.read_text().replace("weights_sha256: a1", "weights_sha256: a0"))
    assert not verify(root).faults
    assert content(root).keys() == before.keys()


def rewritten(name, change):
    def damage(root):
        path = root / "experts/a/shard-00001.zarr" / name
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))

    return damage


METADATA = {
    "endian": (
        "img002/sr/zarr.json",
        lambda d: d["codecs"][0]["configuration"]["codecs"][0]["configuration"].update(endian="big"),
    ),
    "fill": ("img002/sr/zarr.json", lambda d: d.update(fill_value=1.0)),
    "grid": ("img002/sr/zarr.json", lambda d: d["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 65)),
    "type": ("img002/sr/zarr.json", lambda d: d.update(data_type="int16")),
    "codec": ("img002/sr/zarr.json", lambda d: d["attributes"].update(codec="bfloat16")),
    "variant": ("img002/sr/zarr.json", lambda d: d["attributes"].update(variant="mirror")),
    "array group": ("img002/zarr.json", lambda d: d.update(node_type="array")),
    "group": ("zarr.json", lambda d: d.update(zarr_format=2)),
}


@pytest.mark.parametrize("which", METADATA)
def test_zarrs_own_metadata_must_say_what_the_record_says(tmp_path, make_store, which):
    root = make_store(tmp_path / "s")
    rewritten(*METADATA[which])(root)
    assert {(fault.source, fault.shard) for fault in verify(root).faults} == {("a", 1)}


@pytest.mark.parametrize("name, value", [("codec", "bfloat16"), ("scale", [1.0] * 5), ("variant", "mirror")])
def test_hdf5s_attributes_must_say_what_the_record_says(tmp_path, make_store, name, value):
    root = make_store(tmp_path / "s", container="hdf5", codecs={"features": "int8"})
    with h5py.File(root / "experts/a/shard-00001.h5", "r+") as file:
        file["img002/features"].attrs[name] = value
    message = f"img002/features: its attributes {name} are not what the record says"
    assert any(message in fault.message for fault in verify(root).faults)


RECORDS = {
    "no shape": lambda record: record["arrays"]["img002/sr"].pop("shape"),
    "no type": lambda record: record["arrays"]["img002/sr"].pop("dtype"),
    "no sum": lambda record: record["arrays"]["img002/sr"].pop("sha256"),
    "chunk 0": lambda record: record["arrays"]["img002/sr"].update(chunk=[0, 1, 3]),
    "a list": lambda record: record.update(arrays=[]),
    "far": lambda record: record["arrays"]["img002/sr"].update(offset=10**30),
    "large": lambda record: record["arrays"]["img002/sr"].update(shape=[2**40, 2**40, 3]),
    "number": lambda record: record.update(shard="1"),
}


@pytest.mark.parametrize("which", RECORDS)
def test_a_record_that_cannot_be_is_one_line(tmp_path, make_store, which):
    root = make_store(tmp_path / "s")
    edit_record(root / "experts/a/shard-00001.json", RECORDS[which])
    flip(root / "experts/b/shard-00001.zarr/img002/sr/c.0.0.0")
    faults = verify(root).faults
    assert [(fault.source, fault.shard) for fault in faults] == [("a", 1), ("b", 1)]
    assert all("\n" not in fault.message for fault in faults)


def test_deep_nesting_and_pipes_are_one_line(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    (root / "experts/a/shard-00000.json").write_text("[" * 100_000)
    (root / "experts/a/shard-00001.json").unlink()
    os.mkfifo(root / "experts/a/shard-00001.json")
    assert [(fault.source, fault.shard) for fault in verify(root).faults] == [("a", 0), ("a", 1)]


def test_records_of_other_images_prove_nothing(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    for path in (root / "experts/a").glob("*.json"):
        edit_record(path, lambda record: record["images"].update({image: "other" for image in record["images"]}))
    (root / "experts/a/expert.yaml").unlink()
    faults = verify(root).faults
    assert not any(fault.content for fault in faults)
    assert any("its shards cannot be checked without it" in fault.message for fault in faults)
