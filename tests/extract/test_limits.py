"""What a device reaches at most, and what an expert asks of it."""

import pytest
import torch

from championship_sr.extract import limits
from championship_sr.extract.config import load_expert_config
from championship_sr.extract.experts.expert import load_expert

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is half a second after the last one."""
    looks = iter(range(1000))
    monkeypatch.setattr(limits, "now", lambda device: next(looks) / 2)
    monkeypatch.setattr(limits, "SIDE_ON_CPU", 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_the_rate_of_a_matrix_product(clock, dtype):
    made = limits.peak_tflops.__wrapped__(CPU, dtype)
    assert made == pytest.approx(10 * 2 * 16**3 / 0.5 / 1e12)


def test_the_bus_is_as_fast_as_pinned_copies(clock, monkeypatch):
    real, pinned = torch.empty, []

    def on_host(size, *, dtype, device=None, pin_memory=False):
        pinned.append(pin_memory)
        return real(16, dtype=dtype)

    monkeypatch.setattr(torch, "empty", on_host)
    gpu = torch.device("cuda", 0)
    assert limits.bus_gbytes_per_second.__wrapped__(gpu) == pytest.approx(10 * 2**28 / 0.5 / 1e9)
    assert pinned == [False, True]  # what is copied lies on the device, where it goes is pinned


def test_a_device_without_a_bus_says_so():
    assert limits.share_of_bus(1e9, CPU) is None and limits.bus_text(None) == "no bus to cross"
    assert limits.bus_text(0.25) == "0.250 of the bus"


def test_an_experts_operations_are_those_of_its_convolutions(save_edsr):
    with load_expert(load_expert_config(save_edsr()), CPU, 4) as expert:
        counted = expert.flop_per_px()
        convolutions = [m for m in expert._network.model.modules() if isinstance(m, torch.nn.Conv2d)]
        image = torch.rand(1, 3, 8, 8)
        outputs, taken = [], []
        for layer in convolutions:
            taken.append(layer.register_forward_hook(lambda layer, _, out: outputs.append((layer, out))))
        expert(image)
    by_hand = sum(2 * out.numel() * layer.weight[0].numel() for layer, out in outputs) / image[0, 0].numel()
    assert counted == pytest.approx(by_hand)
