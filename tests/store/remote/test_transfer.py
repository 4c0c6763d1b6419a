"""Whole stores to a bucket and back: what is interrupted goes on, and nothing half or foreign is ever handed on."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from championship_sr.store.commands import store as store_command
from championship_sr.store.errors import StoreError
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.operations.verify import verify
from championship_sr.store.remote import bucket as remote
from championship_sr.store.remote import objects as remote_store
from championship_sr.store.remote.transfer import pull, push
from championship_sr.store.shards.reader import Store
from tests.conftest import edit_record
from tests.s3_server import ENDPOINT, Fault


def content(root: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


ACCOUNT = ("client_email", "private_key", "private_key_id")
BOTH = pytest.mark.parametrize("container", ["zarr", "hdf5"])


@pytest.fixture
def container() -> str:
    return "hdf5"  # fewer requests, except where BOTH are tried


@pytest.fixture
def local(container, make_store, tmp_path) -> Path:
    codecs = {"features": "pca4-int8", "sr": "uint8"}
    return make_store(tmp_path / "local", n_images=5, container=container, codecs=codecs)


@BOTH
def test_what_comes_back_is_what_was_put_byte_for_byte(local, bucket, keys, tmp_path):
    moved, total = [], []
    put = push(local, f"{bucket}/a.store", progress=moved.append, total=total.append)
    assert put.shards == 9 and sum(moved) == total[0] > 10_000
    assert {"store.yaml", "images.jsonl", "experts/a/expert.yaml", "pairs/shard-00002.json"} <= set(
        keys(f"{bucket}/a.store")
    )
    moved.clear(), total.clear()
    got = pull(f"{bucket}/a.store", tmp_path / "back", progress=moved.append, total=total.append)
    assert got.shards == 9 and not any(got.missing.values()) and sum(moved) == total[0]
    assert content(tmp_path / "back") == content(local)
    assert not verify(tmp_path / "back").faults


def test_a_second_time_nothing_moves(local, bucket, proxy, tmp_path):
    push(local, f"{bucket}/a.store")
    pull(f"{bucket}/a.store", tmp_path / "back")
    proxy.requests.clear()
    assert push(local, f"{bucket}/a.store").shards == pull(f"{bucket}/a.store", tmp_path / "back").shards == 0
    assert proxy.count("PUT") == 6  # four small files that are there already, and bases
    assert not any("zarr" in path or ".h5" in path for _, path in proxy.requests)


@BOTH
def test_the_record_is_put_after_all_files_of_its_shard(local, bucket, proxy):
    push(local, f"{bucket}/a.store", jobs=4)
    puts = [path for method, path in proxy.requests if method == "PUT"]
    for number in range(3):
        record = next(i for i, path in enumerate(puts) if path.endswith(f"experts/b/shard-0000{number}.json"))
        files = [i for i, path in enumerate(puts) if f"experts/b/shard-0000{number}-" in path]
        assert files and max(files) < record


def test_an_interrupted_push_leaves_no_record_and_goes_on(make_store, bucket, proxy, keys, monkeypatch, tmp_path):
    local, url = make_store(tmp_path / "local"), f"{bucket}/a.store"
    monkeypatch.setattr(remote, "TRIES", 1)
    proxy.faults.append(Fault(503, "PUT", "experts/a/shard-00001-", times=10_000))
    with pytest.raises(StoreError, match="503"):
        push(local, url)
    there = keys(url)
    assert "experts/a/shard-00001.json" not in there and any("experts/a/shard-00000" in key for key in there)
    proxy.faults.clear()
    proxy.requests.clear()
    push(local, url)
    again = [path for method, path in proxy.requests if method == "PUT" and any(path.endswith(key) for key in there)]
    assert {path.rpartition("/")[2] for path in again} <= {"store.yaml", "images.jsonl", "expert.yaml"}
    pull(url, tmp_path / "back")
    assert content(tmp_path / "back") == content(local)


@BOTH
def test_an_interrupted_pull_shows_whole_shards_only_and_goes_on(local, bucket, proxy, monkeypatch, tmp_path):
    url, back = f"{bucket}/a.store", tmp_path / "back"
    push(local, url)
    with monkeypatch.context() as patch:
        patch.setattr(remote, "TRIES", 1)
        patch.setattr(remote, "READ_BYTES", 500)
        proxy.faults.append(Fault("cut", "GET", "experts/b/shard-00001-", times=10_000))
        with pytest.raises(StoreError, match="experts/b/shard-00001-"):
            pull(url, back, jobs=2)
    manifest = Manifest.load(back)
    assert 1 in manifest.missing_shards("b") and not manifest.shard_path("b", 1).exists()
    assert not verify(back).faults
    half = sum(path.stat().st_size for path in (back / remote_store.UNFINISHED).rglob("*") if path.is_file())
    proxy.faults.clear()
    proxy.requests.clear(), proxy.ranges.clear()
    pull(url, back)
    assert half > 0 and proxy.ranges  # the rest of the file that was cut
    assert content(back) == content(local)


def test_only_the_experts_that_are_asked_for_come(local, bucket, tmp_path):
    push(local, f"{bucket}/a.store", ["b"])
    with pytest.raises(StoreError, match=r"no features for a \(has: b\)"):
        pull(f"{bucket}/a.store", tmp_path / "back", ["a"])
    push(local, f"{bucket}/a.store")
    pull(f"{bucket}/a.store", tmp_path / "one", ["b"])
    assert list(Store(tmp_path / "one").experts) == ["b"] and not (tmp_path / "one/experts/a").exists()
    pull(f"{bucket}/a.store", tmp_path / "one")
    assert content(tmp_path / "one") == content(local)


def test_an_object_that_was_damaged_is_named_and_its_shard_stays_away(local, bucket, keys, tmp_path):
    url = f"{bucket}/a.store"
    push(local, url)
    victim = next(key for key in keys(url) if "b/shard-00000-" in key and not key.endswith("json"))
    place = remote.Bucket(url)
    content = place.get(victim)
    place.put(victim, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"experts/b/shard-00000-.*sha256"):
        pull(url, tmp_path / "back")
    assert 0 in Manifest.load(tmp_path / "back").missing_shards("b")


def test_an_unknown_format_version_is_refused(local, bucket, tmp_path):
    push(local, f"{bucket}/a.store")
    place = remote.Bucket(f"{bucket}/a.store")
    place.put("store.yaml", place.get("store.yaml").replace(b"format_version: 2", b"format_version: 9"))
    with pytest.raises(StoreError, match=r"^s3://.*a\.store: format version 9, but this program only reads 1"):
        pull(f"{bucket}/a.store", tmp_path / "back")


def test_what_is_no_store_is_said(bucket, tmp_path):
    with pytest.raises(StoreError, match=r"none\.store: not a feature store"):
        pull(f"{bucket}/none.store", tmp_path / "back")


def test_a_record_without_its_files_says_how_to_put_it(local, bucket, tmp_path):
    push(local, f"{bucket}/a.store")
    remote.Bucket(f"{bucket}/a.store").put("pairs/shard-00001.json", (local / "pairs/shard-00001.json").read_bytes())
    with pytest.raises(StoreError, match=r"pairs/shard-00001\.json: does not list the shard's files.*store push"):
        pull(f"{bucket}/a.store", tmp_path / "back")


def test_another_store_is_not_mixed_in(local, make_store, bucket, tmp_path):
    url = f"{bucket}/a.store"
    push(local, url)
    other = make_store(tmp_path / "other", n_images=4, container="hdf5")
    with pytest.raises(StoreError, match=r"holds a different store: with the extra img004"):
        push(other, url)
    with pytest.raises(StoreError, match=r"not a copy of .* but of another store"):
        pull(url, other)


def test_an_expert_made_otherwise_and_a_shard_with_other_bytes_are_named(make_store, samples, bucket, tmp_path):
    first, url = make_store(tmp_path / "first", {"a": 5}), f"{bucket}/a.store"
    push(first, url)
    other = make_store(tmp_path / "other", {"a": 5})
    changed = {"sha256": "0" * 64}
    edit_record(other / "experts/a/shard-00001.json", lambda record: record["arrays"]["img002/sr"].update(changed))
    with pytest.raises(StoreError, match=r"differs from .*other in shard 1 of a; nothing was uploaded"):
        push(other, url)
    shutil.rmtree(other)
    with pytest.raises(
        StoreError, match=r"its expert a was made differently: arrays\.features\.channels is 5 there, 6 now"
    ):
        push(make_store(other, {"a": 6}), url)


def test_of_two_who_make_one_shard_the_first_record_counts(make_store, bucket, keys, tmp_path):
    """Their files never mix, although the bytes differ."""
    from concurrent.futures import ThreadPoolExecutor

    one = make_store(tmp_path / "one", {"a": 5})
    push(one, f"{bucket}/a.store")
    before = keys(f"{bucket}/a.store")
    other = tmp_path / "other"
    shutil.copytree(one, other)
    victim = next((other / "experts/a").rglob("shard-00000.zarr/img000/sr/c.0.0.0"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with ThreadPoolExecutor(2) as pool:
        first = remote_store.RemoteStore(f"{bucket}/a.store").put_shard(Manifest.load(other), "a", 0, pool)
    assert not first and keys(f"{bucket}/a.store") == before


def test_the_commands_end_with_what_was_done(local, bucket, tmp_path):
    def run(*arguments: object):
        result = CliRunner().invoke(store_command, list(map(str, arguments)), catch_exceptions=False)
        return result.stdout.splitlines()[-1]

    assert "9 shards from" in run("push", local, f"{bucket}/a.store", "--jobs", 2)
    assert json.loads(run("pull", f"{bucket}/a.store", tmp_path / "back", "--expert", "a", "--json"))["shards"] == 6


@pytest.mark.skipif(ENDPOINT != "", reason="only moto's server takes requests with any signature")
def test_the_same_goes_through_the_client_for_google(local, bucket, proxy, monkeypatch, tmp_path):
    """Google's XML interface is S3's but for signatures and the header of a conditional put, which is translated."""

    def as_s3(headers) -> dict:
        renamed = {key.lower(): value for key, value in headers.items()}
        renamed["authorization"] = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, Signature=x"
        if renamed.pop("x-goog-if-generation-match", None) == "0":
            renamed["If-None-Match"] = "*"
        return renamed

    proxy.rewrite = as_s3
    monkeypatch.setenv("GOOGLE_BASE_URL", proxy.url)
    nobody = {"gcs_base_url": proxy.url, "disable_oauth": True, **dict.fromkeys(ACCOUNT, "")}
    (tmp_path / "account.json").write_text(json.dumps(nobody))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    url = f"{bucket.replace('s3://', 'gs://')}/a.store"
    push(local, url)
    assert not remote.Bucket(url).create("store.yaml", b"")
    pull(url, tmp_path / "back")
    assert content(tmp_path / "back") == content(local)
