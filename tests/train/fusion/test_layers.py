"""The efficient forms of layers against their plain ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from championship_sr.train.fusion.layers.attention import PixelAttention
from championship_sr.train.fusion.layers.blocks import Join, gelu_conv, linear, shuffle, unshuffle
from championship_sr.train.fusion.layers.large_kernel import LKABlock
from championship_sr.train.fusion.layers.newcomers import Newcomers
from championship_sr.train.fusion.layers.recomputed import CPU_PIXELS, in_pieces
from championship_sr.train.fusion.layers.views import Views
from championship_sr.train.fusion.phases.refinement import blurring, laplacians


def gradients(output, *leaves):
    return torch.autograd.grad(output.square().sum(), leaves)


def close(some, others, tolerance=1e-4):
    return all((a - b).norm() <= tolerance * b.norm() for a, b in zip(some, others, strict=True))


def test_gelu_conv_is_the_convolution_of_gelu():
    x = torch.randn(2, 5, 7, 6, requires_grad=True)
    conv = nn.Conv2d(5, 4, 3, padding=1)
    plain, lean = conv(F.gelu(x)), gelu_conv(x, conv)
    assert torch.equal(plain, lean)
    assert close(gradients(lean, x, *conv.parameters()), gradients(plain, x, *conv.parameters()))


def test_gelu_conv_works_under_autocast():
    x = torch.randn(2, 5, 7, 6, requires_grad=True)
    conv = nn.Conv2d(5, 4, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        plain, lean = conv(F.gelu(x)), gelu_conv(x, conv)
    assert lean.dtype == torch.bfloat16
    found = gradients(lean.float(), x, *conv.parameters())
    assert [g.dtype for g in found] == [torch.float32] * 3
    assert close(found, gradients(plain.float(), x, *conv.parameters()), 0.02)


def test_join_is_the_convolution_of_everything_side_by_side():
    parts = [torch.randn(2, n, 5, 4).contiguous(memory_format=torch.channels_last) for n in (3, 1, 6)]
    lean, plain = Join([3, 1, 6], 4), Join([3, 1, 6], 4, plain=True)
    plain.load_state_dict(lean.state_dict())
    assert torch.allclose(lean(*parts), plain(*parts), atol=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 9, 20])
def test_attention_in_groups_is_attention_pixel_by_pixel(n_tokens):
    tokens = torch.randn(3, 5, 7, n_tokens, 12)
    grouped, plain = PixelAttention(12, 3), PixelAttention(12, 3, plain=True)
    plain.load_state_dict(grouped.state_dict())
    assert torch.allclose(grouped(tokens), plain(tokens), atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (2, 8, 3, 5), (32, 5)])
def test_a_linear_layer_by_convolution_is_one_by_product(shape):
    layer, x = nn.Linear(5, 3), torch.randn(*shape, requires_grad=True)
    found, expected = linear(x, layer.weight, layer.bias), layer(x)
    assert torch.allclose(found, expected, atol=1e-6)
    assert close(gradients(found, x, *layer.parameters()), gradients(expected, x, *layer.parameters()))


def test_plain_attention_is_torchs_own():
    ours, torchs = PixelAttention(12, 3, plain=True), nn.MultiheadAttention(12, 3, batch_first=True)
    torchs.in_proj_weight.data, torchs.out_proj.weight.data = ours.qkv.weight.data, ours.out.weight.data
    torchs.out_proj.bias.data = ours.out.bias.data
    tokens = torch.randn(6, 4, 12)
    assert torch.allclose(ours(tokens), torchs(tokens, tokens, tokens)[0], atol=1e-6)


def test_lka_shares_its_layers_over_tokens_and_reaches_eleven_pixels():
    torch.manual_seed(0)
    block = LKABlock(6, 2)
    tokens = torch.randn(1, 31, 33, 3, 6, requires_grad=True)
    mixed = block.mix(tokens, block.around(tokens))
    assert torch.allclose(mixed, block(tokens), atol=1e-5), "in two parts as at once"
    centre = mixed[0, 15, 16]
    reached = torch.autograd.grad(centre[1].sum(), tokens)[0][0].abs().sum(-1)
    assert reached[..., [0, 2]].sum() == 0, "tokens look at themselves only"
    rows, cols = reached[..., 1].nonzero().unbind(1)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (15 - 11, 15 + 11, 16 - 11, 16 + 11)


def test_the_gradients_of_lka_are_finite_and_right_in_bfloat16():
    torch.manual_seed(0)
    block, tokens = LKABlock(32, 2), torch.randn(2, 40, 40, 1, 32)
    sides = [module.weight for module in (block.square, block.row, block.column)]

    def gradients(bfloat16: bool) -> torch.Tensor:
        litter = [torch.full((size,), torch.nan) for size in (1 << 12, 1 << 16, 1 << 20) for _ in range(4)]
        del litter  # what is read without having been written is then no number
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = block.around(tokens).float().pow(2).mean()
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, sides)])

    exact, rounded = gradients(False), gradients(True)
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_pieces_give_the_values_and_gradients_of_the_whole():
    layer, other = nn.Linear(4, 3), nn.Linear(2, 3)
    x = torch.randn(2 * CPU_PIXELS + 7, 4, requires_grad=True)
    fixed = torch.randn(2 * CPU_PIXELS + 7, 2)

    def function(a, b):
        return torch.tanh(layer(a)) * other(b)

    whole, pieces = function(x, fixed), in_pieces(function, x, fixed)
    leaves = [x, *layer.parameters(), *other.parameters()]
    assert torch.allclose(pieces, whole, atol=1e-6)
    assert close(gradients(pieces, *leaves), gradients(whole, *leaves))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_shuffles_are_torchs(factor):
    images = torch.randn(2, 5, 6 * factor, 4 * factor)
    assert torch.equal(unshuffle(images, factor), F.pixel_unshuffle(images, factor))
    assert torch.equal(shuffle(unshuffle(images, factor), factor), images)
    assert unshuffle(images, factor).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("scale", "factor"), [(2, 1), (3, 2), (4, 1), (4, 2), (4, 4)])
def test_views_at_a_resolution_are_the_images_averaged_to_it(scale, factor):
    images = torch.rand(2, 2, 3, 5 * scale, 4 * scale)
    views = Views(torch.rand(2, 3, 5, 4), images, scale, Newcomers(["a", "b"], []))
    expected = F.pixel_unshuffle(F.adaptive_avg_pool2d(views.differences, (5 * factor, 4 * factor)), factor)
    torch.testing.assert_close(views.at(factor), expected)


def test_laplacians_and_the_last_blur_add_up_to_the_image():
    image = torch.rand(1, 3, 20, 23)
    blur = blurring(image)
    assert torch.allclose(laplacians(image).sum(1) + blur(blur(blur(image))), image, atol=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_blur_is_a_gaussian_of_sigma_one(plain):
    image = torch.zeros(1, 1, 15, 15)
    image[0, 0, 7, 7] = 1.0
    bell = torch.exp(-(torch.arange(-2, 3.0) ** 2) / 2)
    bell = bell / bell.sum()
    assert torch.allclose(blurring(image, plain=plain)(image)[0, 0, 5:10, 5:10], bell[:, None] * bell, atol=1e-6)
    flat = torch.full((1, 3, 9, 9), 0.4)
    assert torch.allclose(blurring(flat, plain=plain)(flat), torch.tensor(0.4))
