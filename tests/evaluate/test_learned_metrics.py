"""The learned metrics through the packages themselves, with random weights. Needs the extra `perceptual`."""

import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import torch
from torch import nn

from championship_sr.evaluate.config import EvaluateConfig
from championship_sr.evaluate.metrics import METRICS, Scorer, check_learned, learned_metric
from championship_sr.evaluate.scoring.comparison import ComparisonPlan, score_cases
from championship_sr.store.errors import WeightsError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Torch's cache in a folder of the test's own, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_arguments, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    learned_metric.cache_clear()
    yield tmp_path / "hub"
    learned_metric.cache_clear()


def images(height: int = 40, width: int = 52) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    hr = np.kron(rng.integers(0, 256, (height // 4, width // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    return (hr + rng.integers(-20, 20, hr.shape)).clip(0, 255).astype(np.uint8), hr


def convolutions(*sizes: tuple[int, int] | str) -> nn.Sequential:
    """Layers as torchvision lists them: (channels, kernel) is a convolution, "max" a pooling."""
    layers, before = [], 3
    for size in sizes:
        if size == "max":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, size[0], size[1], padding=size[1] // 2), nn.ReLU()]
        before = size[0]
    return nn.Sequential(*layers)


def test_lpips_is_the_distance_of_its_definition(monkeypatch):
    """Zhang et al. 2018, equation 1, on AlexNet with random weights and the published weights of the layers."""
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    alexnet = convolutions((64, 11), "max", (192, 5), "max", (384, 3), (256, 3), (256, 3))
    monkeypatch.setattr("torchvision.models.alexnet", lambda pretrained: SimpleNamespace(features=alexnet))
    sr, hr = images()
    found = Scorer(hr, ["lpips"], border=4)(sr)["lpips"]
    published = lpips.LPIPS(net="alex", verbose=False)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    ours, theirs = (
        (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1 - shift) / scale for image in (sr, hr)
    )
    expected, level = 0.0, 0
    with torch.no_grad():
        for layer in alexnet:
            ours, theirs = layer(ours), layer(theirs)
            if isinstance(layer, nn.ReLU):
                difference = nn.functional.normalize(ours, dim=1) - nn.functional.normalize(theirs, dim=1)
                weights = published.lins[level].model[-1].weight.flatten()
                expected += (difference.square() * weights.view(1, -1, 1, 1)).sum(dim=1).mean().item()
                level += 1
    assert level == 5 and found == pytest.approx(expected, rel=1e-4) and found > 0.001
    assert Scorer(hr, ["lpips"], border=4)(hr)["lpips"] == 0


def test_pyiqa_knows_our_names_and_agrees_which_way_is_better():
    configs = pytest.importorskip("pyiqa.default_model_configs").DEFAULT_CONFIGS
    asked = {metric.pyiqa: metric for metric in METRICS.values() if metric.pyiqa}
    assert {name: not metric.higher_is_better for name, metric in asked.items()} == {
        name: configs[name].get("lower_better", False) for name in asked
    }
    assert {name for name in asked if configs[name]["metric_mode"] == "FR"} == {"dists"}


def test_niqe_reads_its_weights_from_torchs_cache(empty_cache, monkeypatch):
    downloads = pytest.importorskip("pyiqa.utils.download_util")
    monkeypatch.setattr(downloads, "DEFAULT_CACHE_DIR", str(empty_cache / "pyiqa"))  # set when pyiqa was imported
    rng = np.random.default_rng(1)
    (empty_cache / "pyiqa").mkdir(parents=True)
    model = {"mu_prisparam": rng.random((1, 36)), "cov_prisparam": np.eye(36)}
    scipy.io.savemat(empty_cache / "pyiqa" / "niqe_modelparameters.mat", model)
    sr, hr = images(220, 220)
    scorer = Scorer(hr, ["niqe"], border=4)
    assert 0 < scorer(sr)["niqe"] < 100 and scorer(sr) == scorer(sr) != scorer(hr)


def test_dists_compares_with_hr(monkeypatch, empty_cache):
    pytest.importorskip("pyiqa")
    torch.manual_seed(0)
    widths = [(64, 3)] * 2, [(128, 3)] * 2, [(256, 3)] * 3, [(512, 3)] * 3, [(512, 3)] * 3
    vgg16 = convolutions(*(size for block in widths for size in (*block, "max")))
    monkeypatch.setattr("torchvision.models.vgg16", lambda weights: SimpleNamespace(features=vgg16))
    monkeypatch.setattr("pyiqa.archs.dists_arch.load_pretrained_network", lambda *_given: None)
    sr, hr = images()
    scorer = Scorer(hr, ["dists"], border=4)
    assert scorer(hr)["dists"] == pytest.approx(0, abs=1e-5) and scorer(sr)["dists"] > 1e-4


@pytest.mark.parametrize("name", ["lpips", "dists", "niqe"])
def test_weights_that_cannot_be_had_are_one_line_before_any_image_is_run(name, empty_cache, capsys):
    pytest.importorskip("lpips" if name == "lpips" else "pyiqa")
    expected = rf"metric {name}: its weights can't be loaded \(.*no network.*learned_metric\('{name}'\).*{empty_cache}"
    with pytest.raises(WeightsError, match=expected) as caught:
        score_cases(
            [None], 4, "as published", ComparisonPlan((), {}, False, False, None), EvaluateConfig(metrics=(name,))
        )
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""


def test_metrics_without_weights_need_no_package(monkeypatch):
    monkeypatch.setattr(
        "championship_sr.evaluate.metrics.learned_metric", lambda name: pytest.fail(f"{name} was loaded")
    )
    check_learned(["psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"])
