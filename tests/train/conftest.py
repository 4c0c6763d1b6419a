"""A store in which there is something to learn: each expert errs in its own way, and its features tell how."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from championship_sr.store.config import build
from championship_sr.store.format.entries import ArraySpec, Expert, Image
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.format.manifest import Manifest
from championship_sr.store.shards.writer import write_shard
from championship_sr.train.config import TrainConfig

SCALE = 4
POISON = 3e38  # finite, as a store demands; its square is not
EXPERTS = {"one": 5, "two": 7}
# 8 x 8 crops, narrow layers: a step takes milliseconds
TINY = {
    "fusion": {
        "bands": 8, "band_heads": 2, "band_expansion": 1, "experts": 8, "expert_heads": 2, "expert_expansion": 1,
        "hierarchy": 8, "selection": 8, "refinement": 8, "refinement_layers": 3, "edges": 8,
    },
    "data": {"batch_size": 2, "crop_px": 8, "repeat_factor": 4, "threads": 0},
    "validation": {"every": 4, "hold_out": 1},
    "checkpoints": {"every": 4},
    "steps": 8,
    "log_every": 1,
    "tensorboard": False,
    "optimiser": {"learning_rate": 1e-3},
    "schedule": {"warmup": 0},
    "device": "cpu",
}  # fmt: skip


def tiny_config(**changes) -> TrainConfig:
    """The configuration of a run that takes seconds; changes as `section={key: value}` or `key=value`."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    return build(TrainConfig, content, "tiny", "train")


def learnable_store(
    root: Path,
    *,
    sizes: Sequence[tuple[int, int]] = ((16, 20), (12, 16), (16, 16)),
    seed: int = 0,
    random_weights: bool = False,
    codec: str = "float16",
    channels: dict[str, int] = EXPERTS,
    poison: str = "",
) -> Path:
    images = [
        Image(f"photo{seed}{i}", f"photo {i}", size, f"lr{seed}{i}", f"hr{seed}{i}", 0, "file")
        for i, size in enumerate(sizes)
    ]
    manifest = Manifest.create(root, scale=SCALE, container="zarr", images=images)
    rng = np.random.default_rng(seed)
    hrs = {image.id: _scene(rng, image.lr_size) for image in images}
    with write_shard(manifest, PAIRS, 0) as out:
        for image in images:
            out.add(image.id, {"lr": hrs[image.id][::SCALE, ::SCALE], "hr": hrs[image.id]})
    for number, (name, width) in enumerate(channels.items()):
        specs = (ArraySpec("features", width, 1, codec),) * bool(width) + (ArraySpec("sr", 3, SCALE, codec),)
        identity = {"weights_sha256": f"{number:064x}", "random_weights": random_weights}
        manifest.add_expert(Expert(name, specs, identity))
        with write_shard(manifest, name, 0) as out:
            for image in images:
                answer = _answer(rng, hrs[image.id] / np.float32(255), width, 0.04 * number)
                if not width:
                    del answer["features"]
                if image.id == poison:
                    answer["features"][:] = POISON
                out.add(image.id, answer)
    return root


def _scene(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    rows, cols = size
    coarse = rng.integers(60, 200, (rows // 4 + 1, cols // 4 + 1, 3))
    smooth = np.kron(coarse, np.ones((16, 16, 1)))[: rows * SCALE, : cols * SCALE]
    return (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def _answer(rng: np.random.Generator, hr: np.ndarray, width: int, bias: float) -> dict[str, np.ndarray]:
    sr = hr + np.float32(bias) + rng.normal(0, 0.02, hr.shape).astype(np.float32)
    rows, cols = hr.shape[0] // SCALE, hr.shape[1] // SCALE
    features = np.full((rows, cols, width), bias * 20, np.float32)
    features[..., 1:] = rng.standard_normal((rows, cols, max(0, width - 1)))
    return {"sr": sr, "features": features}


@pytest.fixture(scope="session")
def make_learnable():
    return learnable_store


@pytest.fixture(scope="session")
def make_config():
    return tiny_config


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory) -> Path:
    """One store that no test changes."""
    return learnable_store(tmp_path_factory.mktemp("shared") / "store")
