"""torch.compile takes every profile as one graph, for training and for inference, and changes nothing."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from championship_sr.train.bench.dispatch import META, moved, on_meta
from championship_sr.train.fusion.layers.blocks import extended

PROFILES = ["swift", "paper", "cnn", "lean"]


@pytest.mark.parametrize(
    ("profile", "backend"),
    [
        ("swift", "aot_eager"),
        ("paper", "eager"),
        ("cnn", "aot_eager"),
    ],  # gradients too; `paper` would take as long again
)
def test_a_profile_is_one_graph_with_the_same_image_and_gradients(fusions, profile, backend):
    network = fusions.build(profile)
    fusions.train(network, steps=1)
    inputs = fusions.inputs(8, 8)

    def gradients(image):
        network.zero_grad()
        image.square().mean().backward()
        return [parameter.grad for parameter in network.parameters()]

    image = network(*inputs)
    expected, found = gradients(image), compiled(network, backend)(*inputs)
    assert (found - image).abs().max() < 1e-5
    for some, other in zip(gradients(found), expected, strict=True):
        assert (some - other).norm() < 1e-3 * other.norm() + 1e-7


@pytest.mark.parametrize("profile", PROFILES)
def test_inference_is_one_graph_too(fusions, profile):
    network, inputs = fusions.build(profile, start="document").eval(), fusions.inputs(8, 8)
    with torch.no_grad():
        assert (compiled(network, "eager")(*inputs) - network(*inputs)).abs().max() < 1e-5


def compiled(network, backend):
    torch.compiler.reset()
    return torch.compile(network, fullgraph=True, dynamic=False, backend=backend)


class Devices(TorchDispatchMode):
    """Where the tensors are that operations take."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen |= {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_in_a_network_rules_out_cuda_graphs(fusions, profile):
    """No operation takes a tensor of the host, and none writes to an input, a parameter or a buffer."""
    network, inputs = fusions.build(profile).to(META), moved(fusions.inputs(8, 8))
    kept = [*network.parameters(), *network.buffers(), *tree_leaves(inputs)]
    with on_meta():
        network(*inputs)  # makes the constants
        versions = [tensor._version for tensor in kept]
        with Devices() as devices:
            network(*inputs).mean().backward()
    assert devices.seen == {META}
    assert [tensor._version for tensor in kept] == versions


def test_both_ways_of_repeating_an_images_edges_are_one(monkeypatch):
    image = torch.rand(2, 3, 4, 5)
    expected = extended(image, (2, 1), (0, 3))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(extended(image, (2, 1), (0, 3)), expected)
