"""Each loss against an independent version, and each one's gradient."""

import numpy as np
import pytest
import pywt
import torch
from skimage.color import rgb2ycbcr
from skimage.filters import sobel
from skimage.metrics import structural_similarity
from torch import Tensor

from championship_sr.store.errors import ConfigError, WeightsError
from championship_sr.train.bench.dispatch import Dispatched
from championship_sr.train.losses.clip import CLIPSemantic
from championship_sr.train.losses.combined import LOSSES, Criterion
from championship_sr.train.losses.vgg import VGGPerceptual, load_features
from championship_sr.train.losses.wavelet import StationaryWavelet

PLAIN = [name for name in LOSSES if name not in ("vgg", "clip", "teacher", "complement")]


def images(seed: int = 0, batch: int = 2, height: int = 40, width: int = 56) -> tuple[Tensor, Tensor]:
    """(sr, hr): a smooth random scene and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, height // 8, width // 8, generator=generator)
    hr = torch.nn.functional.interpolate(small, scale_factor=8, mode="bicubic").clamp(0, 1)
    return hr + 0.05 * torch.randn(hr.shape, generator=generator), hr


def numpy_images(**options) -> tuple[np.ndarray, np.ndarray]:
    return tuple(image.double().numpy() for image in images(**options))


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights under torchvision's names, small enough that 13 ReLUs do not overflow."""
    from torchvision.models import vgg19

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in vgg19(weights=None).features[:27].state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {
        f"features.{key}": torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        if len(shape) > 1
        else torch.zeros(shape)
        for key, shape in shapes.items()
    }
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, path)
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def numerical_gradient_agrees(loss, sr: Tensor, hr: Tensor) -> None:
    """The gradient along itself, against a central difference in float64."""
    loss, hr = loss.double(), hr.double()
    sr = sr.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(sr, hr), sr)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    direction = gradient / gradient.norm()
    step = 1e-6
    with torch.no_grad():
        rise = loss(sr + step * direction, hr) - loss(sr - step * direction, hr)
    assert (rise / (2 * step)).item() == pytest.approx(gradient.norm().item(), rel=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_is_the_slope_of_the_value(name):
    numerical_gradient_agrees(LOSSES[name](), *images(batch=1))


def test_the_gradient_of_vgg_is_the_slope_of_its_value(vgg_file):
    numerical_gradient_agrees(VGGPerceptual(vgg_file), *images(batch=1, height=32, width=32))


def test_the_gradient_of_clip_is_the_slope_of_its_value(clip_folder):
    numerical_gradient_agrees(CLIPSemantic(clip_folder), *images(batch=1))


@pytest.mark.parametrize("name", PLAIN)
def test_equal_images_cost_nothing_and_have_a_finite_gradient(name):
    _, hr = images()
    sr = hr.clone().requires_grad_()
    value = LOSSES[name]()(sr, hr)
    value.backward()
    assert value.item() == pytest.approx(0, abs=2e-6) and sr.grad.isfinite().all()


def test_l1_and_charbonnier_are_their_formulas():
    sr, hr = numpy_images()
    found = {name: LOSSES[name]()(*images()).item() for name in ("l1", "l1_luma", "charbonnier")}
    first, second = ([luma(image) for image in batch] for batch in images())
    assert found["l1_luma"] == pytest.approx(np.abs(np.subtract(first, second)).mean(), rel=1e-4)
    assert found["l1"] == pytest.approx(np.abs(sr - hr).mean(), rel=1e-5)
    assert found["charbonnier"] == pytest.approx(np.sqrt((sr - hr) ** 2 + 1e-12).mean(), rel=1e-5)


def test_ssim_is_one_minus_scikit_images_inside_the_window():
    maps = [
        structural_similarity(a, b, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True)[1]
        for sr, hr in zip(*numpy_images(), strict=True)
        for a, b in zip(sr, hr, strict=True)
    ]
    expected = 1 - np.mean([m[5:-5, 5:-5] for m in maps])
    assert LOSSES["ssim"]()(*images()).item() == pytest.approx(expected, abs=1e-5)


def test_edge_is_the_difference_of_scikit_images_sobel_maps():
    sr, hr = (image.reshape(-1, *image.shape[-2:]) for image in numpy_images())
    inside = [np.abs(sobel(a) - sobel(b))[1:-1, 1:-1] for a, b in zip(sr, hr, strict=True)]
    # scikit-image divides its kernels by 4 and the magnitude by sqrt(2); ours have norm 1
    expected = np.mean(inside) * 4 * np.sqrt(2) / np.sqrt(12)
    assert LOSSES["edge"]()(*images()).item() == pytest.approx(expected, rel=1e-4)


def test_fft_is_the_difference_of_numpys_log_magnitudes():
    sr, hr = (np.abs(np.fft.rfft2(image, norm="ortho")) for image in numpy_images())
    assert LOSSES["fft"]()(*images()).item() == pytest.approx(np.abs(np.log1p(sr) - np.log1p(hr)).mean(), rel=1e-4)


def test_the_stationary_wavelet_transform_is_pywts():
    image = np.random.default_rng(0).normal(size=(40, 56))
    found = StationaryWavelet().transform(torch.from_numpy(image)[None, None].float())[0, 0]
    levels = pywt.swt2(image, "db4", 3)  # the coarsest level first
    expected = [band for _, details in reversed(levels) for band in details] + [levels[0][0]]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


def test_the_wavelet_loss_takes_odd_and_small_sizes():
    sr = torch.rand(1, 3, 9, 13, requires_grad=True)
    StationaryWavelet()(sr, torch.rand(1, 3, 9, 13)).backward()
    assert sr.grad.isfinite().all()


def test_swt_is_the_mean_over_pywts_ten_bands():
    sr, hr = numpy_images()
    bands = []
    for plane in (sr - hr).reshape(-1, *sr.shape[-2:]):
        levels = pywt.swt2(plane, "db4", 3)
        bands += [levels[0][0], *(band for _, details in levels for band in details)]
    assert LOSSES["swt"]()(*images()).item() == pytest.approx(np.abs(bands).mean(), rel=1e-4)


def test_psnr_is_how_far_each_windows_luma_is_below_forty_db():
    sr, hr = images()
    psnr = [10 * np.log10(1 / (np.square(luma(a) - luma(b)).mean() + 1e-4)) for a, b in zip(sr, hr, strict=True)]
    assert 100 * LOSSES["psnr"]()(sr, hr).item() == pytest.approx(40 - np.mean(psnr), rel=1e-4)


def luma(image: Tensor) -> np.ndarray:
    return rgb2ycbcr(image.movedim(0, -1).double().numpy())[..., 0] / 255


@pytest.mark.parametrize(("name", "low", "high"), [("swt", 0.98, 1.02), ("charbonnier", 0.99, 1.01), ("edge", 0.5, 1)])
def test_on_white_noise_the_value_is_on_the_scale_of_l1(name, low, high):
    generator = torch.Generator().manual_seed(0)
    hr = torch.randn(4, 3, 64, 64, generator=generator)
    noise = torch.randn(hr.shape, generator=generator) * 0.05
    assert low < LOSSES[name]()(hr + noise, hr) / noise.abs().mean() < high


def test_fft_on_white_noise_over_a_flat_image_is_on_the_scale_of_l1():
    noise = 0.05 * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(noise, 0.5)
    assert 0.8 < LOSSES["fft"]()(flat + noise, flat) / noise.abs().mean() < 1.2


def test_the_sum_is_weighted_and_reports_each_loss_unweighted():
    sr, hr = images()
    criterion = Criterion(["l1", "ssim"])
    total, values = criterion(sr, hr, {"l1": 0.75, "ssim": 0.2})
    assert list(values) == ["l1", "ssim"]
    assert total.item() == pytest.approx(0.75 * values["l1"].item() + 0.2 * values["ssim"].item())
    assert not values["l1"].requires_grad


def test_a_loss_of_weight_zero_is_not_computed():
    criterion = Criterion(["l1", "ssim"])
    criterion.losses["ssim"].forward = lambda sr, hr: pytest.fail("computed")
    _, values = criterion(*images(), {"l1": 1.0, "ssim": 0.0})
    assert list(values) == ["l1"]


def test_the_sum_is_computed_in_float32_under_autocast():
    sr, hr = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = Criterion(PLAIN)(sr.bfloat16(), hr, dict.fromkeys(PLAIN, 1.0))
    assert total.dtype == torch.float32 and total.isfinite()


def test_missing_vgg_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(WeightsError, match=r"no such file.*download them with: python -c"):
        Criterion(["vgg"], {"vgg": tmp_path / "vgg19.pth"})


def test_a_file_that_is_not_vgg_is_told(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"not torchvision's VGG19: no features\.0\.bias"):
        load_features(tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(WeightsError, match="not a readable weights file"):
        load_features(tmp_path / "torn.pth")


def test_vgg_is_the_mean_over_three_layers_of_the_l1_of_torchvisions_features(vgg_file):
    from torchvision.models import vgg19
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms.functional import normalize

    with torch.device("meta"):
        reference = vgg19(weights=None)
    reference = reference.features[:27]
    state = {k.removeprefix("features."): v for k, v in torch.load(vgg_file).items() if k.startswith("features.")}
    reference.load_state_dict(state, assign=True)
    extractor = create_feature_extractor(reference.eval(), ["8", "17", "26"])
    sr, hr = images(batch=1, height=32, width=32)
    with torch.no_grad():
        a, b = (
            extractor(normalize(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).values() for image in (sr, hr)
        )
        expected = np.mean([(x - y).abs().mean().item() for x, y in zip(a, b, strict=True)])
        assert VGGPerceptual(vgg_file)(sr, hr).item() == pytest.approx(expected, rel=1e-5)


def test_clip_is_one_minus_the_cosine_of_the_embeddings(clip_folder):
    from transformers import CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    sr, hr = images(height=32, width=32)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    a, b = (
        encoder(pixel_values=torch.from_numpy(((x.transpose(0, 2, 3, 1) - mean) / std).transpose(0, 3, 1, 2)).float())
        .image_embeds.detach()
        .numpy()
        for x in (sr.numpy(), hr.numpy())
    )
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert CLIPSemantic(clip_folder)(sr, hr).item() == pytest.approx(1 - cosine.mean(), abs=1e-5)


def test_missing_clip_weights_say_how_to_get_them(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match=r"no such folder.*hf download"):
        Criterion(["clip"], {"clip": tmp_path / "clip"})


def test_an_unknown_loss_is_named():
    with pytest.raises(ConfigError, match="no loss is called 'lpips'; there are l1, l1_luma, charbonnier"):
        Criterion(["lpips"])


def test_the_wavelet_loss_makes_its_responses_once_for_a_size_and_can_then_be_trained_with():
    sr, hr = torch.rand(1, 3, 10, 14, requires_grad=True), torch.rand(1, 3, 10, 14)
    with torch.inference_mode():
        first = StationaryWavelet()(sr, hr)
    with Dispatched() as counts:
        loss = StationaryWavelet()(sr, hr)
        loss.backward()
    assert torch.equal(loss, first) and sr.grad.abs().sum() > 0
    assert not counts.synchronisations  # that of another loss before it has made them


def test_complement_is_the_error_of_the_mean_with_the_others():
    rng = np.random.default_rng(1)
    sr, hr, others = (torch.from_numpy(rng.random((2, 3, 8, 8)).astype(np.float32)) for _ in range(3))
    criterion = Criterion(["complement"], share=0.25)
    total, values = criterion(sr.requires_grad_(), hr, {"complement": 1.0}, others)
    error = 0.25 * sr.detach().numpy() + 0.75 * others.numpy() - hr.numpy()
    luma = np.tensordot(error, np.divide((65.481, 128.553, 24.966), 255), axes=(1, 0))
    assert values["complement"].item() == pytest.approx(4 * (np.abs(error).mean() + np.abs(luma).mean()) / 2, rel=1e-5)
    total.backward()
    # one whose others err the other way gains by erring itself, which the distance to HR would forbid
    assert np.all(np.sign(sr.grad.sum(1).numpy()) == np.sign(np.sign(error).mean(1) + np.sign(luma)))
