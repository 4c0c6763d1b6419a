import numpy as np
import pytest

from championship_sr.extract.images.bicubic import contributions, cubic, downscale, imresize, upscale


def test_the_kernel_is_keys_cubic():
    # Keys 1981: 1 at 0, zero at the other integers, and an interpolant of any quadratic
    assert cubic(np.array([0.0, 1, 2, 3, -1])).tolist() == [1, 0, 0, 0, 0]
    x = np.linspace(0, 1, 11)
    for power in range(3):
        taps = sum(cubic(x - k) * float(k) ** power for k in (-1, 0, 1, 2))
        assert np.allclose(taps, x**power)


@pytest.mark.parametrize(("n_in", "n_out", "factor"), [(64, 16, 0.25), (16, 64, 4.0), (9, 3, 1 / 3), (5, 3, 0.5)])
def test_weights_add_up_to_one_and_stay_inside(n_in, n_out, factor):
    index, weight = contributions(n_in, n_out, factor)
    assert index.shape == weight.shape and index.shape[0] == n_out
    assert index.min() >= 0 and index.max() < n_in
    assert np.allclose(weight.sum(axis=1), 1)


def test_a_pixel_agrees_with_the_sum_written_out():
    row = np.arange(32.0)[None, :, None] ** 2
    # output 3 of a x1/4: its centre lies at 13.5; the kernel is four times as wide and reaches from 6 to 21
    near = np.arange(6, 22)
    weight = cubic((near - 13.5) / 4)
    expected = (weight * near**2).sum() / weight.sum()
    assert imresize(np.repeat(row, 8, axis=0), 0.25)[1, 3, 0] == pytest.approx(expected)


def test_rounding_happens_after_each_pass():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rows = np.clip(np.floor(imresize_one_axis(image.astype(float)) + 0.5), 0, 255)
    both = np.clip(np.floor(imresize_one_axis(rows.swapaxes(0, 1)).swapaxes(0, 1) + 0.5), 0, 255)
    assert np.array_equal(downscale(image, 4), both)


def imresize_one_axis(image):
    """Four-fold reduction of the rows, with symmetric borders, in five lines."""
    padded = np.pad(image, ((8, 8), (0, 0), (0, 0)), mode="symmetric")
    taps = np.arange(-6, 10)
    weight = cubic((taps - 1.5) / 4) / cubic((taps - 1.5) / 4).sum()
    return np.stack([np.tensordot(weight, padded[8 + 4 * i + taps], 1) for i in range(image.shape[0] // 4)])


def test_a_constant_image_stays_constant_and_sizes_follow():
    image = np.full((40, 24, 3), 77, np.uint8)
    assert np.unique(downscale(image, 4)).tolist() == [77]
    assert downscale(image, 4).shape == (10, 6, 3) and upscale(image, 4).shape == (160, 96, 3)
    assert upscale(image.astype(np.uint16) * 256, 4).dtype == np.uint16
