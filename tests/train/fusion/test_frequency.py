import numpy as np
import pytest
import pywt
import torch
from scipy.fft import dctn

from championship_sr.train.fusion.phases.frequency import (
    FrequencySplit,
    dct_bands,
    dct_basis,
    dwt_bands,
    fft_bands,
    masks,
    zigzag,
)

SIZES = [(8, 8), (9, 8), (15, 22), (33, 17)]
TRANSFORMS = ["dct", "dwt", "fft"]
CPU = torch.device("cpu")


@pytest.fixture
def split() -> FrequencySplit:
    torch.manual_seed(0)
    return FrequencySplit()


@pytest.mark.parametrize("size", SIZES)
def test_each_transforms_bands_add_up_to_the_image(split, size):
    lr = torch.rand(2, 3, *size)
    assert torch.allclose(split.split(lr).sum(2), lr.unsqueeze(1).expand(-1, 3, -1, -1, -1), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_is_all_in_the_low_bands(split, size):
    bands = split.split(torch.full((1, 3, *size), 0.7))
    assert torch.allclose(bands[:, :, 0], torch.tensor(0.7), atol=1e-3)
    assert bands[:, :, 1:].abs().max() < 1e-3


@pytest.mark.parametrize("row", [8, 32, 56])
def test_a_line_stays_where_it_is_in_every_band(split, row):
    lr = torch.zeros(1, 3, 64, 64)
    lr[:, :, row] = 1.0
    energy = split.split(lr)[0].square().sum(dim=(2, 4))  # (transform, tier, row)
    strength = energy.sum(-1)
    away = ((energy * torch.arange(64.0)).sum(-1) / strength - row).abs()
    away[strength < 1e-3] = 0.0
    assert (strength > 1e-3).sum() >= 7
    assert away[0].max() < 4, "a block of the DCT is 8 rows high"
    assert away[1:].max() < 1


def test_dct_coefficients_are_scipys():
    block = np.random.default_rng(0).random((8, 8))
    basis = dct_basis(CPU).double().numpy()
    assert np.allclose((basis @ block.flatten()).reshape(8, 8), dctn(block, norm="ortho"), atol=1e-6)


def test_zigzag_runs_as_in_jpeg():
    rank = (zigzag(CPU) * 63).round().int()
    assert rank[0, :4].tolist() == [0, 1, 5, 6]
    assert rank[:4, 0].tolist() == [0, 2, 3, 9]
    assert rank.flatten().sort().values.tolist() == list(range(64))


def test_dct_cuts_move_coefficients_between_bands():
    block = torch.zeros(1, 1, 8, 8)
    block[0, 0, 0, 1] = 1.0  # the second place of 64 in the zigzag
    image = (dct_basis(CPU).T @ block.flatten()).view_as(block)

    def bands(low, high):
        cuts = torch.tensor([[[low, high], [0.3, 0.5]]])
        return dct_bands(image, masks(cuts, 8, 8)[0])[0]

    low, mid, high = bands(0.2, 0.6).square().sum(dim=(1, 2, 3))
    assert low > 0.99 and mid < 0.01 and high < 0.01
    low, mid, high = bands(0.001, 0.002).square().sum(dim=(1, 2, 3))
    assert high > low


def test_dwt_bands_are_pywavelets():
    image = np.random.default_rng(0).random((12, 10))
    ll, (lh, hl, hh) = pywt.dwt2(image, "haar")
    expected = [
        pywt.idwt2((ll, (None, None, None)), "haar"),
        pywt.idwt2((None, (lh, hl, None)), "haar"),
        pywt.idwt2((None, (None, None, hh)), "haar"),
    ]
    bands = dwt_bands(torch.tensor(image)[None, None])[0, :, 0]
    assert np.allclose(bands.numpy(), np.stack(expected), atol=1e-12)


@pytest.mark.parametrize(("period", "tier"), [(64, 0), (5, 1), (2, 2)])
def test_a_wave_lies_in_its_fft_ring(period, tier):
    phase = 2 * torch.pi * torch.arange(320) / period
    wave = torch.cos(phase).expand(1, 1, 320, 320) * (torch.cos(phase)[:, None] if period == 2 else 1.0)
    passed = masks(torch.tensor([[[0.3, 0.6], [0.15, 0.5]]]), 320, 320)[1]
    energy = fft_bands(wave, passed)[0].square().sum(dim=(1, 2, 3))
    assert energy.argmax() == tier
    assert energy[tier] > 0.9 * energy.sum()


def test_cuts_are_ordered_and_depend_on_the_image(split):
    torch.nn.init.normal_(split.dct_cuts.net[-1].weight)
    low, high = split.dct_cuts(torch.stack([torch.rand(3, 9, 9), torch.rand(3, 9, 9) * 0.1])).unbind(1)
    assert (low > 0).all() and (low < high).all() and (high < 1).all()
    assert low[0] != low[1]
