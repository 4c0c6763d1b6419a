import os
import re
from pathlib import Path

import pytest

from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.merge import merge
from championship_sr.store.operations.verify import verify
from tests.conftest import edit_record


def records(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("shard-*.json")}


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
@pytest.mark.parametrize("options", [{}, {"copy": True}, {"move": True}], ids=["link", "copy", "move"])
def test_different_experts_become_one_store(tmp_path, make_store, container, options):
    whole = make_store(tmp_path / "whole", {"a": 5, "b": 7}, container=container)
    one = make_store(tmp_path / "one", {"a": 5}, container=container)
    other = make_store(tmp_path / "other", {"x": 1, "b": 7}, container=container)
    Manifest.load(other).remove_expert("x")
    merged = merge([one, other], tmp_path / "out", **options)
    assert (merged.shards, merged.missing) == (6, {PAIRS: [], "a": [], "b": []})
    assert records(tmp_path / "out") == records(whole)
    assert not verify(tmp_path / "out").faults
    links = next((tmp_path / "out/experts/a").rglob("c.0.0.0" if container == "zarr" else "*.h5")).stat().st_nlink
    assert links == (2 if not options else 1)
    if "move" in options:
        assert records(one) == records(other) == {}


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_different_parts_become_the_whole(tmp_path, make_store, container):
    options = {"container": container, "n_images": 6, "codecs": {"features": "pca2-int8"}}
    whole = make_store(tmp_path / "whole", **options)
    parts = [make_store(tmp_path / f"part{i}", shards=shards, **options) for i, shards in enumerate(([0, 2], [1]))]
    merged = merge(parts, tmp_path / "out")
    assert not any(merged.missing.values())
    found, expected = records(tmp_path / "out"), records(whole)
    assert found == expected
    assert found.keys() == expected.keys()


def test_a_merge_into_a_store_that_is_there_adds_what_it_lacks(tmp_path, make_store):
    parts = [make_store(tmp_path / f"part{i}", shards=[i]) for i in range(2)]
    assert merge(parts[:1], tmp_path / "out").missing == {PAIRS: [], "a": [1], "b": [1]}
    assert merge(parts[1:], tmp_path / "out").shards == 2
    assert merge(parts, tmp_path / "out").shards == 0


def test_conflicts_are_named_all_at_once_and_nothing_is_written(tmp_path, make_store, samples):
    one, other = make_store(tmp_path / "one"), make_store(tmp_path / "other", {"x": 1, "b": 7, "a": 5})
    with pytest.raises(StoreError) as caught:
        merge([one, other], tmp_path / "out")
    assert "a in " in str(caught.value)
    assert "weights_sha256 is a0 there, a2 now" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_parts_that_overlap_with_different_bytes_are_refused(tmp_path, make_store):
    one, other = make_store(tmp_path / "one"), make_store(tmp_path / "other")
    path = other / "experts/b/shard-00001.json"
    edit_record(path, lambda record: record["arrays"]["img002/features"].update(sha256="0" * 64))
    with pytest.raises(StoreError, match=r"b in .*: shard 1 has different bytes in img002/features"):
        merge([one, other], tmp_path / "out")


def test_a_store_that_is_there_with_different_bytes_is_refused_too(tmp_path, make_store):
    one, there = make_store(tmp_path / "one"), make_store(tmp_path / "there", shards=[1])
    path = there / "experts/b/shard-00001.json"
    edit_record(path, lambda record: record["arrays"]["img002/features"].update(sha256="0" * 64))
    before = records(there)
    with pytest.raises(StoreError, match=r"b in .*one and .*there: shard 1 has different bytes in img002/features"):
        merge([one], there)
    assert records(there) == before


def test_parts_that_do_not_cover_the_whole_are_named_by_source_and_shard(tmp_path, make_store):
    options = {"n_images": 9, "images_per_shard": 1}
    parts = [make_store(tmp_path / "one", shards=[3, 8], **options)]
    parts.append(make_store(tmp_path / "other", shards=[3, 5, 6], **options))
    Manifest.load(parts[1]).remove_expert("b")
    told = r"a lacks 5 shards \(0-2, 4, 7\), b lacks 7 shards \(0-2, 4-7\)"
    with pytest.raises(StoreError, match=rf"the merged store would be incomplete: {told}\. Nothing was written"):
        merge(parts, tmp_path / "out", complete=True)
    assert not (tmp_path / "out").exists()
    assert re.fullmatch(told, merge(parts, tmp_path / "out").lacking)
    rest = make_store(tmp_path / "rest", shards=[0, 1, 2, 4, 5, 6, 7], **options)
    assert merge([rest], tmp_path / "out", complete=True).lacking == ""


def test_bases_fitted_to_different_samples_are_refused(tmp_path, make_store):
    codecs = {"features": "pca2-int8"}
    one, other = make_store(tmp_path / "one", codecs=codecs), make_store(tmp_path / "other", codecs=codecs)
    path = other / "experts/a/expert.yaml"
    path.write_text(re.sub("basis_sha256: .*", f"basis_sha256: '{'0' * 64}'", path.read_text()))
    with pytest.raises(StoreError, match="fitted to different samples"):
        merge([one, other], tmp_path / "out")


def test_stores_of_other_images_are_refused(tmp_path, make_store):
    one, other = make_store(tmp_path / "one"), make_store(tmp_path / "other", n_images=4)
    with pytest.raises(StoreError, match="without img003"):
        merge([one, other], tmp_path / "out")


def test_a_damaged_record_is_not_handed_on(tmp_path, make_store):
    one = make_store(tmp_path / "one")
    (one / "experts/a/shard-00001.json").write_text('{"format_version": 2}')
    with pytest.raises(StoreError, match=r"shard-00001.json: damaged: source: Field required"):
        merge([one], tmp_path / "out")
    assert not (tmp_path / "out/experts/a/shard-00001.json").exists()


def test_a_store_is_not_merged_into_itself(tmp_path, make_store):
    one = make_store(tmp_path / "one")
    with pytest.raises(StoreError, match="is one of the stores to be merged"):
        merge([one], one)


def test_without_hard_links_shards_are_copied(tmp_path, make_store, monkeypatch):
    def no_link(there, here):
        raise OSError(18, "Invalid cross-device link")

    one = make_store(tmp_path / "one")
    monkeypatch.setattr(os, "link", no_link)
    merge([one], tmp_path / "out")
    assert not verify(tmp_path / "out").faults
