"""Tiny experts and photographs, made in milliseconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from championship_sr.extract.config import ExtractConfig
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.run.on_device import DeviceEncoder
from championship_sr.store.config import build


@pytest.fixture(autouse=True)
def alone_with_the_cores(one_thread):
    """Every test here runs networks."""


@pytest.fixture
def save_edsr(tmp_path):
    """Writes a small EDSR's weights and returns the expert's entry."""

    def save(name: str = "tiny", seed: int = 0, upscale: int = 4, num_feat: int = 8, num_block: int = 2) -> dict:
        torch.manual_seed(seed)
        network = EDSR(num_feat=num_feat, num_block=num_block, upscale=upscale, res_scale=1.0)
        path = tmp_path / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        return {"name": name, "weights": str(path), "tap": "conv_after_body"}

    return save


@pytest.fixture
def save_photos(tmp_path):
    """Writes smooth random HR photographs of these sizes and returns their folder."""

    def save(sizes=((64, 48), (48, 80), (40, 40)), folder: str = "HR") -> Path:
        out = tmp_path / folder
        out.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i, (height, width) in enumerate(sizes):
            coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out / f"photo{i}.png")
        return out

    return save


@pytest.fixture
def make_config(tmp_path, save_edsr, save_photos):
    """An extraction of three photographs by one small expert; keywords override its values."""

    def make(**values) -> ExtractConfig:
        content = {"store": str(tmp_path / "store"), "images_per_shard": 1, "device": "cpu"}
        content |= {"data": {"hr": [str(save_photos())]}} if "data" not in values else {}
        content |= {"experts": [save_edsr()]} if "experts" not in values else {}
        return build(ExtractConfig, content | values, "test")

    return make


@pytest.fixture
def pretended_gpu(monkeypatch):
    """The CPU takes a GPU's way; the shapes and bytes of each image's copies back."""
    copies = []

    def counted(tensors):
        assert all(tensor.is_contiguous() for tensor in tensors)
        copies.append([(tuple(tensor.shape), tensor.nbytes) for tensor in tensors])
        return [tensor.clone() for tensor in tensors], lambda: None

    def encoder(expert, manifest, rebuild=False):
        found = DeviceEncoder(expert.device, manifest.specs(expert.name, rebuild), {})
        found._copies = counted
        return found

    monkeypatch.setattr("championship_sr.extract.run.job.device_encoder", encoder)
    return copies
