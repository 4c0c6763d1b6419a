"""Objects over HTTP, with the network's faults: what is got is what was put, or one line says why not."""

import hashlib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.remote import bucket as remote
from championship_sr.store.remote import service as remote_service
from championship_sr.store.remote.bucket import PART_BYTES, Bucket, parts_of_upload
from tests.s3_server import CREDENTIALS, ENDPOINT, Fault

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def place(bucket) -> Bucket:
    return Bucket(f"{bucket}/folder/")


def test_what_is_put_is_there_and_the_rest_is_not(place):
    place.put("a/b", b"one")
    assert (place.get("a/b"), place.exists("a/b"), place.get("a"), place.exists("a/c")) == (b"one", True, None, False)
    place.put("a/b", b"two")
    place.put("a/c/d", b"")
    assert place.get("a/b") == b"two" and place.sizes("a") == {"a/b": 3, "a/c/d": 0}
    assert place.names("a") == (["b"], ["c"]) and place.names("") == ([], ["a"]) and place.names("none") == ([], [])
    place.remove(["a/b", "never was"])
    assert place.sizes("") == {"a/c/d": 0}


def test_an_object_that_is_too_large_for_a_small_file_is_refused(place, monkeypatch):
    assert place.create("store.yaml", b"scale: 4")
    monkeypatch.setattr("championship_sr.store.remote.bucket.JSON_MIB", 0)
    with pytest.raises(StoreError, match=r"store\.yaml: 0 MiB, but such a file is never larger than 0"):
        place.get("store.yaml")


def test_only_the_first_creates(place):
    assert place.create("once", b"first") and not place.create("once", b"second")
    assert place.get("once") == b"first"


def test_a_server_without_conditional_puts_is_asked_first(place, proxy):
    proxy.faults.append(Fault(501, "PUT", times=99, code="NotImplemented", header="If-None-Match"))
    assert place.create("once", b"first") and not place.create("once", b"second")
    assert place.get("once") == b"first"


def test_a_download_goes_on_where_it_stopped(place, proxy, tmp_path):
    path, moved = tmp_path / "file", []
    place.put("object", CONTENT)
    path.write_bytes(CONTENT[:100_000])
    place.download("object", path, len(CONTENT), SHA256, moved.append)
    assert path.read_bytes() == CONTENT and sum(moved) == len(CONTENT)
    assert proxy.ranges == [f"bytes=100000-{len(CONTENT) - 1}"]


def test_a_download_that_is_cut_again_and_again_ends_with_the_right_bytes(place, proxy, tmp_path):
    place.put("object", CONTENT)
    proxy.faults.append(Fault("cut", "GET", times=4))
    place.download("object", tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT and proxy.count("GET") >= 5


def test_an_upload_that_is_cut_is_sent_again(place, proxy, tmp_path):
    path, moved = tmp_path / "file", []
    path.write_bytes(CONTENT)
    proxy.faults.append(Fault("cut", "PUT", times=2))
    place.upload("object", path, moved.append)
    assert place.get("object") == CONTENT and sum(moved) == len(CONTENT)


def test_one_lost_part_of_a_large_upload_is_sent_again_alone(place, proxy, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT * (2 * PART_BYTES // len(CONTENT) + 1))
    proxy.faults.append(Fault("cut", "PUT", "partNumber=2"))
    place.upload("object", path)
    assert place.get("object") == path.read_bytes()
    assert [proxy.count("PUT", f"partNumber={number}") for number in (1, 2, 3)] == [1, 2, 1]


@given(n_bytes=integers(1, 4 << 40))
def test_parts_grow_with_the_file_within_what_servers_take_and_memory_holds(n_bytes):
    part, at_once = parts_of_upload(n_bytes)
    assert PART_BYTES <= part <= 5 << 30 and part * remote.MOST_PARTS >= n_bytes
    assert part * at_once <= remote.PARTS_IN_MEMORY or at_once == 2
    assert part <= remote.LARGEST_PART_BYTES or part * remote.MOST_PARTS < n_bytes + remote.MOST_PARTS


def test_the_parts_of_a_very_large_file_are_larger(place, proxy, monkeypatch, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT * 60)
    monkeypatch.setattr(remote, "MOST_PARTS", 2)
    place.upload("object", path)
    assert place.get("object") == path.read_bytes() and proxy.count("PUT", "partNumber") == 2


def test_a_busy_server_and_a_silent_one_are_asked_again(bucket, proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(remote_service, "CLIENT", {**remote_service.CLIENT, "read_timeout": "400ms"})
    place = Bucket(bucket)
    proxy.faults += [Fault(503, "PUT", times=3), Fault("stall", "GET")]
    place.put("object", CONTENT)
    place.download("object", tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_stays_busy_ends_in_one_line(place, proxy, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    proxy.faults.append(Fault(503, "PUT", times=10_000))
    with pytest.raises(StoreError, match=r"folder/object: .*503") as caught:
        place.upload("object", path)
    assert "\n" not in str(caught.value)
    assert proxy.count("PUT") == remote.TRIES * (remote_service.RETRY["max_retries"] + 1)


def test_bytes_that_were_changed_are_never_handed_on(place, tmp_path):
    place.put("object", CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(StoreError, match="sha256"):
        place.download("object", tmp_path / "file", len(CONTENT), SHA256)
    assert not (tmp_path / "file").exists()


def test_a_leftover_of_another_object_is_replaced(place, tmp_path):
    place.put("object", CONTENT)
    (tmp_path / "file").write_bytes(b"something else")
    place.download("object", tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_bucket_that_is_not_there_is_named(bucket):
    for act in (
        Bucket("s3://nobody/x").get,
        Bucket("s3://nobody/x").sizes,
        lambda k: Bucket("s3://nobody").put(k, b""),
    ):
        with pytest.raises(StoreError, match="there is no bucket nobody at http"):
            act("key")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", r"refused \(AccessDenied\).*bucket-"),
        (403, "SignatureDoesNotMatch", r"refused \(SignatureDoesNotMatch\)"),
        (403, "RequestTimeTooSkewed", r"refused \(RequestTimeTooSkewed\): this machine's clock .* correct it"),
        (301, "PermanentRedirect", "is not in the region us-east-1; set AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "is not in the region"),
        (400, "InvalidBucketName", r"key: 400 Bad Request, InvalidBucketName: injected$"),
    ],
)
def test_a_refusal_says_what_to_correct(place, proxy, status, code, message):
    proxy.faults.append(Fault(status, times=99, code=code))
    with pytest.raises(StoreError, match=message):
        place.put("key", b"")


def test_a_server_that_is_not_there_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"cannot reach http://127\.0\.0\.1:9"):
        Bucket(bucket).get("key")


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """No credentials anywhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_missing_credentials_are_told_before_anything_is_sent(bucket, nobody, proxy):
    with pytest.raises(ConfigError, match="no credentials found: set AWS_ACCESS_KEY_ID"):
        Bucket(bucket)
    assert not proxy.requests


def test_credentials_of_a_profile_count(bucket, nobody, monkeypatch, tmp_path):
    (tmp_path / ".aws").mkdir()
    keys = (f"{name.lower()} = {CREDENTIALS[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    (tmp_path / ".aws/credentials").write_text("\n".join(["[mine]", *keys]))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    Bucket(bucket).put("key", b"x")
    assert Bucket(bucket).get("key") == b"x"


@pytest.mark.skipif(ENDPOINT != "", reason="buckets of the tests are public on moto's server alone")
def test_a_public_bucket_needs_no_credentials(bucket, nobody, monkeypatch):
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert Bucket(bucket).get("key") is None


@pytest.mark.parametrize("url", ["s3://", "http://127.0.0.1/x", "gs:///x", "az://box/x"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="expected s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"):
        Bucket(url)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"pip install 'championship-sr\[cloud\]'"):
        Bucket("s3://box/x")
