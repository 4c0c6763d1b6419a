"""Live experts give what the store holds of whole images, and the augmentations that need them are right."""

from contextlib import closing
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from championship_sr.extract.experts.expert import NonFiniteError
from championship_sr.store.config import build
from championship_sr.store.errors import ConfigError, WeightsError
from championship_sr.train.bench.dispatch import META, dispatched
from championship_sr.train.config import LiveConfig
from championship_sr.train.data.batch import Batch
from championship_sr.train.processes import World
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.live import LiveExperts, LiveLoader, coloured, gaussian_blur, rescaled, window_px
from championship_sr.train.run.loop import train
from championship_sr.train.run.watch import Watch

SIDE = 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def edsr_files(tmp_path_factory):
    """Two small experts' weights."""
    from championship_sr.extract.edsr import EDSR

    folder = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        save_file(EDSR(num_feat=8, num_block=1).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def edsr_store(edsr_files, tmp_path_factory):
    """A store of three images of 16 x 16 LR pixels, kept in full precision."""
    from championship_sr.extract.config import ExtractConfig
    from championship_sr.extract.run.extraction import extract

    root = tmp_path_factory.mktemp("live")
    rng = np.random.default_rng(0)
    (root / "hr").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (4 * SIDE, 4 * SIDE, 3), np.uint8)).save(root / "hr" / f"{number}.png")
    config = {
        "store": str(root / "store"),
        "data": {"hr": [str(root / "hr")]},
        "experts": [
            {"name": name, "weights": str(edsr_files / f"{name}.safetensors"), "tap": "conv_after_body"}
            for name in ("a", "b")
        ],
        "codecs": {"sr": "float32", "features": "float32"},
        "device": "cpu",
    }
    extract(build(ExtractConfig, config, "test"))
    return root / "store"


def losses(run) -> list[float]:
    return [event["loss"] for event in read_metrics(run) if event["event"] == "train"]


def test_store_and_live_give_equal_losses_on_windows_that_are_whole_images(edsr_store, make_config, tmp_path):
    changes = {"steps": 4, "data": {"crop_px": SIDE}, "validation": {"every": 2}}
    stored = train(make_config(**changes), edsr_store, tmp_path / "stored")
    live = train(make_config(**changes, live={"enabled": True}), edsr_store, tmp_path / "live")
    assert losses(live) == pytest.approx(losses(stored), rel=1e-5) and len(losses(live)) == 4
    psnrs = [[e["psnr"] for e in read_metrics(run) if e["event"] == "validation"] for run in (stored, live)]
    assert psnrs[0] == pytest.approx(psnrs[1], abs=1e-4)


def test_live_training_takes_windows_changed_in_colour_sharpness_and_size(edsr_store, make_config, tmp_path):
    live = {"enabled": True, "colour_jitter": 1.0, "blur": 1.0, "crop_scale": [0.9, 1.1]}
    plain, changed = (
        train(make_config(steps=2, live=each), edsr_store, tmp_path / name)
        for name, each in (("plain", {"enabled": True}), ("changed", live))
    )
    assert np.isfinite(losses(changed)).all() and losses(changed)[0] != losses(plain)[0]


@pytest.fixture
def two_experts(edsr_files):
    """Both experts as live training runs them."""
    from championship_sr.extract.config import ExpertConfig
    from championship_sr.extract.experts.expert import load_expert

    contents = [{"name": n, "weights": str(edsr_files / f"{n}.safetensors"), "tap": "conv_after_body"} for n in "ab"]
    configs = [build(ExpertConfig, content, "test") for content in contents]
    with closing(LiveExperts({c.name: load_expert(c, CPU, 4) for c in configs}, {})) as experts:
        yield experts


def test_live_experts_make_no_step_wait_for_the_device(two_experts):
    for expert in two_experts.experts.values():
        expert._network.model.to(META)
        expert.device = META
    loader = LiveLoader(
        SimpleNamespace(sampler=None, samples_per_epoch=1), two_experts, LiveConfig(), crop_px=8, seed=0
    )
    lr, hr = torch.empty(2, 3, 8, 8, device=META), torch.empty(2, 3, 32, 32, device=META)
    counts = dispatched(partial(loader.answered, 0, Batch(lr, hr, hr[:, None], {}, [("image", 0, 0, "identity")] * 2)))
    assert not counts.synchronisations and counts.kernels > 20


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expert_that_gives_no_numbers_is_named_before_the_loss_is_looked_at(two_experts, value):
    expert = two_experts.experts["b"]
    list(expert._network.model.parameters())[-1].data.fill_(value)  # the bias of its last convolution
    lr, loss, stop = torch.rand(1, 3, 8, 8), torch.tensor(float("nan")), torch.zeros(())
    images, _, check = two_experts.unchecked(lr)
    assert images.shape == (1, 2, 3, 32, 32)
    watch = Watch(World(CPU), "")
    watch(0, [], loss, stop, check)
    with pytest.raises(NonFiniteError, match=r"^expert b: sr contains NaN or Inf at precision fp32"):
        watch.flush()
    with pytest.raises(NonFiniteError, match="expert b: sr"):
        two_experts(lr)


def test_what_needs_the_experts_again_is_refused_on_a_store(edsr_store, make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"live\.blur: a store holds the experts' outputs.*Train with --live"):
        train(make_config(live={"blur": 0.5}), edsr_store, tmp_path / "run")


def test_an_expert_whose_weights_have_changed_is_told(edsr_store, edsr_files, make_config, tmp_path):
    other = {"name": "a", "weights": str(edsr_files / "b.safetensors"), "tap": "conv_after_body"}
    path = tmp_path / "a.yaml"
    from championship_sr.store.config import dump_yaml

    path.write_text(dump_yaml(other))
    with pytest.raises(WeightsError, match="a: was made with weights of sha256"):
        train(make_config(live={"enabled": True, "experts": [str(path)]}), edsr_store, tmp_path / "run")


def test_validation_folders_are_extracted_by_the_same_experts(edsr_store, make_config, tmp_path):
    folder = tmp_path / "hr"
    folder.mkdir()
    rng = np.random.default_rng(7)
    Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / "held.png")
    config = make_config(steps=2, validation={"hr": [str(folder)], "every": 1})
    run = train(config, edsr_store, tmp_path / "run")
    scored = next(event for event in read_metrics(run) if event["event"] == "validation")["images"]
    assert [name for name in scored if "held" in name] and len(scored) == 1


def test_colour_changes_lr_and_hr_alike():
    hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    lr = F.avg_pool2d(hr, 4)
    factors = torch.tensor([[1.05, 0.95, 1.04], [1.0, 1.0, 1.0]])
    new_lr, new_hr = coloured(lr, hr, factors)
    assert torch.allclose(F.avg_pool2d(new_hr, 4), new_lr, atol=1e-5)
    assert torch.allclose(new_hr[1], hr[1], atol=1e-6) and not torch.allclose(new_hr[0], hr[0], atol=1e-3)


def test_blur_is_scipys():
    image = torch.rand(1, 2, 24, 20, generator=torch.Generator().manual_seed(0))
    expected = np.stack([gaussian_filter(plane.numpy(), 1.5, mode="mirror", radius=4) for plane in image[0]])
    np.testing.assert_allclose(gaussian_blur(image, 1.5)[0], expected, atol=1e-6)


def test_a_rescaled_window_keeps_lr_and_hr_in_place():
    ramp = torch.linspace(0, 1, 80).expand(1, 3, 80, 80)
    lr = F.avg_pool2d(ramp, 4)
    for side in (14, 16, 18):
        new_lr, new_hr = rescaled(lr, ramp, side, 16)
        assert new_lr.shape[-1] == 16 and new_hr.shape[-1] == 64
        assert torch.allclose(F.avg_pool2d(new_hr, 4)[..., 2:-2], new_lr[..., 2:-2], atol=5e-3)
    assert window_px(LiveConfig(crop_scale=(0.9, 1.1)), 16) == 18


def test_live_experts_start_from_the_weights_that_the_store_gives(edsr_store, make_config, tmp_path):
    changes = {"steps": 1, "data": {"crop_px": SIDE}}
    runs = [train(make_config(**changes, live={"enabled": on}), edsr_store, tmp_path / str(on)) for on in (False, True)]
    stored, live = (read_metrics(run)[0] for run in runs)
    assert live["weights"] == pytest.approx(stored["weights"], abs=1e-5)
    assert live["psnr"]["fitted"] == pytest.approx(stored["psnr"]["fitted"], abs=1e-4)
