"""What `store info` asks of a store: little of each record, whatever is in it."""

import json
from pathlib import Path

import pytest

from championship_sr.store.errors import StoreError
from championship_sr.store.operations.info import info
from championship_sr.store.shards import record
from championship_sr.store.shards.record import read_head


def heads_of(root: Path) -> list[Path]:
    return sorted(Path(root).glob("experts/*/shard-*.json"))


def test_devices_are_counted_from_the_heads_of_records_alone(make_store, tmp_path, monkeypatch):
    root = make_store(tmp_path / "s")
    first, *others = heads_of(root)
    content = first.read_text()
    named = content.replace('\n "arrays"', '\n "made_on": {\n  "device": "GPU A"\n },\n "arrays"', 1)
    first.write_text(named[: named.index('"arrays"') + 20])  # nothing behind it is looked at
    monkeypatch.setattr(record, "checksum", lambda content: pytest.fail("the whole record was read"))
    found = {source.name: source.devices for source in info(root).sources}
    expert = first.parent.name
    assert found[expert]["GPU A"] == 1
    assert sum(sum(devices.values()) for devices in found.values()) == len(others) + 1


def test_shards_are_told_apart_by_all_that_decides_their_bytes(make_store, tmp_path):
    root = make_store(tmp_path / "s")
    for path in heads_of(root):
        content = path.read_text()
        size = 2 if path.stem.endswith("0") else 4
        made_on = {"device": "GPU A", "batch_size": size, "tf32": size == 4, "cudnn": 91002}
        path.write_text(content.replace('\n "arrays"', f'\n "made_on": {json.dumps(made_on)},\n "arrays"', 1))
    wanted = {"GPU A, batch 2, cuDNN 91002", "GPU A, batch 4, TF32, cuDNN 91002"}
    devices = [set(source.devices) for source in info(root).sources if source.devices]
    assert wanted in devices and all(found <= wanted for found in devices)


def test_a_record_whose_keys_are_in_another_order_is_read_as_a_whole(make_store, tmp_path):
    path = heads_of(make_store(tmp_path / "s"))[0]
    content = json.loads(path.read_text())
    assert {"arrays", "store"}.isdisjoint(read_head(path))
    path.write_text(json.dumps(content, sort_keys=True))
    assert read_head(path) == content


def test_a_head_that_is_no_json_is_damaged(make_store, tmp_path):
    path = heads_of(make_store(tmp_path / "s"))[0]
    path.write_text(path.read_text().replace('"source"', '"source', 1))
    with pytest.raises(StoreError, match="damaged"):
        read_head(path)
