"""The forms for a GPU, few and large, are the function of those for a CPU; constants stay where they are."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from championship_sr.train.bench.dispatch import count_step
from championship_sr.train.bench.phases import example
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.layers import forms
from championship_sr.train.fusion.layers.attention import PixelAttention
from championship_sr.train.fusion.layers.constants import constant
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.fusion.phases.refinement import laplacians


@pytest.mark.parametrize("profile", ["swift", "paper", "cnn"])
@pytest.mark.parametrize("features", [True, False])
def test_both_forms_are_one_function_with_one_state_dict(fusions, monkeypatch, profile, features):
    network = fusions.build(profile, features=features)
    fusions.train(network)
    inputs = fusions.inputs(9, 13)

    def result():
        network.zero_grad()
        image = network(*inputs)
        image.square().mean().backward()
        return image, [parameter.grad for parameter in network.parameters()]

    image, gradients = result()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not forms.for_cpu(image)
    large, others = result()
    assert (large - image).norm() < 1e-5 * image.norm()
    for (name, _), some, other in zip(network.named_parameters(), gradients, others, strict=True):
        assert (some - other).norm() < 1e-3 * some.norm() + 1e-7, name


def test_a_constant_is_made_once_and_can_be_trained_with_after_inference():
    made = []

    @constant
    def numbers(size: int, device: torch.device) -> torch.Tensor:
        made.append(size)
        return torch.arange(size, device=device) + 1.0

    with torch.inference_mode():
        first = numbers(3, torch.device("cpu"))
    x = torch.ones(3, requires_grad=True)
    (numbers(3, torch.device("cpu")) * x).sum().backward()
    assert made == [3]
    assert first is numbers(3, torch.device("cpu"))
    assert x.grad.tolist() == [1, 2, 3]


def test_a_constant_that_a_tracer_asks_for_first_has_contents():
    @constant
    def numbers(size: int, device: torch.device) -> torch.Tensor:
        return torch.arange(size, device=device) + 1.0

    class Scaled(torch.nn.Module):
        def forward(self, x):
            return x * numbers(3, x.device)

    program = torch.export.export(Scaled(), (torch.ones(3),)).module()
    assert program(torch.full((3,), 2.0)).tolist() == [2, 4, 6]
    assert Scaled()(torch.ones(3)).tolist() == [1, 2, 3]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        numbers(4, fake.from_tensor(torch.ones(4)).device)
    assert numbers(4, torch.device("cpu")).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("profile", "most"), [("swift", 532), ("paper", 531), ("cnn", 98)])
def test_a_step_is_few_kernels(profile, most):
    channels = {"hat": 180, "drct": 180, "grl": 180, "edsr": 256}
    network = build_fusion(FusionConfig(profile=profile), channels, 4)
    assert count_step(network, example(channels, 4, batch=1, crop=16)).kernels <= most


@pytest.mark.parametrize("profile", ["swift", "paper", "cnn"])
@pytest.mark.parametrize("autocast", [False, True])
def test_features_may_come_in_the_half_precision_that_they_are_stored_in(fusions, monkeypatch, profile, autocast):
    network = fusions.build(profile)
    fusions.train(network, steps=1)
    lr, images, features = fusions.inputs()
    stored = {name: x.half() for name, x in features.items()}
    for large in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda large=large: large)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = network(lr, images, stored)
            expected = network(lr, images, {name: x.float() for name, x in stored.items()})
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < (1e-3 if autocast else 1e-6)


def test_half_precision_rounds_no_image_that_is_blurred(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    image = torch.rand(1, 3, 16, 16)
    exact = laplacians(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(laplacians(image), exact)


def test_more_pixels_are_attended_than_a_grid_of_flash_attention_has():
    attention = PixelAttention(4, 2)
    tokens = torch.randn(2, 1, 257, 256, 4)  # 65,792 pixels
    found = attention.across(tokens)
    expected = attention(tokens.movedim(0, -2)).movedim(-2, 0)
    assert torch.allclose(found, expected, atol=1e-6)
