"""A reader that knows docs/format.md and nothing of ours: JSON, YAML, checksums, numpy, safetensors and mmap.

Beside these only what decodes compressed chunks, HDF5's own library to find them, and a client for S3.
"""

import hashlib
import json
import mmap
import re

import google_crc32c
import h5py
import numpy as np
import pytest
import yaml
from numcodecs import Blosc, Zstd
from safetensors.numpy import load_file

from championship_sr.store.operations.verify import verify
from championship_sr.store.remote.transfer import push
from championship_sr.store.shards.reader import Store
from tests.s3_server import client

CODECS = (
    "float32", "float16", "bfloat16", "uint8", "uint16", "int8", "pca3-int8", "pca14-int4",
    "float16+zstd", "float16+blosc", "int8+zstd", "pca14-int4+blosc",
)  # fmt: skip
LIBRARIES = {"zstd": Zstd(), "blosc": Blosc()}


def stranger_reads(root, image_id, expert, name, variant="identity"):
    about = yaml.safe_load((root / "store.yaml").read_text())
    assert about["format_version"] == 2
    lines = (root / "images.jsonl").read_bytes()
    assert hashlib.sha256(lines).hexdigest() == about["images_sha256"]
    image = next(each for each in map(json.loads, lines.splitlines()) if each["id"] == image_id)
    folder = root / "experts" / expert if expert else root / "pairs"
    stem = f"shard-{image['shard']:05d}"
    record = json.loads((folder / f"{stem}.json").read_text())
    assert (record["source"], record["shard"]) == (expert or "pairs", image["shard"])
    assert record["images"][image_id] == image["lr_sha256"]
    key = f"{image_id}/{name}" + ("" if variant == "identity" else f"@{variant}")
    entry = record["arrays"][key]
    codec = codec_of(folder, record, name) if expert else entry["dtype"]
    raw = array(folder, stem, about["container"], key, entry, codec.partition("+")[2])
    assert hashlib.sha256(raw.tobytes()).hexdigest() == entry["sha256"]
    return decoded(raw, codec.partition("+")[0], entry["params"], folder, name) if expert else raw


def codec_of(folder, record, name):
    entry = yaml.safe_load((folder / "expert.yaml").read_text())
    decides = {key: entry[key] for key in ("arrays", "identity")} | {"basis": entry["basis_sha256"]}
    canonical = json.dumps(decides, sort_keys=True, ensure_ascii=False)
    assert record["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest()
    return next(spec["codec"] for spec in entry["arrays"] if spec["name"] == name)


def array(folder, stem, container, key, entry, compression):
    path = folder / f"{stem}.zarr" / key / "c.0.0.0" if container == "zarr" else folder / f"{stem}.h5"
    assert path.stat().st_size == entry["file_bytes"]
    shape, chunk = entry["shape"], entry["chunk"] or entry["shape"]
    counts = [-(-size // step) for size, step in zip(shape, chunk, strict=True)]
    if compression:
        assert entry["offset"] is None
        parts = (in_zarr if container == "zarr" else in_hdf5)(path, key, counts, chunk)
        content, offset = b"".join(LIBRARIES[compression].decode(part) for part in parts), 0
    else:
        with open(path, "rb") as file:
            content, offset = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), entry["offset"]
    chunks = np.frombuffer(content, entry["dtype"], int(np.prod(counts) * np.prod(chunk)), offset)
    tiles = chunks.reshape(*counts[:2], *chunk).swapaxes(1, 2)
    return tiles.reshape(counts[0] * chunk[0], counts[1] * chunk[1], shape[2])[: shape[0], : shape[1]]


def in_zarr(path, _key, counts, _chunk):
    content = path.read_bytes()
    index = content[-16 * int(np.prod(counts)) - 4 :]
    assert google_crc32c.value(index[:-4]) == int.from_bytes(index[-4:], "little")
    for offset, length in np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist():
        yield content[offset : offset + length]


def in_hdf5(path, key, counts, chunk):
    with h5py.File(path) as file:
        for y, x in np.ndindex(*counts[:2]):
            mask, part = file[key].id.read_direct_chunk((y * chunk[0], x * chunk[1], 0))
            assert mask == 0
            yield part


def decoded(raw, codec, params, folder, name):
    numbers = raw.astype(np.float32)
    if codec == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if codec in ("uint8", "uint16"):
        return numbers / np.iinfo(raw.dtype).max
    if codec.endswith("-int4"):
        low, high = (raw[..., 8:].astype(int) + 8) % 16 - 8, np.floor_divide(raw[..., 8:], 16)
        numbers = np.concatenate([numbers[..., :8], low, high], -1).astype(np.float32)
    if "scale" in params:
        numbers = numbers * np.array(params["scale"], np.float32)
    if codec.startswith("pca"):
        basis = load_file(folder / "basis.safetensors")
        numbers = numbers @ basis[f"{name}.basis"] + basis[f"{name}.mean"]
    return numbers


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
@pytest.mark.parametrize("codec", CODECS)
def test_docs_format_md_is_enough_to_read_a_store(tmp_path, make_store, container, codec):
    variants = ("identity", "mirror_rot90")
    sizes = [(21, 70), (40, 33)]
    codecs = {"sr": "uint8", "features": codec}
    root = make_store(tmp_path / "s", {"a": 20}, 3, sizes, container, codecs, variants=variants)
    store = Store(root)
    for name in ("sr", "features"):
        for variant in variants:
            found = stranger_reads(root, "img001", "a", name, variant)
            np.testing.assert_allclose(found, store.array(1, "a", name, variant).load(), rtol=1e-6, atol=1e-6)
    for name in ("lr", "hr"):
        np.testing.assert_array_equal(stranger_reads(root, "img001", None, name), store.array(1, "pairs", name).load())


def stranger_copies(objects, folder):
    """The store below a URL as a folder: key -> bytes, by the page's section on object storage."""
    plain = {name: objects[name] for name in ("store.yaml", "images.jsonl")}
    entries = [key for key in objects if re.fullmatch(r"experts/[^/]+/expert\.yaml", key)]
    places = {"pairs": "pairs"}
    for key in (key for key in entries if not key.endswith(".rebuild/expert.yaml")):
        source, content = key.rpartition("/")[0], objects[key]
        text, mark, name = content.rpartition(b"folder: ")
        places[source] = f"experts/{name.decode().strip()}" if mark else source
        plain[key] = text if mark else content
        if sha256 := yaml.safe_load(plain[key])["basis_sha256"]:
            plain[f"{source}/basis.safetensors"] = objects[f"{places[source]}/basis-{sha256[:16]}.safetensors"]
    for source, place in places.items():
        for key in [key for key in objects if re.fullmatch(rf"{re.escape(place)}/shard-\d{{5,}}\.json", key)]:
            record = json.loads(objects[key])
            for name, (n_bytes, sha256) in record.pop("data").items():
                content = objects[f"{place}/{name}"]
                assert len(content) == n_bytes and hashlib.sha256(content).hexdigest() == sha256
                plain[f"{source}/" + re.sub(r"^(shard-\d+)-[0-9a-f]+", r"\1", name)] = content
            plain[f"{source}/{key.rpartition('/')[2]}"] = json.dumps(record).encode()
    for name, content in plain.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def seen_by_another_client(proxy, url):
    name, _, prefix = url.removeprefix("s3://").partition("/")
    found = client(proxy).list_objects_v2(Bucket=name, Prefix=prefix)["Contents"]
    read = {item["Key"]: client(proxy).get_object(Bucket=name, Key=item["Key"])["Body"].read() for item in found}
    return {key.removeprefix(f"{prefix}/"): content for key, content in read.items()}


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_docs_format_md_is_enough_to_read_a_store_in_a_bucket(tmp_path, make_store, container, bucket, proxy):
    root = make_store(tmp_path / "s", {"a": 20}, 3, container=container, codecs={"features": "pca3-int8"})
    push(root, url := f"{bucket}/a.store")
    objects = seen_by_another_client(proxy, url)
    rebuilt = {key.replace("experts/a/", "experts/a.0f0f0f0f/"): content for key, content in objects.items()}
    rebuilt["experts/a/expert.yaml"] = rebuilt.pop("experts/a.0f0f0f0f/expert.yaml") + b"folder: a.0f0f0f0f\n"
    for number, there in enumerate((objects, rebuilt)):
        stranger_copies(there, tmp_path / f"copy{number}")
        found = stranger_reads(tmp_path / f"copy{number}", "img001", "a", "features")
        np.testing.assert_array_equal(found, stranger_reads(root, "img001", "a", "features"))
        assert not verify(tmp_path / f"copy{number}").faults
