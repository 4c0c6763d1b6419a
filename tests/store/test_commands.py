import json

import pytest
from click.testing import CliRunner
from PIL import Image

from championship_sr.store.commands import store as store_group
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.shards.reader import Store


def run(*arguments):
    result = CliRunner().invoke(store_group, [str(each) for each in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def test_info_tells_and_gives_json(tmp_path, make_store):
    root = make_store(tmp_path / "s", shards=[1], codecs={"features": "int8"})
    text = run("info", root)
    assert "3 images, 532 LR pixels, 2 shards" in text
    assert "a: sr 3 x float16, features 5 x int8" in text
    assert "lacks 1 shard, the first is 0" in text
    found = json.loads(run("info", root, "--json"))
    assert [source["name"] for source in found["sources"]] == ["pairs", "a", "b"]
    assert found["sources"][1]["identity"]["weights_sha256"] == "a0"


def test_verify_ends_with_its_count_or_raises(tmp_path, make_store):
    root = make_store(tmp_path / "s")
    assert "no fault in 18 arrays" in run("verify", root)
    (root / "experts/a/shard-00000.json").write_text("{")
    (root / "experts/b/shard-00001.json").write_text("{")
    with pytest.raises(StoreError, match="2 faults in"):
        run("verify", root)
    with pytest.raises(StoreError, match="2 moved away; run extract again"):
        run("verify", root, "--repair")
    assert json.loads(run("verify", root, "--json"))["missing"] == {"pairs": 0, "a": 1, "b": 1}


def test_merge_convert_and_rm_go_through(tmp_path, make_store):
    one, other = make_store(tmp_path / "one", {"a": 5}), make_store(tmp_path / "other", {"x": 1, "b": 5})
    assert "9 shards" not in run("merge", one, other, "-o", tmp_path / "m")
    part = make_store(tmp_path / "part", {"a": 5}, shards=[1])
    assert "1 store; incomplete: a lacks 1 shard (0)" in run("merge", part, "-o", tmp_path / "p")
    with pytest.raises(StoreError, match=r"merged store would be incomplete: a lacks 1 shard \(0\)"):
        run("merge", part, "-o", tmp_path / "q", "--complete")
    assert "left: a, b" in run("rm", tmp_path / "m", "--expert", "x")
    assert "removed a; already removed: x; left: b" in run("rm", tmp_path / "m", "--expert", "x", "--expert", "a")
    with pytest.raises(StoreError, match=r"no expert x \(has: b\)"):
        run("rm", tmp_path / "m", "--expert", "x", "--expert", "a")
    arguments = ("--container", "hdf5", "--codec", "features=pca2-int8+zstd", "--images-per-shard", 3)
    assert "hdf5, 3 images" in run("convert", tmp_path / "m", "-o", tmp_path / "c", *arguments)
    assert Store(tmp_path / "c").array(0, "b", "features").codec.name == "pca2-int8+zstd"
    with pytest.raises(ConfigError, match="--codec features: expected ARRAY=CODEC"):
        run("convert", one, "-o", tmp_path / "d", "--codec", "features")


def test_view_draws_every_expert(tmp_path, make_store):
    root = make_store(tmp_path / "s", sizes=[(12, 17)])
    assert run("view", root, "photo 1", "-o", tmp_path / "v.png").strip() == str(tmp_path / "v.png")
    with Image.open(tmp_path / "v.png") as sheet:
        assert sheet.size[0] == 3 * (17 * 4 + 8) + 8
        assert sheet.size[1] == 3 * (12 * 4 + 18 + 8) + 8
    with pytest.raises(StoreError, match="no image photo 9; the first ones are img000, img001, img002"):
        run("view", root, "photo 9")


def test_an_image_is_drawn_though_shards_of_others_are_missing(tmp_path, make_store):
    root = make_store(tmp_path / "s", shards=[1])
    run("view", root, "img002", "-o", tmp_path / "v.png")
    with pytest.raises(StoreError, match=r"a/shard-00000\.json: missing"):
        run("view", root, "img000", "-o", tmp_path / "w.png")
    assert not (tmp_path / "w.png").exists()


def test_a_repair_tells_what_it_did_not_mend(tmp_path, make_store):
    root = make_store(tmp_path / "s", codecs={"features": "pca2-int8"})
    (root / "experts/a/basis.safetensors").write_bytes(b"")
    (root / "experts/b/shard-00001.json").write_text("{")
    with pytest.raises(StoreError, match=r"2 faults in .*; 1 moved away; run extract again; 1 not mended so"):
        run("verify", root, "--repair")
