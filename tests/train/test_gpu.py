"""What only a GPU can show; skipped where there is none."""

import pytest
import torch

from championship_sr.extract.device import has_bf16
from championship_sr.store.shards.reader import Store
from championship_sr.train.bench.phases import example
from championship_sr.train.config import OptimiserConfig
from championship_sr.train.data.batch import Batch
from championship_sr.train.data.whole import WholeImage, in_tiles
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.layers.large_kernel import LAYOUTS
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.losses.combined import Criterion
from championship_sr.train.processes import World
from championship_sr.train.run.loop import train
from championship_sr.train.run.step import Trainer
from championship_sr.train.run.watch import Meter, Watch
from tests.train.loaders import loader_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)
CHANNELS = {"a": 180, "b": 256}
WEIGHTS = {"l1": 1.0, "ssim": 0.1, "swt": 0.1, "fft": 0.1, "edge": 0.1}


def trainer(profile: str, precision: str = "auto") -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        build_fusion(FusionConfig(profile=profile), CHANNELS, 4).to(GPU), Criterion(WEIGHTS).to(GPU),
        OptimiserConfig(), ema_decay=0.99, precision=precision, accumulation=1, world=World(GPU),
    )  # fmt: skip


def batch(size: int = 2, crop: int = 64) -> Batch:
    lr, images, features = example(CHANNELS, 4, batch=size, crop=crop, device=GPU)
    return Batch(lr, images[:, 0].contiguous(), images, features, [("image", 0, 0, "identity")] * size)


def step(taken: Trainer, windows: Batch, number: int = 0) -> dict[str, torch.Tensor]:
    values, _ = taken.step(number, windows, weights=WEIGHTS, learning_rate=1e-4, stop=False)
    return values


@pytest.mark.parametrize("profile", ["swift", "paper", "direct", "cnn"])
def test_a_step_in_bf16_is_finite(profile):
    if not has_bf16(GPU):
        pytest.skip("this GPU only emulates bfloat16")
    taken = trainer(profile)
    assert taken.precision is torch.bfloat16
    assert all(value.isfinite() for value in step(taken, batch()).values())


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("profile", ["swift", "paper"])
def test_attention_takes_more_pixels_than_a_grid_of_flash_attention_has(profile, size):
    network = build_fusion(FusionConfig(profile=profile), CHANNELS, 4).to(GPU)
    with torch.no_grad(), torch.autocast("cuda"):
        windows = batch(size)
        assert network(windows.lr, windows.images, windows.features).isfinite().all()


def test_no_call_of_a_step_waits_for_the_gpu():
    taken, windows, watch, meter = trainer("swift"), batch(), Watch(World(GPU), ""), Meter()
    step(taken, windows)  # makes what is made once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 5):
            values, stop = taken.step(number, windows, weights=WEIGHTS, learning_rate=1e-4, stop=False)
            watch(number, windows.places, taken.must_be_finite(values), stop)
            meter.add(values, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    watch.flush()


@pytest.mark.parametrize("profile", ["swift", "paper"])
def test_depthwise_convolutions_take_the_faster_layout_and_compute_the_same_in_both(profile):
    taken, windows = trainer(profile), batch()
    times = taken.choose_layouts(windows)
    blocks = {name: taken.network.get_submodule(name) for name in ("bands.surroundings", "collaboration.surroundings")}
    assert set(times) == set(blocks)
    for name, block in blocks.items():
        assert block.layout == min(times[name], key=times[name].__getitem__)
        tokens = torch.randn(2, 2, 32, 32, block.square.in_channels, device=GPU)
        results = []
        for layout in LAYOUTS:
            block.layout = layout
            results.append(block.across(tokens))
        torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)  # cuDNN may use TF32 here
    assert all(value.isfinite() for value in step(taken, windows).values())


def test_batches_come_as_on_the_cpu(shared_store):
    options = {"batch_size": 2, "crop_px": 8, "seed": 3}
    here = loader_of(Store(shared_store), **options).batches(0, 12)
    there = loader_of(Store(shared_store), **options, device=GPU).batches(0, 12)
    for one, other in zip(here, there, strict=True):
        assert one.places == other.places and other.images.device == GPU
        torch.testing.assert_close(other.images.cpu(), one.images)
        for name, value in one.features.items():
            torch.testing.assert_close(other.features[name].cpu(), value)


def test_a_whole_run_trains_validates_and_is_resumed(shared_store, make_config, tmp_path):
    config = make_config(device="cuda", precision="auto", data={"threads": 2})
    run = train(config, shared_store, tmp_path / "run")
    train(make_config(device="cuda", steps=10), shared_store, run, resume=True, changes=True)


def test_an_image_in_tiles_is_near_the_whole_one():
    network = build_fusion(FusionConfig(), CHANNELS, 4).to(GPU).eval()
    windows = batch(1, 256)
    whole = WholeImage(windows.lr, windows.hr, windows.images, windows.features)
    with torch.no_grad():
        tiled = in_tiles(network, whole, 4, 96)
        assert (tiled - network(windows.lr, windows.images, windows.features)).abs().mean() < 0.01
