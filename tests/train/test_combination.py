"""Weights and errors from the products of errors, against NumPy's least squares on the pixels themselves."""

import numpy as np
import pytest
import torch

from championship_sr.train.combination import (
    EQUAL_RMS,
    all_equal,
    combined,
    equal_experts,
    error_products,
    fit_weights,
    psnr_of,
    squared_error,
)
from championship_sr.train.metrics import psnr, rgb_to_y

LUMA = np.array([65.481, 128.553, 24.966]) / 255


def pictures(n_experts: int, seed: int = 0, shared: float = 0.03, own: float = 0.02) -> tuple[torch.Tensor, ...]:
    """Images (2, E, 3, 24, 20) and HR (2, 3, 24, 20); experts err together, and each by itself."""
    rng = np.random.default_rng(seed)
    hr = rng.uniform(0.2, 0.8, (2, 3, 24, 20))
    common = shared * rng.standard_normal(hr.shape)
    apart = own * rng.standard_normal((n_experts, *hr.shape)) * rng.uniform(0.5, 2, (n_experts, 1, 1, 1, 1))
    images = np.stack([hr + common + error for error in apart], axis=1)
    return torch.from_numpy(images).float(), torch.from_numpy(hr).float()


def luma_columns(images: torch.Tensor, hr: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Luma as (pixels, E) and (pixels,), in float64."""
    flat = np.einsum("bechw,c->bhwe", images.double().numpy(), LUMA).reshape(-1, images.shape[1])
    return flat, np.einsum("bchw,c->bhw", hr.double().numpy(), LUMA).reshape(-1)


@pytest.mark.parametrize("n_experts", [1, 2, 3, 4, 7])
def test_weights_are_those_of_least_squares(n_experts):
    images, hr = pictures(n_experts, seed=n_experts)
    x, y = luma_columns(images, hr)
    against_last, target = x[:, :-1] - x[:, -1:], y - x[:, -1]
    others = np.linalg.lstsq(against_last, target, rcond=None)[0]
    expected = [*others, 1 - others.sum()]
    found = fit_weights(error_products(images, hr).numpy(), pull=1e-12)
    assert found == pytest.approx(expected, abs=1e-7) and found.sum() == pytest.approx(1, abs=1e-12)


def test_the_pull_is_a_ridge_on_the_departure_from_equal_weights():
    images, hr = pictures(4)
    x, y = luma_columns(images, hr)
    mean, pull = x.mean(1), 0.01
    ridge = np.sqrt(pull * ((mean - y) ** 2).sum()) * np.eye(4)
    rows = np.concatenate([x - mean[:, None], ridge])
    departure = np.linalg.lstsq(rows, np.concatenate([y - mean, np.zeros(4)]), rcond=None)[0]
    assert fit_weights(error_products(images, hr).numpy(), pull) == pytest.approx(0.25 + departure, abs=1e-9)


def test_weights_may_be_negative():
    images, hr = pictures(2, shared=0.0)
    worse = hr[:, None] + 2 * (images[:, :1] - hr[:, None])  # the same error twice as large
    both = torch.cat([images[:, :1], worse], dim=1)
    assert fit_weights(error_products(both, hr).numpy(), pull=1e-9) == pytest.approx([2, -1], abs=1e-3)


def test_error_and_psnr_are_those_of_the_image_that_is_combined():
    images, hr = pictures(4)
    weights = torch.tensor([0.9, -0.3, 0.5, -0.1], dtype=torch.float64)
    products = error_products(images, hr).numpy()
    image = combined(images.double(), weights)
    expected = psnr(rgb_to_y(image).flatten(2).reshape(1, 1, 48, 20), rgb_to_y(hr).reshape(1, 1, 48, 20), border=0)
    assert psnr_of(squared_error(weights.numpy(), products)) == pytest.approx(expected.item(), abs=1e-6)


def test_products_do_not_depend_on_how_rows_are_cut(monkeypatch):
    images, hr = pictures(3)
    whole = error_products(images, hr)
    monkeypatch.setattr("championship_sr.train.combination.ROWS_AT_ONCE", 7)
    assert error_products(images, hr).numpy() == pytest.approx(whole.numpy(), rel=1e-12)


def test_many_matrices_are_solved_at_once():
    products = np.stack([error_products(*pictures(3, seed=seed)).numpy() for seed in range(5)])
    assert fit_weights(products) == pytest.approx(np.stack([fit_weights(each) for each in products]), abs=1e-12)


def test_equal_experts_get_equal_weights():
    images, hr = pictures(1)
    products = error_products(images.repeat(1, 3, 1, 1, 1), hr).numpy()
    assert fit_weights(products) == pytest.approx(np.full(3, 1 / 3), abs=1e-9)
    assert all_equal(products)


def test_two_equal_experts_among_others_share_their_weight():
    images, hr = pictures(3)
    products = error_products(images[:, [0, 1, 2, 1]], hr).numpy()
    weights = fit_weights(products)
    assert weights[1] == pytest.approx(weights[3], abs=1e-9)
    assert equal_experts(products) == [(1, 3)] and not all_equal(products)


def test_nearly_equal_experts_do_not_blow_up():
    images, hr = pictures(1)
    noise = torch.randn((2, 4, 3, 24, 20), generator=torch.Generator().manual_seed(0))
    products = error_products(images + 3 * EQUAL_RMS * noise, hr).numpy()
    assert np.abs(fit_weights(products) - 0.25).max() < 0.05
    assert np.abs(fit_weights(products, pull=1e-14) - 0.25).max() > 1, "what the pull is for"
    assert not equal_experts(products)


def test_experts_without_error_keep_equal_weights():
    _, hr = pictures(1)
    assert fit_weights(error_products(hr[:, None].repeat(1, 2, 1, 1, 1), hr).numpy()).tolist() == [0.5, 0.5]


def test_one_expert_has_all_of_the_weight_and_equals_no_other():
    products = error_products(*pictures(1)).numpy()
    assert fit_weights(products).tolist() == [1.0] and not all_equal(products)
