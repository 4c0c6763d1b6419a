from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from championship_sr.extract.config import TapConfig, load_expert_config
from championship_sr.extract.experts.networks import load_network
from championship_sr.extract.experts.taps import captured, possible_shapes, to_lr_grid
from championship_sr.extract.experts.tiling import as_input
from championship_sr.extract.run.extraction import extract
from championship_sr.store.errors import ConfigError
from championship_sr.store.format.layout import PAIRS
from championship_sr.store.shards.reader import Store


class Network(nn.Module):
    """A convolution whose output is then changed in place, and a module that takes and returns several tensors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.several = Several()
        self.unused = nn.Identity()

    def forward(self, x):
        return self.several(self.act(self.conv(x)), x)[1]


class Several(nn.Module):
    def forward(self, a, b):
        return a + 1, b


def test_output_and_input_are_captured_with_the_item_that_was_asked_for():
    network, x = Network(), torch.rand(1, 3, 6, 5)
    points = {
        "out": TapConfig(path="several"),
        "out1": TapConfig(path="several", item=1),
        "in1": TapConfig(path="several", side="input", item=1),
    }
    with captured(network, points) as seen:
        network(x)
    assert seen["out1"].equal(x) and seen["in1"].equal(x)
    assert seen["out"].shape == (1, 8, 6, 5)


def test_what_follows_in_place_does_not_change_a_tapped_tensor():
    network, x = Network(), torch.rand(1, 3, 6, 5)
    with captured(network, {"features": TapConfig(path="conv")}) as seen:
        network(x)
    assert seen["features"].min() < 0
    assert seen["features"].equal(network.conv(x))


def test_hooks_are_removed_whatever_happens_in_the_block():
    network = Network()
    with pytest.raises(KeyError), captured(network, {"features": TapConfig(path="conv")}):
        raise KeyError
    assert not network.conv._forward_hooks


def test_an_absent_path_names_what_is_there_and_leaves_no_hook():
    network = Network()
    points = {"a": TapConfig(path="conv"), "b": TapConfig(path="several.deep.er")}
    with pytest.raises(ConfigError, match=r"no module several.deep.er; several has nothing"), captured(network, points):
        pass
    assert not network.conv._forward_hooks
    with pytest.raises(ConfigError, match=r"no module bdy; Network has conv, act, several, unused"):
        captured(network, {"a": TapConfig(path="bdy")}).__enter__()


def test_an_item_that_is_no_tensor_is_an_error():
    network = Network()
    with (
        captured(network, {"a": TapConfig(path="several", item=2)}),
        pytest.raises(ConfigError, match=r"the output of several is \(Tensor, Tensor\); item 2 is not a tensor"),
    ):
        network(torch.rand(1, 3, 4, 4))


def laid_out(image: torch.Tensor, layout: str) -> torch.Tensor:
    """(1, C, h, w) as another layout of the same tensor."""
    return {
        "channels_first": lambda t: t,
        "channels_last": lambda t: t.permute(0, 2, 3, 1),
        "tokens": lambda t: t.flatten(2).transpose(1, 2),
    }[layout](image)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "tokens"])
@pytest.mark.parametrize("channels", [5, 24, 48, 180])
def test_every_layout_is_recognised_and_brought_to_channels_first(layout, channels):
    shapes = None
    for padded in ((32, 48), (48, 80)):
        image = torch.rand(1, channels, *padded)
        found = possible_shapes(laid_out(image, layout), TapConfig(path="x"), padded)
        shapes = found if shapes is None else shapes & found
    (shape,) = shapes
    assert (shape.layout, shape.channels, shape.resolution) == (layout, channels, 1)
    assert to_lr_grid(laid_out(image, layout), shape, padded, (41, 79)).equal(image[..., :41, :79])


def test_a_network_that_pads_on_by_itself_is_cropped():
    # CRAFT pads 32 x 48 to 48 x 64; with 48 channels one size alone leaves two readings
    first = possible_shapes(torch.zeros(1, 48, 48, 64), TapConfig(path="x"), (32, 48))
    second = possible_shapes(torch.zeros(1, 48, 64, 96), TapConfig(path="x"), (48, 80))
    (shape,) = first & second
    assert (len(first), shape.layout, shape.resolution) == (2, "channels_first", 1)
    image = torch.rand(1, 48, 48, 64)
    assert to_lr_grid(image, shape, (32, 48), (30, 40)).equal(image[..., :30, :40])


@pytest.mark.parametrize("resample", ["area", "bilinear"])
def test_a_finer_tensor_is_brought_to_the_lr_grid(resample):
    fine = torch.rand(1, 4, 64, 96)
    (shape,) = possible_shapes(fine, TapConfig(path="x", resample=resample), (32, 48))
    assert shape.record() == {"layout": "channels_first", "channels": 4, "resolution": "2", "resample": resample}
    got = to_lr_grid(fine, shape, (32, 48), (31, 47))
    # at a factor of two both are the mean of four neighbours
    mean = fine.reshape(1, 4, 32, 2, 48, 2).mean((3, 5))
    assert torch.allclose(got, mean[..., :31, :47], atol=1e-6)


def test_a_coarser_tensor_is_brought_to_the_lr_grid():
    coarse, tap = torch.rand(1, 4, 8, 12), TapConfig(path="x", resample="area")
    (shape,) = possible_shapes(coarse, tap, (32, 48)) & possible_shapes(torch.zeros(1, 4, 12, 20), tap, (48, 80))
    got = to_lr_grid(coarse, shape, (32, 48), (32, 48))
    assert str(shape.resolution) == "1/4"
    assert got.equal(coarse.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_a_tensor_off_the_grid_is_an_error_that_names_the_key():
    with pytest.raises(ConfigError, match=r"tap x: \(1, 4, 7\) does not match the grid.*window_px"):
        possible_shapes(torch.zeros(1, 4, 7), TapConfig(path="x"), (32, 48))


def test_taps_of_every_side_and_resolution_are_in_the_store_with_what_decided_them(make_config, save_edsr):
    taps = {
        "features": "conv_after_body",
        "before": {"path": "conv_after_body", "side": "input"},
        "fine": {"path": "upsample", "resample": "bilinear"},
        "mean": "conv_last",
    }
    config = make_config(experts=[save_edsr() | {"tap": None, "taps": taps}])
    extract(config)
    store, model = Store(config.store), load_network(load_expert_config(config.experts[0]), 4).model
    lr = as_input(store.array(1, PAIRS, "lr").load())
    first = model.conv_first((lr - model.mean) * model.img_range)
    body = model.body(first)
    fine = model.upsample(model.conv_after_body(body) + first)
    size, bilinear = lr.shape[-2:], {"mode": "bilinear", "align_corners": False}
    expected = {
        "before": body,
        "fine": torch.nn.functional.interpolate(fine, size, **bilinear),
        "mean": torch.nn.functional.avg_pool2d(model.conv_last(fine), 4),
    }
    for name, tensor in expected.items():
        stored = store.array(1, "tiny", name).load()
        assert np.allclose(stored, tensor[0].permute(1, 2, 0), rtol=2e-3, atol=2e-3 * tensor.abs().max().item()), name
    recorded = yaml.safe_load(Path(config.store, "experts/tiny/expert.yaml").read_text())["identity"]["taps"]
    assert recorded["before"] == {
        "path": "conv_after_body", "side": "input", "item": 0, "layout": "channels_first", "channels": 8,
        "resolution": "1",
    }  # fmt: skip
    assert (recorded["fine"]["resolution"], recorded["fine"]["resample"]) == ("4", "bilinear")
    assert (recorded["mean"]["resolution"], recorded["mean"]["resample"]) == ("4", "area")
