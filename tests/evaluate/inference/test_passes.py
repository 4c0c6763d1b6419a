"""Tiles and self-ensemble, with networks whose right answer is known."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis.strategies import integers
from torch import nn

from championship_sr.evaluate.inference.inputs import LiveInputs, hwc
from championship_sr.evaluate.inference.passes import run, run_ensemble
from championship_sr.evaluate.inference.tiles import FadedTiling, even_spans

SCALE = 2
WHOLE = FadedTiling(tile_px=1000, halo_px=0, blend_px=0)


class Expert:
    """Nearest-neighbour enlargement plus what a 5 x 5 blur says, so that it sees two pixels around."""

    scale, align_px = SCALE, 1

    def __init__(self, name: str, gain: float) -> None:
        self.name, self.gain = name, gain

    def __call__(self, lr):
        blurred = F.avg_pool2d(lr, 5, stride=1, padding=2, count_include_pad=False)
        return F.interpolate(lr + self.gain * blurred, scale_factor=SCALE), {"features": lr.mean(1, keepdim=True)}


class Mean(nn.Module):
    def forward(self, lr, images, features):
        return images.mean(dim=1)


class Leaning(nn.Module):
    """Not equivariant: brighter to the right of the window."""

    def forward(self, lr, images, features):
        return images.mean(dim=1) + torch.linspace(0, 1, images.shape[-1])


def image(height: int = 37, width: int = 50) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


EXPERTS = (Expert("a", 0.0), Expert("b", 0.5))


@settings(max_examples=60, deadline=None)
@given(length=integers(8, 300), tile=integers(16, 90), halo=integers(0, 20), data=integers(0, 1000))
def test_weights_of_all_tiles_add_up_to_one_everywhere(length, tile, halo, data):
    blend = data % (min(2 * halo, tile // 2) + 1)
    total = torch.zeros(length * SCALE)
    for span in even_spans(length, SCALE, FadedTiling(tile, halo, blend)):
        total[span.start * SCALE : span.stop * SCALE] += span.weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize("blend", [0, 4])
def test_tiles_with_a_halo_as_wide_as_the_context_equal_the_whole_image(blend):
    inputs = LiveInputs(image(), EXPERTS)
    whole = run(inputs, {"fusion": Mean()}, WHOLE, keep_experts=True)
    tiled = run(inputs, {"fusion": Mean()}, FadedTiling(16, 4, blend), keep_experts=True)
    for name in ("fusion", "a", "b"):
        assert torch.allclose(tiled.images[name], whole.images[name], atol=1e-6), name


class Windowed(Expert):
    """Adds the largest value of each 16 x 16 window; sides are padded to a multiple of 8, tiles begin at one of 16."""

    align_px, multiple_px = 16, 8

    def __call__(self, lr):
        rows, columns = (-n % 16 for n in lr.shape[-2:])
        padded = F.pad(lr, (0, columns, 0, rows), mode="replicate")
        common = F.interpolate(F.max_pool2d(padded, 16), scale_factor=16)[..., : lr.shape[-2], : lr.shape[-1]]
        return F.interpolate(lr + common, scale_factor=SCALE), {"features": lr.mean(1, keepdim=True)}


def test_windows_begin_where_extractions_tiles_may_begin():
    whole, _ = Windowed("a", 0.0)(image(48, 64))
    _, seen, _ = LiveInputs(image(48, 64), (Windowed("a", 0.0),)).window(8, 24, 24, 40)
    assert torch.equal(seen[0, 0], whole[0, :, 8 * SCALE : 32 * SCALE, 24 * SCALE : 64 * SCALE])


def test_tiles_without_a_halo_do_not():
    inputs = LiveInputs(image(), EXPERTS)
    whole = run(inputs, {"fusion": Mean()}, WHOLE, keep_experts=False).images["fusion"]
    tiled = run(inputs, {"fusion": Mean()}, FadedTiling(16, 0, 0), keep_experts=False).images["fusion"]
    assert not torch.allclose(tiled, whole, atol=1e-3)


def test_a_seam_is_faded_over_the_blend_width():
    class Constant(nn.Module):  # each tile another grey: the worst seam there is
        calls = 0

        def forward(self, lr, images, features):
            self.calls += 1
            return torch.full_like(images[:, 0], self.calls - 1.0)

    inputs = LiveInputs(image(16, 32), EXPERTS)
    row = run(inputs, {"fusion": Constant()}, FadedTiling(16, 8, 8), keep_experts=False).images["fusion"][0, 0]
    assert row[:24].tolist() == [0] * 24 and row[-24:].tolist() == [1] * 24
    assert torch.allclose(row[24:40], (torch.arange(16) + 0.5) / 16)


def test_self_ensemble_takes_the_mean_of_all_eight_turned_back():
    lr = image(12, 20)
    result = run_ensemble(lambda v: LiveInputs(lr, EXPERTS, v), {"fusion": Leaning()}, WHOLE, keep_experts=True)
    plain = run(LiveInputs(lr, EXPERTS), {"fusion": Mean()}, WHOLE, keep_experts=True)
    # leaning to each side equally often leaves the mean plus one half
    assert torch.allclose(result.images["fusion"], plain.images["fusion"] + 0.5, atol=1e-5)
    assert torch.allclose(result.images["b"], plain.images["b"], atol=1e-5)


@pytest.mark.parametrize("dtype, top", [("uint8", 255), ("uint16", 65535)])
def test_rounding_to_pixels_clips(dtype, top):
    import numpy as np

    pixels = hwc(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1), getattr(np, dtype))
    assert pixels.dtype == dtype and pixels.tolist() == [[[0, round(top / 2 + 0.01), top]]]
