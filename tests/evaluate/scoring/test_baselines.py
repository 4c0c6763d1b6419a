"""Baselines and oracles against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from championship_sr.evaluate.inference.inputs import hwc
from championship_sr.evaluate.methods import EXPERT, MEAN, PER_PIXEL
from championship_sr.evaluate.metrics import Scorer
from championship_sr.evaluate.scoring.baselines import (
    best_per_pixel,
    fit_convex,
    images_of,
    minimise_on_simplex,
    project_to_simplex,
)
from championship_sr.extract.images.bicubic import downscale, upscale


def photo(seed: int = 0, height: int = 32, width: int = 44) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(128 + 9 * np.cumsum(rng.normal(size=(height, width, 3)), axis=1), 0, 255).astype(np.uint8)


def experts_of(hr: np.ndarray, noise: tuple[float, ...] = (3.0, 5.0, 4.0)) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(9)
    truth = torch.from_numpy(hr / 255).permute(2, 0, 1).float()
    return {f"e{i}": truth + torch.from_numpy(rng.normal(scale=s / 255, size=truth.shape)).float()
            for i, s in enumerate(noise)}  # fmt: skip


def test_every_method_is_an_8_bit_image_of_hrs_size():
    hr = photo()
    images = images_of(downscale(hr, 4), hr, experts_of(hr), 4, {"e0": 1.0, "e1": 0.0, "e2": 0.0})
    assert {(image.shape, image.dtype.name) for image in images.values()} == {(hr.shape, "uint8")}
    assert np.array_equal(images["bicubic"], upscale(downscale(hr, 4), 4))
    assert np.array_equal(images["convex"], images[EXPERT + "e0"])


def test_mean_is_taken_before_rounding():
    halves = {"a": torch.full((3, 4, 4), 100.4 / 255), "b": torch.full((3, 4, 4), 101.4 / 255)}
    images = images_of(np.zeros((1, 1, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), halves, 4, None)
    assert images[MEAN].max() == images[MEAN].min() == 101


def test_16_bit_inputs_are_scored_as_8_bit_ones():
    hr = photo()
    wide = images_of(downscale(hr, 4).astype(np.uint16) * 257, hr.astype(np.uint16) * 257, experts_of(hr), 4, None)
    narrow = images_of(downscale(hr, 4), hr, experts_of(hr), 4, None)
    assert np.abs(wide["bicubic"].astype(int) - narrow["bicubic"]).max() <= 1
    assert np.array_equal(wide[PER_PIXEL], narrow[PER_PIXEL])


def test_best_per_pixel_has_the_least_luma_error_of_all_choices():
    hr = photo(height=8, width=8)
    images = [hwc(image) for image in experts_of(hr).values()]
    weights = np.array([65.481, 128.553, 24.966])
    errors = np.stack([np.abs((image.astype(float) - hr) @ weights) for image in images])
    chosen = np.abs((best_per_pixel(images, hr).astype(float) - hr) @ weights)
    assert np.allclose(chosen, errors.min(axis=0))


@settings(max_examples=50, deadline=None)
@given(seed=integers(0, 2**32 - 1), n=integers(1, 6))
def test_projection_is_the_nearest_point_of_the_simplex(seed, n):
    rng = np.random.default_rng(seed)
    point = rng.normal(size=n) * 3
    nearest = project_to_simplex(point)
    assert nearest.sum() == pytest.approx(1) and nearest.min() >= 0
    others = rng.dirichlet(np.ones(n), size=500)
    assert ((others - point) ** 2).sum(axis=1).min() >= ((nearest - point) ** 2).sum() - 1e-9


def test_convex_weights_are_the_best_on_a_grid():
    hr = photo(height=40, width=40)
    experts = experts_of(hr)
    weights = fit_convex([(hr, experts)], border=4)
    assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) >= 0

    def error(w):
        mixed = sum(a * e for a, e in zip(w, experts.values(), strict=True)).permute(1, 2, 0).numpy()
        luma = (mixed - hr / 255)[4:-4, 4:-4] @ [65.481, 128.553, 24.966]
        return float((luma**2).mean())

    grid = [(a / 20, b / 20, 1 - (a + b) / 20) for a in range(21) for b in range(21 - a)]
    assert error(weights.values()) <= min(map(error, grid)) + 1e-9


def test_an_expert_that_only_adds_noise_gets_no_weight():
    gram = np.array([[1.0, 1.2], [1.2, 4.0]])
    assert minimise_on_simplex(gram) == pytest.approx([1, 0])


def test_the_upper_bound_is_above_every_expert():
    hr = photo()
    scorer = Scorer(hr, ["psnr_y", "ssim_y"], border=4)
    images = images_of(downscale(hr, 4), hr, experts_of(hr), 4, None)
    bound = scorer(images[PER_PIXEL])["psnr_y"]
    assert all(bound > scorer(images[EXPERT + name])["psnr_y"] for name in ("e0", "e1", "e2"))
