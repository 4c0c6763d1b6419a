"""A small store of random numbers, written by the real writer."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from championship_sr.store.codecs import fit_pca, get_codec
from championship_sr.store.format.description import assign_shards
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.format.variants import variant_size
from championship_sr.store.shards.writer import write_shard
from tests.s3_server import bucket, keys, proxy, s3_port  # noqa: F401  (fixtures)

# tqdm's own lock is shared with forked processes: one that a test kills while holding it would stop all that follow
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # nor may a thread hold it when a process is forked

SIZES = ((12, 17), (9, 8), (16, 16))


def random_image(index: int, size: tuple[int, int], scale: int) -> dict[str, np.ndarray]:
    """The pair of the image with this index: the same for every store."""
    rng = np.random.default_rng([0, index])
    rows, cols = size
    return {
        "lr": rng.integers(0, 256, (rows, cols, 3), np.uint8),
        "hr": rng.integers(0, 256, (rows * scale, cols * scale, 3), np.uint8),
    }


def random_features(seed: int, index: int, size: tuple[int, int], channels: int, scale: int) -> dict[str, np.ndarray]:
    """What an expert of this seed says about an image: the same for every store."""
    rng = np.random.default_rng([1, seed, index])
    rows, cols = size
    return {
        "sr": rng.random((rows * scale, cols * scale, 3), np.float32),
        "features": rng.standard_normal((rows, cols, channels), np.float32),
    }


def build_store(
    root: Path,
    experts: Mapping[str, int] | None = None,
    n_images: int = 3,
    sizes: Sequence[tuple[int, int]] = SIZES,
    container: str = "zarr",
    codecs: Mapping[str, str] | None = None,
    scale: int = 4,
    images_per_shard: int = 2,
    variants: Sequence[str] = ("identity",),
    shards: Sequence[int] | None = None,
    chunks: str = "default",
) -> Path:
    """A whole store; image i has the LR size sizes[i % len(sizes)], `experts` are name -> feature channels.

    codecs  array name -> codec, for those that aren't float16
    shards  of the experts, None for all: the others stay missing
    """
    images = [
        Image(f"img{i:03d}", f"photo {i}", sizes[i % len(sizes)], f"lr{i}", f"hr{i}", 0, "file")
        for i in range(n_images)
    ]
    manifest = Manifest.create(root, scale=scale, container=container, images=assign_shards(images, images_per_shard))
    for shard in manifest.missing_shards(PAIRS):
        with write_shard(manifest, PAIRS, shard, chunks=chunks) as out:
            for image in manifest.images_of(shard):
                out.add(image.id, random_image(manifest.images.index(image), image.lr_size, scale))
    for seed, (name, channels) in enumerate((experts or {"a": 5, "b": 7}).items()):
        add_expert(manifest, name, channels, seed, codecs or {}, variants, shards, chunks)
    return root


def add_expert(manifest, name, channels, seed, codecs, variants, shards=None, chunks="default", rebuild=False):
    """An expert with all its shards, or with those given."""
    scale = manifest.scale
    arrays = (ArraySpec("sr", 3, scale, codecs.get("sr", "float16")),)
    if channels:
        arrays += (ArraySpec("features", channels, 1, codecs.get("features", "float16")),)
    expert = Expert(name, arrays, {"weights_sha256": f"{name}{seed}", "variants": list(variants)}, {"seed": seed})
    basis = {}
    for spec in manifest.needs_basis(expert, rebuild):
        sample = random_features(seed, 0, (64, 64), channels, scale)[spec.name]
        basis[spec.name] = fit_pca([sample], get_codec(spec.codec).components)
    manifest.add_expert(expert, rebuild=rebuild, basis=basis)
    for shard in manifest.missing_shards(name, rebuild) if shards is None else shards:
        add_shard(manifest, name, channels, seed, shard, variants, chunks, rebuild)


def add_shard(manifest, name, channels, seed, shard, variants=("identity",), chunks="default", rebuild=False):
    """One shard of an expert that the store has."""
    names = [spec.name for spec in manifest.specs(name, rebuild)]
    with write_shard(manifest, name, shard, rebuild=rebuild, chunks=chunks) as out:
        for image in manifest.images_of(shard):
            for number, variant in enumerate(variants):
                size = variant_size(image.lr_size, variant)
                index = manifest.images.index(image) + 1000 * number
                made = random_features(seed, index, size, channels, manifest.scale)
                out.add(image.id, {each: made[each] for each in names}, variant)


def edit_record(path: Path, change: Callable[[dict], object]) -> None:
    """Change a record as its writer would have written it, with a checksum that is right."""
    record = json.loads(path.read_text())
    change(record)
    covered = {key: value for key, value in record.items() if key != "checksum"}  # docs/format.md
    canonical = json.dumps(covered, sort_keys=True, ensure_ascii=False).encode()
    if "checksum" in record:
        record["checksum"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(record))


@pytest.fixture(scope="session")
def samples() -> SimpleNamespace:
    """The functions above, for tests that compare with what `make_store` wrote."""
    return SimpleNamespace(
        image=random_image, features=random_features, build=build_store, add_expert=add_expert, add_shard=add_shard
    )


@pytest.fixture
def make_store() -> Callable[..., Path]:
    """`build_store`: a whole small store of random numbers in a folder of the test's own."""
    return build_store


@pytest.fixture
def one_thread():
    """Torch on one thread, which small networks run fastest on and the same everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
