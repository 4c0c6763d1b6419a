"""A run of a small fusion on a small store of two small live experts, each made once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.run.extraction import extract
from championship_sr.store.config import build
from championship_sr.store.shards.reader import Store
from championship_sr.train.config import TrainConfig
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.records import checkpoint
from championship_sr.train.records.folder import begin, feature_channels

SCALE = 4
SIZES = ((15, 21), (16, 12), (13, 13), (12, 16))  # LR rows and columns
NARROW = {
    "bands": 8, "band_heads": 2, "band_expansion": 1, "experts": 8, "expert_heads": 2, "expert_expansion": 1,
    "hierarchy": 8, "selection": 8, "refinement": 8, "refinement_layers": 3, "edges": 8,
}  # fmt: skip


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colours with edges and a little noise, (height, width, 3) in uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (height // 8 + 1, width // 8 + 1, 3))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width] + rng.normal(0, 5, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def hr_folder(tmp_path_factory) -> Path:
    """Four HR photographs."""
    folder = tmp_path_factory.mktemp("hr")
    for number, (rows, cols) in enumerate(SIZES):
        Image.fromarray(photograph(number, rows * SCALE, cols * SCALE)).save(folder / f"photo{number}.png")
    return folder


@pytest.fixture(scope="session")
def expert_entries(tmp_path_factory) -> list[dict]:
    """The entries of two EDSRs with weights in files of their own."""
    folder, entries = tmp_path_factory.mktemp("weights"), []
    for seed, name in enumerate(("one", "two")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = EDSR(num_feat=6, num_block=1, res_scale=1.0)
        network.conv_last.weight.data.mul_(0.05)
        path = folder / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        entries.append({"name": name, "weights": str(path), "tap": "conv_after_body"})
    return entries


@pytest.fixture(scope="session")
def store_root(tmp_path_factory, hr_folder, expert_entries) -> Path:
    """The photographs as the two experts see them."""
    return filled_store(tmp_path_factory.mktemp("stores") / "plain.store", hr_folder, expert_entries)


def filled_store(root: Path, hr: Path, entries: list[dict], **changes) -> Path:
    content = {"store": str(root), "data": {"hr": [str(hr)]}, "experts": entries, "device": "cpu"} | changes
    extract(build(ExtractConfig, content, "test", "extract"))
    return root


@pytest.fixture(scope="session")
def make_store_of():
    """`filled_store`: extracts photographs with experts."""
    return filled_store


@pytest.fixture(scope="session")
def run_root(tmp_path_factory, store_root) -> Path:
    """A run whose fusion has been shaken, so that every phase does something."""
    return made_run(tmp_path_factory.mktemp("runs") / "run", store_root)


def made_run(root: Path, store: Path, **fusion) -> Path:
    config = build(TrainConfig, {"fusion": {**NARROW, **fusion}}, "test", "train")
    entries = Store(store).experts
    root.mkdir(parents=True)
    begin(root, config, entries, store, trained=False, resume=False, changes=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_fusion(config.fusion, {name: feature_channels(e) for name, e in entries.items()}, SCALE)
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    optimiser = torch.optim.AdamW(network.parameters())
    checkpoint.save(root, 1, scored=network, network=network, optimiser=optimiser, psnr=20.0, extra={})
    return root


@pytest.fixture(scope="session")
def make_run():
    """`made_run`: a run that was never trained."""
    return made_run


@pytest.fixture(scope="session")
def config() -> EvaluateConfig:
    """On the CPU, with few resamples."""
    return EvaluateConfig(device="cpu", bootstrap=200)
