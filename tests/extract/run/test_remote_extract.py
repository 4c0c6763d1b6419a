"""Extraction into a bucket: the same store as in a folder, through a folder that stays small."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from championship_sr.extract.run import forwards, job
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.shares import Part
from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.verify import verify
from championship_sr.store.progress import silent
from championship_sr.store.remote import bucket as remote
from championship_sr.store.remote import staging as remote_staging
from championship_sr.store.remote.objects import RemoteStore
from championship_sr.store.remote.transfer import pull
from tests.s3_server import Fault


def checksums(root: Path) -> dict[str, str]:
    """`source/array` -> sha256, from the records."""
    return {
        f"{path.parent.name}/{key}": array["sha256"]
        for path in sorted(root.rglob("shard-*.json"))
        for key, array in json.loads(path.read_text())["arrays"].items()
    }


@pytest.fixture
def options(save_edsr, save_photos) -> dict:
    """An extraction of five small photographs into five shards by one small expert."""
    photos = save_photos(((40, 48), (32, 40), (40, 40), (48, 32), (40, 32)))
    return {"data": {"hr": [str(photos)]}, "experts": [save_edsr()], "container": "hdf5"}


@pytest.fixture
def config(make_config, bucket, options):
    return make_config(store=f"{bucket}/a.store", **options)


@pytest.fixture
def whole(make_config, options, tmp_path) -> dict[str, str]:
    """The checksums of the same store, made in a folder."""
    extract(make_config(store=str(tmp_path / "whole"), **options))
    return checksums(tmp_path / "whole")


@pytest.fixture
def pulled(config, tmp_path):
    """Brings the store from the bucket and returns its checksums; it has no fault."""

    def bring() -> dict[str, str]:
        pull(config.store, tmp_path / "pulled")
        assert not verify(tmp_path / "pulled").faults
        return checksums(tmp_path / "pulled")

    return bring


def test_the_store_in_the_bucket_is_the_one_of_a_folder(config, whole, pulled, tmp_path):
    summary = extract(config, staging=tmp_path / "staging")
    assert summary.experts["tiny"].shards_written == 5 and pulled() == whole
    left = [path for path in (tmp_path / "staging").rglob("shard-*.h5")]
    assert len(left) <= remote_staging.KEPT
    assert extract(config, staging=tmp_path / "staging").experts["tiny"].shards_written == 0


def test_the_folder_never_holds_more_than_a_few_shards(config, proxy, monkeypatch, tmp_path):
    most, upload = [0], remote.Bucket.upload

    def look(self, key, path, progress=silent):
        most.append(len(list((tmp_path / "staging").rglob("shard-*.h5"))))
        upload(self, key, path, progress)

    monkeypatch.setattr(remote.Bucket, "upload", look)
    extract(config, staging=tmp_path / "staging")
    in_work = 1 + 1  # the one that goes up, and the one whose writer waits
    assert max(most) <= remote_staging.KEPT + remote_staging.WAITING + in_work


def test_an_extraction_that_lost_its_connection_goes_on_with_what_is_up(config, proxy, whole, pulled, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    proxy.faults.append(Fault("cut", "PUT", "experts/tiny/shard-00002-", times=10_000))
    with pytest.raises(StoreError, match="experts/tiny/shard-00002-"):
        extract(config)
    there = RemoteStore(config.store).recorded("tiny")
    assert 2 not in there and there
    proxy.faults.clear()
    assert extract(config).experts["tiny"].shards_written < 5 - len(there)  # shard 2 itself only had to go up
    assert pulled() == whole


def test_another_machine_goes_on_from_the_bucket_alone(config, whole, pulled, tmp_path):
    assert extract(config, part=Part(1, 2), staging=tmp_path / "one").experts["tiny"].shards_written in (2, 3)
    assert extract(config, part=Part(2, 2), staging=tmp_path / "two").experts["tiny"].shards_written in (2, 3)
    assert extract(config, staging=tmp_path / "three").experts["tiny"].shards_written == 0
    assert pulled() == whole


def test_a_store_in_a_bucket_says_that_it_does_not_grow(config, tmp_path):
    extract(config, limit=2, staging=tmp_path / "one")
    with pytest.raises(StoreError, match=r"has 2 of these \d+ images, and in object storage none grows"):
        extract(config, staging=tmp_path / "two")
    assert extract(config, limit=2, staging=tmp_path / "two").images == 2


def test_a_machine_with_other_images_or_another_expert_is_refused(config, make_config, save_edsr, save_photos, options):
    extract(config)
    other = {**options, "data": {"hr": [str(save_photos(((40, 40),), folder="others"))]}}
    with pytest.raises(StoreError, match="holds a different store"):
        extract(make_config(store=config.store, **other))
    changed = {**options, "experts": [save_edsr(seed=1)]}
    with pytest.raises(StoreError, match=r"^s3://.*expert tiny was made differently: weights_sha256.*--rebuild tiny"):
        extract(make_config(store=config.store, **changed))


def test_a_rebuilt_expert_is_seen_whole_or_not_at_all(
    config, make_config, save_edsr, options, pulled, keys, monkeypatch
):
    extract(config)
    before = pulled()
    anew = make_config(store=config.store, **{**options, "experts": [save_edsr(seed=1)]})
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(forwards, "run_tiled", interrupted_after(3, forwards.run_tiled))
        extract(anew, rebuild=["tiny"])
        raise AssertionError
    assert pulled() == before
    assert extract(anew, rebuild=["tiny"]).experts["tiny"].shards_written <= 3
    after = pulled()
    assert after.keys() == before.keys()
    assert all((after[key] == before[key]) == key.startswith("pairs/") for key in before)
    old = [key for key in keys(config.store) if key.startswith("experts/tiny/") and "shard" in key]
    assert not old and not any("rebuild" in key for key in keys(config.store))
    assert extract(anew).experts["tiny"].shards_written == 0


def interrupted_after(calls: int, work):
    left = iter(range(calls))

    def run_once(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return work(*arguments)

    return run_once


def test_a_basis_that_another_machine_was_first_to_fit_is_taken_over(
    config, make_config, options, monkeypatch, tmp_path
):
    """Two that begin at once fit bases of their own; the entry that is created first counts for both."""
    config = make_config(store=config.store, **{**options, "codecs": {"features": "pca4-int8"}})
    begin, fit, fitted = remote_staging.Staging.adopt, job.fit_bases, []

    def begun_by_another_too(self, manifest):
        staged = begin(self, manifest)
        monkeypatch.setattr(remote_staging.Staging, "adopt", begin)
        extract(config, part=Part(1, 2), staging=tmp_path / "other")
        return staged

    def fit_otherwise(*arguments):
        """Every second basis has another sign: as good, and other bytes."""
        fitted.append(arguments[0].name)
        sign = 1 if len(fitted) % 2 else -1
        return {name: {**basis, "basis": sign * basis["basis"]} for name, basis in fit(*arguments).items()}

    monkeypatch.setattr(job, "fit_bases", fit_otherwise)
    monkeypatch.setattr(remote_staging.Staging, "adopt", begun_by_another_too)
    extract(config, staging=tmp_path / "one")
    pull(config.store, tmp_path / "pulled")
    assert fitted == ["tiny", "tiny"]
    assert not verify(tmp_path / "pulled").faults and not Manifest.load(tmp_path / "pulled").missing_shards("tiny")
