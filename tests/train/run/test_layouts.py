"""Which layout depthwise convolutions take, by times that are made up, and by a measurement of a small block."""

from functools import partial

import torch

from championship_sr.train.bench.phases import example
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.layers.large_kernel import LAYOUTS, LKABlock
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.layouts import choose_layouts, measured
from championship_sr.train.run.loop import train
from championship_sr.train.run.step import Trainer

CHANNELS = {"a": 4, "b": 6}


def test_each_block_takes_the_layout_that_was_faster_on_the_batch_of_training():
    network, inputs = build_fusion(FusionConfig(), CHANNELS, 2), example(CHANNELS, 2, batch=2, crop=8)
    bands, experts = network.bands.surroundings, network.collaboration.surroundings
    made_up = {bands: {"channels_last": 2.0, "contiguous": 1.0}, experts: {"channels_last": 1.0, "contiguous": 2.0}}
    shapes = {}

    def seconds(block, x):
        shapes[block] = tuple(x.shape)
        return made_up[block][block.layout]

    times = choose_layouts(network, partial(network, *inputs), seconds)
    assert times == {"bands.surroundings": made_up[bands], "collaboration.surroundings": made_up[experts]}
    assert (bands.layout, experts.layout) == ("contiguous", "channels_last")
    assert shapes == {bands: (2 * 9, 32, 4, 4), experts: (2, 64, 8, 8)}


def test_a_network_without_such_convolutions_has_nothing_to_choose():
    network, inputs = build_fusion(FusionConfig(profile="lean"), CHANNELS, 2), example(CHANNELS, 2, batch=1, crop=8)
    assert choose_layouts(network, partial(network, *inputs)) == {}


def test_a_measurement_takes_time_and_leaves_no_gradients():
    block, x = LKABlock(4, 2), torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    assert measured(block, x) > 0
    assert all(parameter.grad is None for parameter in block.parameters())


def test_a_run_records_what_was_measured(shared_store, make_config, monkeypatch, tmp_path, caplog):
    times = {"bands.surroundings": {"channels_last": 0.002, "contiguous": 0.001}}
    monkeypatch.setattr(Trainer, "choose_layouts", lambda trainer, batch: times)
    with caplog.at_level("INFO"):
        run = train(make_config(steps=2, validation={"hold_out": 0}), shared_store, tmp_path / "run")
    assert [event["seconds"] for event in read_metrics(run) if event["event"] == "layouts"] == [times]
    line = "bands.surroundings: depthwise convolutions in contiguous (channels_last 2.000 ms, contiguous 1.000 ms)"
    assert line in caplog.text


def test_both_layouts_are_one_function():
    block, tokens = LKABlock(4, 2), torch.randn(3, 2, 8, 8, 4)
    results = {}
    for layout in LAYOUTS:
        block.layout = layout
        x = tokens.clone().requires_grad_()
        y = block.across(x)
        results[layout] = y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
    torch.testing.assert_close(results["contiguous"], results["channels_last"])
