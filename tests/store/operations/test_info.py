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
