"""Baselines and oracles against brute force."""

import numpy as np
import pytest
import torch

from championship_sr.evaluate.inference.inputs import hwc
from championship_sr.evaluate.methods import EXPERT, MEAN, PER_PIXEL
from championship_sr.evaluate.metrics import Scorer
from championship_sr.evaluate.scoring.baselines import best_per_pixel, images_of, products_of
from championship_sr.extract.images.bicubic import downscale, upscale
from championship_sr.train.combination import fit_weights, psnr_of, squared_error


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
    assert np.array_equal(images["fitted"], images[EXPERT + "e0"])


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


def test_products_give_the_psnr_of_the_combined_image_and_its_best_weights():
    hr = photo(height=40, width=36)
    experts = experts_of(hr)
    products = products_of(hr, experts, border=4)

    def luma(image):
        return image.double().permute(1, 2, 0).numpy()[4:-4, 4:-4] @ [65.481, 128.553, 24.966]

    weights = np.array([1.2, -0.5, 0.3])
    mixed = sum(w * image.double() for w, image in zip(weights, experts.values(), strict=True))
    truth = (hr / 255)[4:-4, 4:-4] @ [65.481, 128.553, 24.966]
    expected = 10 * np.log10(255**2 / ((luma(mixed) - truth) ** 2).mean())
    assert psnr_of(squared_error(weights, products)) == pytest.approx(expected, abs=1e-6)

    columns = np.stack([luma(image).ravel() for image in experts.values()], axis=1)
    others = np.linalg.lstsq(columns[:, :2] - columns[:, 2:], truth.ravel() - columns[:, 2], rcond=None)[0]
    assert fit_weights(products, pull=1e-12) == pytest.approx([*others, 1 - others.sum()], abs=1e-6)


def test_the_upper_bound_is_above_every_expert():
    hr = photo()
    scorer = Scorer(hr, ["psnr_y", "ssim_y"], border=4)
    images = images_of(downscale(hr, 4), hr, experts_of(hr), 4, None)
    bound = scorer(images[PER_PIXEL])["psnr_y"]
    assert all(bound > scorer(images[EXPERT + name])["psnr_y"] for name in ("e0", "e1", "e2"))
