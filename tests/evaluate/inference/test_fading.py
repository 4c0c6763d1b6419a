"""Tiles that fade into each other, with functions whose right answer is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from torch import nn
from torch.nn import functional

from championship_sr.evaluate.inference.tiles import full_spans, run_in_full_tiles


@settings(max_examples=100, deadline=None)
@given(length=integers(1, 400), tile=integers(16, 90), share=integers(0, 50), unit=integers(1, 8))
def test_weights_add_up_to_one_everywhere(length, tile, share, unit):
    total = torch.zeros(length * unit)
    for span in full_spans(length, tile, tile * share // 100, unit):
        assert span.stop - span.start == min(tile, length)
        total[span.start * unit : span.stop * unit] += span.weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_borders_of_a_tile_inside_the_image_do_not_count():
    first, *_, last = full_spans(200, tile=64, overlap=16, unit_out=1)
    assert first.weight[-4:].max() == 0 and last.weight[:4].max() == 0
    assert first.weight[0] == last.weight[-1] == 1


@pytest.mark.parametrize(("unit_in", "unit_out"), [(1, 1), (2, 2), (8, 1), (1, 8)])
@pytest.mark.parametrize("overlap", [0, 6])
def test_a_function_of_single_units_gives_the_same_in_tiles(unit_in, unit_out, overlap):
    """Units go in as blocks of unit_in pixels and come out as blocks of unit_out."""

    def function(image):
        return functional.interpolate(functional.avg_pool2d(image, unit_in), scale_factor=unit_out) * 2 + 1

    image = torch.rand(2, 3, 40 * unit_in, 57 * unit_in, generator=torch.Generator().manual_seed(0))
    tiled = run_in_full_tiles(function, image, 16, overlap, unit_in, unit_out)
    assert torch.allclose(tiled, function(image), atol=1e-5)


def test_tiles_equal_the_whole_where_no_tile_sees_its_border():
    """A convolution that reaches 4 pixels: exact with an overlap of 16; away from seams with one of 4."""
    convolution = nn.Conv2d(3, 5, 9, padding=4, bias=False).requires_grad_(False)
    image = torch.rand(1, 3, 60, 136, generator=torch.Generator().manual_seed(0))
    whole = convolution(image)
    assert torch.allclose(run_in_full_tiles(convolution, image, 48, 16, 1, 1), whole, atol=1e-5)
    error = (run_in_full_tiles(convolution, image, 48, 4, 1, 1) - whole).abs().amax((0, 1, 2))
    at_a_seam = torch.zeros(136, dtype=torch.bool)
    for seam in (46, 90):  # tiles begin at 0, 44 and 88
        at_a_seam[seam - 4 : seam + 4] = True
    assert error[~at_a_seam].max() < 1e-5
    assert error[at_a_seam].max() > 1e-3


def test_a_small_image_is_one_call():
    sizes = []

    def function(image):
        sizes.append(tuple(image.shape[-2:]))
        return image

    run_in_full_tiles(function, torch.zeros(1, 1, 32, 30), 32, 8, 1, 1)
    run_in_full_tiles(function, torch.zeros(1, 1, 33, 30), 32, 8, 1, 1)
    assert sizes == [(32, 30), (32, 30), (32, 30)]
