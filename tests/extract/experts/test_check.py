import math

import pytest
import torch
from torch import nn

from championship_sr.extract.config import load_expert_config
from championship_sr.extract.edsr import EDSR
from championship_sr.extract.experts.check import check, equivariance, listed
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.experts.networks import Network

CPU = torch.device("cpu")
# of the fixture's EDSR: first convolution, five of the body, two of the upsampling, the last
TINY_PARAMETERS = 3 * 8 * 9 + 8 + 5 * (8 * 8 * 9 + 8) + 2 * (8 * 32 * 9 + 32) + 8 * 3 * 9 + 3


class Turning(nn.Module):
    """Commutes with every flip and rotation if its kernel is one number; noise makes it indeterminate."""

    def __init__(self, kernel: torch.Tensor, noise: float = 0.0):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.body.weight.data = kernel.expand(3, 1, 3, 3) / 9
        self.noise = noise

    def forward(self, x):
        y = self.body(x).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return y + self.noise * torch.rand_like(y)


def expert(model: nn.Module) -> LoadedExpert:
    config = load_expert_config({"name": "turning", "weights": "none", "tap": "body"})
    return LoadedExpert(config, Network(model, model, 1, 1, 1, "Turning", {}, None), CPU, 2)


def test_a_symmetric_network_is_equivariant_and_another_is_not():
    lr = torch.rand(1, 3, 9, 14)
    for entry in equivariance(expert(Turning(torch.ones(3, 3))), lr):
        assert entry.psnr_db > 100 and entry.cosine["features"] == pytest.approx(1, abs=1e-5)
    shifting = torch.zeros(3, 3)
    shifting[1, 2] = 9.0
    measured = {entry.variant: entry for entry in equivariance(expert(Turning(shifting)), lr)}
    assert len(measured) == 7
    assert measured["mirror"].psnr_db < 20 and measured["mirror"].cosine["features"] < 0.9
    # a shift to the right turned by 180 degrees and back is a shift to the left: the mirror's error again
    assert measured["rot180"].psnr_db == pytest.approx(measured["mirror"].psnr_db)


def test_a_flip_that_changes_nothing_here_is_told_apart_from_one_that_does():
    upward = torch.zeros(3, 3)
    upward[2, 1] = 9.0
    measured = {entry.variant: entry.psnr_db for entry in equivariance(expert(Turning(upward)), torch.rand(1, 3, 9, 9))}
    assert math.isinf(measured["mirror"]) and measured["rot90"] < 20


def test_a_check_finds_two_runs_that_differ():
    assert check(expert(Turning(torch.ones(3, 3)))).deterministic
    assert not check(expert(Turning(torch.ones(3, 3), noise=0.01))).deterministic


def test_a_check_reports_size_time_and_memory(save_edsr):
    checked = check(load_expert(load_expert_config(save_edsr()), CPU, 4))
    assert (checked.name, checked.scale, checked.channels) == ("tiny", 4, {"features": 8})
    assert checked.parameters == TINY_PARAMETERS
    assert checked.seconds > 0 and checked.peak_gib > 0


def test_an_entry_is_listed_with_and_without_its_weights(save_edsr, tmp_path):
    entry = save_edsr() | {"licence": "MIT", "url": "https://example.org"}
    there = listed(load_expert_config(entry), 4)
    assert (there.state, there.licence, there.parameters) == ("there", "MIT", TINY_PARAMETERS)
    assert (there.taps, there.channels) == ({"features": "conv_after_body"}, {"features": 8})
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "truncated" in listed(load_expert_config(entry), 4).state
    path.unlink()
    gone = listed(load_expert_config(entry), 4)
    assert (gone.state, gone.parameters, gone.channels) == ("missing", None, {})


@pytest.mark.parametrize(
    ("name", "millions", "channels"),
    [("hat-l", 40.85, 180), ("drct-l", 27.58, 180), ("grl-b", 20.20, 180), ("edsr-l", 43.09, 256)],
)
def test_the_bundled_entries_are_listed_without_their_weights(name, millions, channels):
    network = listed(load_expert_config(name), 4)
    assert network.channels == {"features": channels} and round(network.parameters / 1e6, 2) == millions


def test_a_listed_tap_that_does_not_exist_is_said_and_the_list_goes_on(save_edsr):
    assert "there is no module bdy; EDSR has" in listed(load_expert_config(save_edsr() | {"tap": "bdy"}), 4).state


class ReadsNumbers(EDSR):
    """A network whose forward looks at values, which shapes alone do not have."""

    def forward(self, x):
        return super().forward(x) if x.mean().item() > -1 else x


def test_a_network_that_looks_at_values_is_listed_without_channels():
    entry = {"name": "e", "weights": "none", "tap": "conv_after_body", "architecture": f"{__name__}:ReadsNumbers"}
    network = listed(load_expert_config(entry | {"hyperparameters": {"num_feat": 4, "num_block": 1}}), 4)
    assert network.channels == {} and network.parameters > 0
