"""Objects in a bucket: uploads and downloads of whole files with retries, conditional puts, and one-line errors.

Everything goes through obstore; docs/recipes/object-storage.md says why. An object appears whole or not at all, and a
listing made after a put contains it: S3, Google Cloud Storage and the servers that speak S3 all promise that.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from championship_sr.store.disk.small_files import JSON_MIB
from championship_sr.store.errors import StoreError
from championship_sr.store.progress import BytesDone, silent
from championship_sr.store.remote.service import Lost, connect, explained, no_bucket

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20  # of a multipart upload at the least; each is sent again alone
PARTS = 16  # of a larger file
LARGEST_PART_BYTES = 32 << 20  # until the file needs more parts than some servers take:
MOST_PARTS = 1000
PARTS_IN_MEMORY = 128 << 20  # bytes of one file that are on their way at once, in parts
READ_BYTES = 4 << 20
TRIES = 5  # of one file, after what obstore tries for each request
PAUSE_SECONDS = 1.0  # before the second try, doubled each time


def is_remote(store: str | Path) -> TypeGuard[str]:
    """True for the URL of a store in object storage."""
    return isinstance(store, str) and "://" in store


def store_place(store: str | Path) -> str | Path:
    """The store's URL as it is, or the path of its folder."""
    return store if is_remote(store) else Path(store)


def cache_folder(url: str, purpose: str) -> Path:
    """The default folder for a store's copies, below the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "championship-sr" / purpose / hashlib.sha256(url.encode()).hexdigest()[:16]


class Bucket:
    """The objects under a URL such as s3://bucket/folder; keys are relative to it. Safe in threads, not across fork.

    raises  ConfigError for an invalid URL, or if the library or credentials are missing
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._store = connect(self.url)
        self._conditional = True

    def get(self, key: str) -> bytes | None:
        """The object's bytes, None if there is no such object.

        raises  StoreError if it is larger than a store's small files can be
        """
        import obstore

        with self._explained(key):
            try:
                answer = obstore.get(self._store, key)
            except FileNotFoundError as error:
                if no_bucket(str(error)):
                    raise
                return None
            if answer.meta["size"] > JSON_MIB << 20:
                size = answer.meta["size"] >> 20
                raise StoreError(f"{self.url}/{key}: {size} MiB, but such a file is never larger than {JSON_MIB}")
            return answer.bytes().to_bytes()

    def exists(self, key: str) -> bool:
        """True if there is such an object."""
        import obstore

        with self._explained(key):
            try:
                obstore.head(self._store, key)
                return True
            except FileNotFoundError:
                return False

    def put(self, key: str, content: bytes) -> None:
        """Put the object, replacing any other."""
        import obstore

        with self._explained(key):
            obstore.put(self._store, key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Put the object if there is none; False if there is one, perhaps from another process or an earlier try."""
        import obstore

        if not self._conditional:  # almost as good: two at the very same moment are not told apart
            if self.exists(key):
                return False
            self.put(key, content)
            return True
        with self._explained(key):
            try:
                obstore.put(self._store, key, content, mode="create")
                return True
            except obstore.exceptions.AlreadyExistsError:
                return False
            except (obstore.exceptions.GenericError, obstore.exceptions.NotSupportedError) as error:
                if "Not Implemented" not in str(error) and not isinstance(error, obstore.exceptions.NotSupportedError):
                    raise
        log.warning(
            "%s: conditional puts are not supported; set AWS_CONDITIONAL_PUT=disabled to skip this check", self.url
        )
        self._conditional = False
        return self.create(key, content)

    def upload(self, key: str, path: Path, progress: BytesDone = silent) -> None:
        """Put a file, in parts if it is large; sent again from its beginning if a part fails for good."""
        import obstore

        for last in _tries(f"{self.url}/{key}"):
            try:
                with self._explained(key):
                    part, at_once = parts_of_upload(path.stat().st_size)
                    obstore.put(self._store, key, path, chunk_size=part, max_concurrency=at_once)
                progress(path.stat().st_size)
                return
            except Lost:
                if last:
                    raise

    def download(self, key: str, path: Path, n_bytes: int, sha256: str, progress: BytesDone = silent) -> None:
        """Download the object into a file, continuing where an earlier call stopped; the publisher syncs it.

        raises  StoreError if the data has another size or checksum, twice
        """
        for second in (False, True):
            digest = self._fetch(key, path, n_bytes, progress)
            if digest == sha256:
                return
            path.unlink()
            progress(-n_bytes)
            if second:
                raise StoreError(
                    f"{self.url}/{key}: its bytes are not those that were uploaded (sha256); make its shard again with "
                    "store push from an intact copy, or with extract --rebuild"
                )

    def _fetch(self, key: str, path: Path, n_bytes: int, progress: BytesDone) -> str:
        digest = _digest(path, n_bytes)
        progress(path.stat().st_size if path.exists() else 0)
        for last in _tries(f"{self.url}/{key}"):
            with open(path, "ab") as file:
                try:
                    if file.tell() < n_bytes or not n_bytes:
                        for part in self._stream(key, file.tell(), n_bytes):
                            file.write(part)
                            digest.update(part)
                            progress(len(part))
                    if file.tell() == n_bytes:
                        return digest.hexdigest()
                    raise Lost(f"{self.url}/{key}: {file.tell()} bytes, expected {n_bytes}")
                except Lost:
                    if last:
                        raise
        raise AssertionError

    def _stream(self, key: str, start: int, n_bytes: int) -> Iterator[Any]:
        import obstore

        with self._explained(key):
            content = obstore.get(self._store, key, options={"range": (start, n_bytes)} if start else None)
            yield from content.stream(min_chunk_size=READ_BYTES)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Key -> bytes of every object below the folder."""
        import obstore

        with self._explained(prefix):
            pages = obstore.list(self._store, prefix)
            return {item["path"]: item["size"] for page in pages for item in page}

    def names(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the objects right in the folder, and of the folders in it."""
        import obstore

        with self._explained(folder):
            listing = obstore.list_with_delimiter(self._store, folder or None)
        objects = [item["path"].rpartition("/")[2] for item in listing["objects"]]
        return objects, [path.rstrip("/").rpartition("/")[2] for path in listing["common_prefixes"]]

    def remove(self, keys: list[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        import obstore

        with self._explained(keys[0] if keys else ""):
            for first in range(0, len(keys), 1000):  # S3's limit of one request
                obstore.delete(self._store, keys[first : first + 1000])

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise explained(error, f"{self.url}/{key}".rstrip("/")) from None


def parts_of_upload(n_bytes: int) -> tuple[int, int]:
    """The bytes of each part of a file of this size, and how many parts go at once."""
    fair = min(max(PART_BYTES, -(-n_bytes // PARTS)), LARGEST_PART_BYTES)
    part = max(fair, -(-n_bytes // MOST_PARTS))
    return part, max(2, PARTS_IN_MEMORY // part)


def _tries(what: str) -> Iterator[bool]:
    """True for the last one; with a growing pause before each but the first."""
    for number in range(1, TRIES + 1):
        if number > 1:
            log.warning("%s: retrying (%d of %d)", what, number, TRIES)
            time.sleep(PAUSE_SECONDS * 2 ** (number - 2))
        yield number == TRIES


def _digest(path: Path, n_bytes: int) -> Any:
    """The hash of what is in the file already; of nothing, and no file, if that is too much."""
    digest = hashlib.sha256()
    if path.exists() and path.stat().st_size > n_bytes:
        path.unlink()
    if path.exists():
        with open(path, "rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    return digest
