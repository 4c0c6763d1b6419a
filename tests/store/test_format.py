"""A reader that knows docs/format.md and nothing of ours: json, yaml, hashlib, numpy, safetensors and mmap."""

import hashlib
import json
import mmap

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from store.reader import Store

CODECS = ("float32", "float16", "bfloat16", "uint8", "uint16", "int8", "pca3-int8", "pca14-int4")


def stranger_reads(root, image_id, expert, name, variant="identity"):
    about = yaml.safe_load((root / "store.yaml").read_text())
    assert about["format_version"] == 1
    lines = (root / "images.jsonl").read_bytes()
    assert hashlib.sha256(lines).hexdigest() == about["images_sha256"]
    image = next(each for each in map(json.loads, lines.splitlines()) if each["id"] == image_id)
    folder = root / "experts" / expert
    entry = yaml.safe_load((folder / "expert.yaml").read_text())
    stem = f"shard-{image['shard']:05d}"
    record = json.loads((folder / f"{stem}.json").read_text())
    decides = {key: entry[key] for key in ("arrays", "identity")} | {"basis": entry["basis_sha256"]}
    canonical = json.dumps(decides, sort_keys=True, ensure_ascii=False)
    assert record["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert record["images"][image_id] == image["lr_sha256"]
    key = f"{image_id}/{name}" + ("" if variant == "identity" else f"@{variant}")
    raw = mapped(folder, stem, about["container"], key, record["arrays"][key])
    assert hashlib.sha256(raw.tobytes()).hexdigest() == record["arrays"][key]["sha256"]
    codec = next(spec["codec"] for spec in entry["arrays"] if spec["name"] == name)
    return decoded(raw, codec, record["arrays"][key]["params"], folder, name)


def mapped(folder, stem, container, key, entry):
    path = folder / f"{stem}.zarr" / key / "c.0.0.0" if container == "zarr" else folder / f"{stem}.h5"
    assert path.stat().st_size == entry["file_bytes"]
    shape, chunk = entry["shape"], entry["chunk"] or entry["shape"]
    counts = [-(-size // step) for size, step in zip(shape, chunk, strict=True)]
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    chunks = np.frombuffer(content, entry["dtype"], int(np.prod(counts) * np.prod(chunk)), entry["offset"])
    tiles = chunks.reshape(*counts[:2], *chunk).swapaxes(1, 2)
    return tiles.reshape(counts[0] * chunk[0], counts[1] * chunk[1], shape[2])[: shape[0], : shape[1]]


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
@pytest.mark.parametrize(
    "codec", ["float32", "float16", "bfloat16", "uint8", "uint16", "int8", "pca3-int8", "pca14-int4"]
)
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
