"""A collapsed tail: the same image in the end, in the network as it was built; and attention that begins locally."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.HAT import HAT
from torch import nn

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.experts.expert import load_expert
from championship_sr.store.errors import ConfigError
from championship_sr.train.pretraining.pretrain import pretrain
from championship_sr.train.records.checkpoint import choose
from championship_sr.train.students.attention import start_local
from championship_sr.train.students.tail import collapse_tail, restored

pytestmark = pytest.mark.usefixtures("one_thread")


def edsr(scale: int) -> EDSR:
    return EDSR(num_feat=12, num_block=1, upscale=scale, res_scale=1.0)


def drct() -> DRCT:
    small = {"img_size": 16, "window_size": 8, "embed_dim": 12, "gc": 4, "depths": (1,), "num_heads": (2,)}
    return DRCT(**small, mlp_ratio=1, upsampler="pixelshuffle", upscale=4)


def hat() -> HAT:
    small = {"img_size": 16, "window_size": 8, "embed_dim": 12, "depths": (1,), "num_heads": (2,), "num_feat": 16}
    return HAT(**small, compress_ratio=1, squeeze_factor=4, overlap_ratio=0.5, mlp_ratio=1, upscale=4)


def randomised(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.upsample.parameters():
            parameter.normal_(std=0.1)
    return network.eval()


@pytest.mark.parametrize(
    "build", [lambda: edsr(2), lambda: edsr(3), lambda: edsr(4), hat, drct], ids=["x2", "x3", "x4", "hat", "drct"]
)
def test_the_whole_network_makes_the_image_of_the_collapsed_one(build):
    collapsed = build()
    collapse_tail(collapsed)
    randomised(collapsed)
    whole = restored(collapsed, build()).eval()
    assert {key: value.shape for key, value in whole.state_dict().items()} == {
        key: value.shape for key, value in build().state_dict().items()
    }
    lr = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(whole(lr), collapsed(lr), atol=1e-5)


def test_a_tail_without_reach_is_collapsed_without_loss():
    """Only the first convolution sees its neighbours, as after `restored`: nothing lies outside the middle 3x3."""
    network = edsr(4)
    with torch.no_grad():
        for layer in (network.upsample[2], network.conv_last):
            middle = layer.weight[:, :, 1:2, 1:2].clone()
            layer.weight.zero_()[:, :, 1:2, 1:2] = middle
    lr = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = network(lr)
        collapse_tail(network)
        assert torch.allclose(network(lr), before, atol=1e-5)


def test_networks_without_such_a_tail_are_refused():
    with pytest.raises(ConfigError, match="collapse_tail: Linear has no tail of `upsample`"):
        collapse_tail(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="8 features of the tail are too few for scale 4"):
        collapse_tail(EDSR(num_feat=8, num_block=1))
    activated = edsr(4)
    activated.upsample.insert(1, nn.ReLU())
    with pytest.raises(ConfigError, match="EDSR has no tail"):
        collapse_tail(activated)


def test_a_collapsed_training_resumes_and_ends_as_a_whole_expert_in_half_precision(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    section = {
        "network": "extract.edsr:EDSR", "hyperparameters": {"num_feat": 12, "num_block": 1, "res_scale": 1.0},
        "hr": [str(tmp_path)], "batch_size": 1, "patch_px": 8, "checkpoint_steps": 2, "warmup_steps": 1,
        "collapse_tail": True, "half": True, "losses": {"l1": 0.5, "l1_luma": 0.5},
    }  # fmt: skip

    def entry(steps: int):
        pretraining = {**section, "steps": steps}
        return load_expert_config(
            {"name": "e", "weights": "none.pth", "tap": "conv_after_body", "pretrain": pretraining}
        )

    pretrain(entry(2), tmp_path / "run", device="cpu")
    path = pretrain(entry(4), tmp_path / "run", device="cpu")
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    collapsed = edsr(4)
    collapse_tail(collapsed)
    kept = load_file(choose(tmp_path / "run", "best").path / "weights.safetensors")
    collapsed.load_state_dict({key.removeprefix("network."): value for key, value in kept.items()})
    lr = torch.rand(1, 3, 12, 16)
    with load_expert(load_expert_config(tmp_path / "run" / "e.yaml"), torch.device("cpu"), 4) as expert:
        sr, _ = expert(lr)
    with torch.no_grad():
        assert torch.allclose(sr, collapsed(lr).clamp(0, 1), atol=2e-3)


def test_local_attention_looks_at_the_heads_own_neighbour_first():
    network = drct()
    assert start_local(network) == 5
    attention = network.layers[0].residual_group.swin1.attn if hasattr(network.layers[0], "residual_group") else None
    attention = attention or next(m for m in network.modules() if hasattr(m, "relative_position_bias_table"))
    table = attention.relative_position_bias_table.detach()
    bias = table[attention.relative_position_index.long()]  # (64, 64, heads): of each pixel of a window for each other
    pixel = 3 * 8 + 3
    assert bias[pixel, :, 0].argmax() == pixel
    row, column = divmod(bias[pixel, :, 1].argmax().item(), 8)
    assert abs(row - 3) + abs(column - 3) == 1
    assert start_local(edsr(4)) == 0
