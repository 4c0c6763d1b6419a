"""The metrics against NumPy versions written from BasicSR's definitions, and against scikit-image."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.metrics import (
    Protocol,
    Scorer,
    learned_metric,
    ntire_perceptual,
    scoring_device,
    to_tensor,
)
from championship_sr.store.errors import ConfigError
from championship_sr.train.metrics import psnr, rgb_to_y, round_to_8bit, ssim


def noisy_pair(seed: int, height: int = 40, width: int = 47) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=(height, width, 3)), axis=0)
    hr = np.clip(128 + 10 * smooth, 0, 255)
    sr = np.clip(hr + rng.normal(scale=8, size=hr.shape), 0, 255)
    return sr.round().astype(np.uint8), hr.round().astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255


def basicsr_y(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) / 255 @ [65.481, 128.553, 24.966] + 16.0


def basicsr_psnr_y(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    difference = (basicsr_y(sr) - basicsr_y(hr))[border:-border, border:-border]
    return 10 * math.log10(255**2 / np.mean(difference**2))


def basicsr_ssim_y(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    a, b = (basicsr_y(image)[border:-border, border:-border] for image in (sr, hr))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return (np.lib.stride_tricks.sliding_window_view(image, (11, 11)) * window).sum(axis=(2, 3))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a**2) - mean_a**2, blur(b**2) - mean_b**2, blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


@settings(max_examples=10, deadline=None)
@given(seed=integers(0, 2**32 - 1), border=integers(1, 6))
def test_psnr_on_luma_is_basicsrs(seed, border):
    sr, hr = noisy_pair(seed)
    ours = psnr(rgb_to_y(tensor(sr)), rgb_to_y(tensor(hr)), border=border)
    assert ours.item() == pytest.approx(basicsr_psnr_y(sr, hr, border), abs=1e-9)


@pytest.mark.parametrize("border", [1, 4])
def test_ssim_on_luma_is_basicsrs(border):
    sr, hr = noisy_pair(3)
    ours = ssim(rgb_to_y(tensor(sr)), rgb_to_y(tensor(hr)), border=border)
    assert ours.item() == pytest.approx(basicsr_ssim_y(sr, hr, border), abs=1e-9)


def test_luma_is_matlabs_as_scikit_image_computes_it():
    _, hr = noisy_pair(5)
    assert np.allclose(rgb_to_y(tensor(hr))[0, 0].numpy() * 255, rgb2ycbcr(hr)[..., 0], atol=1e-9)


def test_rgb_values_are_scikit_images():
    sr, hr = noisy_pair(7)
    assert psnr(tensor(sr), tensor(hr), border=0).item() == pytest.approx(peak_signal_noise_ratio(hr, sr), abs=1e-9)
    inside = (slice(5, -5), slice(5, -5))  # scikit-image pads before it averages
    _, pixels = structural_similarity(
        hr, sr, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(tensor(sr), tensor(hr), border=0).item() == pytest.approx(pixels[inside].mean(), abs=1e-7)


def test_every_image_of_a_batch_has_its_own_value():
    pairs = [noisy_pair(seed) for seed in range(3)]
    sr, hr = (torch.cat([tensor(pair[i]) for pair in pairs]) for i in (0, 1))
    for metric in (psnr, ssim):
        alone = [metric(tensor(a), tensor(b), border=2).item() for a, b in pairs]
        assert metric(sr, hr, border=2).tolist() == pytest.approx(alone, abs=1e-12)


def test_equal_images_are_infinitely_good():
    _, hr = noisy_pair(1)
    assert psnr(tensor(hr), tensor(hr), border=4).item() == math.inf
    assert ssim(tensor(hr), tensor(hr), border=4).item() == pytest.approx(1, abs=1e-12)


def test_rounding_clips_and_keeps_256_levels():
    image = torch.tensor([-0.2, 0.0, 0.5 / 255 - 1e-6, 0.5 / 255 + 1e-6, 1.3])
    assert (round_to_8bit(image) * 255).tolist() == [0, 0, 0, 1, 255]


@pytest.mark.parametrize("metric, border, found", [(psnr, 20, "less than 1"), (ssim, 15, "less than 11")])
def test_a_cut_that_leaves_nothing_is_refused(metric, border, found):
    image = torch.rand(1, 1, 40, 40)
    with pytest.raises(ValueError, match=f"40 x 40 image: {found} pixels left after cutting {border}"):
        metric(image, image, border=border)


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\) and \(1, 1, 8, 9\)"):
        psnr(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 9), border=0)


def test_a_scorer_gives_the_named_metrics_of_8_bit_images():
    sr, hr = noisy_pair(11)
    found = Scorer(hr, ["psnr_y", "ssim_y", "psnr_rgb"], border=4)(sr)
    assert list(found) == ["psnr_y", "ssim_y", "psnr_rgb"]
    assert found["psnr_y"] == pytest.approx(basicsr_psnr_y(sr, hr, 4), abs=1e-9)
    assert found["ssim_y"] == pytest.approx(basicsr_ssim_y(sr, hr, 4), abs=1e-9)
    assert found["psnr_rgb"] == pytest.approx(peak_signal_noise_ratio(hr[4:-4, 4:-4], sr[4:-4, 4:-4]), abs=1e-9)


def test_a_16_bit_hr_image_is_scored_on_the_same_scale():
    sr, hr = noisy_pair(12)
    deep = Scorer(hr.astype(np.uint16) * 257, ["psnr_y"], border=4)(sr)
    assert deep["psnr_y"] == pytest.approx(basicsr_psnr_y(sr, hr, 4), abs=1e-9)


def test_the_older_protocol_scores_rgb_and_cuts_six_pixels_more():
    old = EvaluateConfig(protocol="ntire2017")
    assert old.scored == ("psnr_rgb", "ssim_rgb") and old.border(4) == 10
    assert EvaluateConfig().scored == ("psnr_y", "ssim_y") and EvaluateConfig().border(3) == 3
    assert EvaluateConfig(protocol="ntire2017", border_px=2, metrics=("psnr_y",)).border(4) == 2
    words = Protocol(4, old.border(4), "as published").describe(old.scored)
    assert "PSNR-RGB on RGB" in words and "10 pixels cut" in words and "LR as published" in words


def test_a_metric_whose_package_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    sr, hr = noisy_pair(1)
    for name in ("lpips", "niqe"):
        with pytest.raises(ConfigError, match=rf"metric {name}: .* Run: pip install 'championship-sr\[perceptual\]'"):
            Scorer(hr, [name], border=4)(sr)


def test_learned_metrics_get_whole_images_in_their_own_range(monkeypatch):
    seen = []

    class Distance:
        metric_mode = "FR"

        def __init__(self, *_args, **_options): ...

        def eval(self):
            return self

        def requires_grad_(self, _):
            return self

        def to(self, _device):
            return self

        def __call__(self, sr, hr, normalize=False):
            seen.append((sr, hr))
            return (sr - hr).abs().mean() * (2 if normalize else 1)  # lpips takes 0..1 to -1..1 where it is told

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=Distance))
    learned_metric.cache_clear()
    sr, hr = noisy_pair(2)
    found = Scorer(hr, ["lpips", "dists"], border=4)(sr)
    learned_metric.cache_clear()
    expected = np.abs(sr.astype(float) - hr).mean() / 255
    assert found["lpips"] == pytest.approx(2 * expected, rel=1e-5)
    assert found["dists"] == pytest.approx(expected, rel=1e-5)
    assert seen[0][0].shape == (1, 3, *hr.shape[:2])
    words = Protocol(4, 4).describe(["psnr_y", "lpips", "niqe"])
    assert "4 pixels cut from each side (none for LPIPS, NIQE)" in words


def test_ntire_score_is_the_challenges_sum():
    means = {"lpips": 0.25, "dists": 0.1, "clipiqa": 0.6, "maniqa": 0.4, "musiq": 65.0, "niqe": 12.0}
    assert ntire_perceptual(means) == pytest.approx(0.75 + 0.9 + 0.6 + 0.4 + 0.65 + 0.0)


def test_scores_are_computed_on_a_gpu_in_float64_and_for_apples_on_the_cpu(monkeypatch):
    assert scoring_device("cuda:1") == torch.device("cuda", 1)
    assert scoring_device("mps") == scoring_device("cpu") == torch.device("cpu")
    assert to_tensor(np.zeros((2, 3, 3), np.uint16)).dtype is torch.float64
