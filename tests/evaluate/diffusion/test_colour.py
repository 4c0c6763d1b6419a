"""Colour matching against NumPy."""

import numpy as np
import pytest
import torch

from championship_sr.evaluate.diffusion.colour import WAVELET_LEVELS, adain_match, coarsest_band, wavelet_match


def images(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((2, 3, height, width)), rng.random((2, 3, height, width)) * 0.3 + 0.5


def numpy_blur(image: np.ndarray, distance: int) -> np.ndarray:
    """The 3 x 3 binomial kernel with holes, pixel by pixel, edges repeated."""
    height, width = image.shape[-2:]
    result = np.zeros_like(image)
    for dy, wy in ((-1, 1), (0, 2), (1, 1)):
        for dx, wx in ((-1, 1), (0, 2), (1, 1)):
            rows = np.clip(np.arange(height) + dy * distance, 0, height - 1)
            cols = np.clip(np.arange(width) + dx * distance, 0, width - 1)
            result += wy * wx / 16 * image[..., rows[:, None], cols]
    return result


def numpy_bands(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the fine bands, and the coarsest one."""
    fine = np.zeros_like(image)
    for level in range(5):
        blurred = numpy_blur(image, 2**level)
        fine, image = fine + image - blurred, blurred
    return fine, image


@pytest.mark.parametrize("size", [(40, 57), (7, 5), (1, 1)])
def test_wavelet_match_joins_fine_bands_of_one_to_the_coarse_band_of_the_other(size):
    image, reference = images(*size)
    expected = numpy_bands(image)[0] + numpy_bands(reference)[1]
    found = wavelet_match(torch.from_numpy(image), torch.from_numpy(reference)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_wavelet_match_takes_back_a_colour_cast_and_keeps_the_texture():
    image, _ = images(64, 64)
    cast = torch.from_numpy(image + np.array([0.2, -0.1, 0.05])[:, None, None])
    assert torch.allclose(wavelet_match(cast, torch.from_numpy(image)), torch.from_numpy(image), atol=1e-12)


def test_five_wavelet_levels_reach_31_pixels():
    point = torch.zeros(1, 1, 129, 129, dtype=torch.float64)
    point[..., 64, 64] = 1
    touched = coarsest_band(point)[0, 0].nonzero()
    assert WAVELET_LEVELS == 5
    assert touched.min() == 64 - 31 and touched.max() == 64 + 31


def test_adain_match_has_the_reference_mean_and_deviation():
    image, reference = images(40, 57)
    found = adain_match(torch.from_numpy(image), torch.from_numpy(reference)).numpy()
    scale = np.sqrt((reference.var((2, 3), ddof=1) + 1e-5) / (image.var((2, 3), ddof=1) + 1e-5))
    expected = (image - image.mean((2, 3), keepdims=True)) * scale[..., None, None]
    expected += reference.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_adain_match_of_a_flat_image_is_finite():
    flat = torch.full((1, 3, 8, 8), 0.3)
    reference = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        adain_match(flat, reference), reference.mean((-2, -1), keepdim=True).expand_as(flat), atol=1e-5
    )
