import os
import socket
import time

import pytest

from championship_sr.store.config import override, read_yaml
from championship_sr.store.disk.small_files import MAX_VALUES, parse_json, parse_yaml, read_small, sha256_of
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.reader import Store

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
HOSTILE = {
    "aliases": (BOMB, f"its aliases expand to more than {MAX_VALUES:,} values"),
    "merge keys": (MERGES, f"its aliases expand to more than {MAX_VALUES:,} values"),
    "an alias of itself": ("a: &a [*a]", "an alias inside the value that it refers to"),
    "depth": ("[" * 20_000, "nested too deeply"),
    "a long number": ("a: " + "9" * 5000, "a number of 5000 digits"),
    "a date that is none": ("a: 2026-99-99", "month must be in 1..12"),
    "a call": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "bytes": (b"\xff\xfe\x00", "unacceptable character"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_in_one_line_and_in_time(tmp_path, kind):
    text, said = HOSTILE[kind]
    began = time.process_time()
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert time.process_time() - began < 10


def test_anchors_of_people_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0010", "0010"), ("0801", "0801"), ("12:30", "12:30"), ("101085", 101085), ("20_000", 20000), ("0x1F", 31),
     ("-5", -5), ("0", 0), ("1.5e-3", 1.5e-3), ("1e-3", "1e-3"), ("~", None), ("no", False)],
)  # fmt: skip
def test_what_looks_like_an_id_stays_a_text(text, value):
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)
    assert override({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_hostile_json_is_refused_in_one_line():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


@pytest.fixture
def odd(tmp_path):
    """Names that lead to no regular file, and what is said of each."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        yield {"pipe": "a named pipe", "folder": "a folder", "loop": "a link that leads back to itself",
               "zeros": "a device", "socket": "cannot be read"}  # fmt: skip


def test_hostile_places_are_refused_and_not_waited_for(tmp_path, odd):
    for name, said in odd.items():
        for read in (read_small, sha256_of):
            with pytest.raises(StoreError, match=f"{name}: {said}"):
                read(tmp_path / name)
        with pytest.raises(ConfigError, match=f"{name}: {said}"):
            read_yaml(tmp_path / name)


@pytest.mark.parametrize("name", ["store.yaml", "images.jsonl", "experts/a/expert.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_a_store_with_a_hostile_place_is_refused_and_not_waited_for(tmp_path, make_store, odd, name, kind):
    root = make_store(tmp_path / "s", {"a": 5})
    (root / name).unlink()
    (root / name).symlink_to(tmp_path / kind)
    with pytest.raises(StoreError) as caught:
        Manifest.load(root)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "said"), [("pipe", "a named pipe"), ("folder", "a folder"), ("deep", "nested too")])
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_a_hostile_record_is_refused_and_not_waited_for(tmp_path, make_store, odd, kind, said, container):
    root = make_store(tmp_path / "s", {"a": 5}, container=container)
    (tmp_path / "deep").write_text("[" * 100_000)
    path = root / "experts/a/shard-00000.json"
    path.unlink()
    path.symlink_to(tmp_path / kind)
    with pytest.raises(StoreError, match=rf"shard-00000\.json: .*{said}"):
        Store(root).array(0, "a", "features")


def test_a_file_beyond_its_bounds_is_refused(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(3 << 20)
    with pytest.raises(StoreError, match="large: 3 MiB, but such a file is never larger than 2"):
        read_small(path, 2)
