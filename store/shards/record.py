"""The record of a shard: what it says, and what to run where it is missing."""

from typing import Any

from championship_sr.store.disk.small_files import parse_json, read_small
from championship_sr.store.errors import StoreError
from championship_sr.store.format.layout import FORMAT_VERSION, PAIRS
from championship_sr.store.format.manifest import Manifest


def read_record(manifest: Manifest, source: str, shard: int) -> dict[str, Any]:
    """A shard's record, if it is of this store's images and of the source as it is now.

    raises  StoreError if it is missing, damaged or of another store
    """
    path = manifest.record_path(source, shard)
    try:
        record = parse_json(read_small(path))
        version, fingerprint, images = (record[key] for key in ("format_version", "fingerprint", "images"))
    except FileNotFoundError:
        raise StoreError(f"{path}: missing, so that its shard isn't whole. Run: {_remedy(source)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged ({error}); run store verify --repair, then: {_remedy(source)}") from None
    if version != FORMAT_VERSION:
        raise StoreError(f"{path}: format version {version!r}; this program knows {FORMAT_VERSION}")
    if (record.get("source"), record.get("shard")) != (source, shard):
        raise StoreError(f"{path}: records shard {record.get('shard')} of {record.get('source')}, not this one")
    if fingerprint != manifest.fingerprint(source):
        raise StoreError(
            f"{path}: a shard of another {source}: made with other weights or settings than its expert.yaml says"
        )
    if images != manifest.lr_identity(shard):
        raise StoreError(f"{path}: a shard of other images than {manifest.root} has: from another store")
    return record


def _remedy(source: str) -> str:
    return "pipeline.py extract" + ("" if source == PAIRS else f" --expert {source}")
