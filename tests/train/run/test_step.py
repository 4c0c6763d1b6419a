"""What a training step makes the host wait for: nothing."""

from functools import partial
from importlib import import_module
from typing import get_args, get_type_hints

import pytest
import torch

from championship_sr.store.errors import ConfigError
from championship_sr.train.bench.dispatch import META, WAITING, Dispatched, dispatched, moved, waits
from championship_sr.train.bench.phases import example
from championship_sr.train.config import COMPILE_MODES, OptimiserConfig, learning_rate, span
from championship_sr.train.data.batch import Batch
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.losses.combined import Criterion
from championship_sr.train.processes import World
from championship_sr.train.run.step import Trainer, compile_errors, compiled_network, pick_precision
from championship_sr.train.run.watch import Meter, Watch

CHANNELS = {"a": 4, "b": 6}
WEIGHTS = {"l1": 1.0, "charbonnier": 1.0, "ssim": 0.1, "swt": 0.1, "fft": 0.1, "edge": 0.1}
OPTIMISERS = get_args(get_type_hints(OptimiserConfig)["kind"])


def trainer_on(device, profile="swift", accumulation=1, optimiser="adamw", precision="fp32", **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        build_fusion(FusionConfig(profile=profile), CHANNELS, 2).to(device), Criterion(WEIGHTS).to(device),
        OptimiserConfig(kind=optimiser), ema_decay=0.99, precision=precision, accumulation=accumulation,
        world=World(device), **options,
    )  # fmt: skip


def batch_on(device) -> Batch:
    lr, images, features = example(CHANNELS, 2, batch=2, crop=8)
    if device == META:
        lr, images, features = moved((lr, images, features))
    return Batch(lr, images[:, 0].clone(), images, features, [("image", 0, 0, "identity")] * 2)


@pytest.fixture
def optimiser_on_meta(monkeypatch):
    """torch's fused optimiser on the meta device too, where it is not offered."""
    for module in ("torch.optim.optimizer", "torch.optim.adam"):
        monkeypatch.setattr(import_module(module), "_device_dtype_check_for_fused", lambda *_: None)


@pytest.fixture
def muon_on_meta(monkeypatch):
    """timm's Muon as on a GPU; the numbers that it reads from tensors of the host, its counters, make nothing wait."""
    nadamw = pytest.importorskip("timm.optim.nadamw")
    monkeypatch.setattr(nadamw, "_resolve_foreach", lambda *_, **__: True, raising=False)

    def of_device(operator, args, kwargs) -> bool:
        on_host = operator in WAITING and args[0].device.type == "cpu"
        return not on_host and waits(operator, args, kwargs)

    monkeypatch.setattr("championship_sr.train.bench.dispatch.waits", of_device)


def whole_step(trainer, make_config, batch, device):
    """A step as the loop takes it: schedule, loss, backward, clipping, update, moving average, watch and means."""
    config = make_config(steps=100, schedule={"warmup": 10})
    rate, watch, meter = learning_rate(config, span(config, 100)), Watch(World(device), ""), Meter()
    values, stop = trainer.step(3, batch, weights=WEIGHTS, learning_rate=rate(3), stop=False)
    watch(3, batch.places, trainer.must_be_finite(values), stop)
    meter.add(values, 0.1)
    meter.add(values, 0.1)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("profile", ["swift", "paper", "cnn"])
def test_a_step_reads_no_number_back_and_uploads_nothing(profile, accumulation, make_config, optimiser_on_meta):
    trainer = trainer_on(META, profile, accumulation)
    counts = dispatched(partial(whole_step, trainer, make_config, batch_on(META), META))
    assert not counts.synchronisations
    assert counts.kernels > 100  # it was a whole step


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_no_optimiser_waits_for_the_device(optimiser, make_config, optimiser_on_meta, muon_on_meta):
    trainer = trainer_on(META, "cnn", optimiser=optimiser)
    counts = dispatched(partial(whole_step, trainer, make_config, batch_on(META), META))
    assert not counts.synchronisations and counts.kernels > 100


def test_adamw_takes_or_skips_a_scaled_step_without_a_number_being_read():
    trainer = trainer_on(torch.device("cpu"), "cnn", precision="fp16")
    trainer.scaler.scale(sum(parameter.sum() for parameter in trainer.network.parameters())).backward()
    trainer.scaler.unscale_(trainer.optimiser)
    with Dispatched() as counts:
        trainer.scaler.step(trainer.optimiser)
    assert not counts.synchronisations and counts.kernels


def test_a_step_on_the_cpu_reads_no_number_back_either(make_config):
    trainer, batch = trainer_on(torch.device("cpu")), batch_on(torch.device("cpu"))
    whole_step(trainer, make_config, batch, torch.device("cpu"))
    with Dispatched() as counts:
        whole_step(trainer, make_config, batch, torch.device("cpu"))
    assert not counts.synchronisations and counts.kernels > 100


def test_the_numbers_of_a_step_are_looked_at_when_they_have_arrived(monkeypatch):
    asked = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            asked.append(self.number)

    made = iter(range(100))
    monkeypatch.setattr("championship_sr.train.run.watch.to_host", lambda numbers: (numbers, Event(next(made))))
    watch = Watch(World(META), "")
    for step in range(5):
        watch(step, [], torch.tensor(0.0), torch.tensor(float(step == 1)))
        assert asked == list(range(step - 2)) and watch.stop_wanted == (step >= 4)
    watch.flush()
    assert asked == [0, 1, 2, 3, 4]


def test_a_compiled_run_of_twenty_steps_equals_the_eager_one(monkeypatch):
    # the graphs alone: making C++ of them takes minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    def losses(compiled: bool) -> list[float]:
        torch.compiler.reset()
        trainer, batch = trainer_on(torch.device("cpu"), "cnn", compiled=compiled), batch_on(torch.device("cpu"))
        steps = (trainer.step(n, batch, weights={"l1": 1.0}, learning_rate=1e-4, stop=False) for n in range(20))
        return [values["loss"].item() for values, _ in steps]

    assert losses(True) == pytest.approx(losses(False), abs=1e-4)


@pytest.mark.slow
def test_weights_of_a_run_with_cuda_graphs_wanted_are_the_eager_ones():
    # on a CPU inductor leaves the graphs out; all else of that mode is as on a GPU
    def weights(compiled: bool | str) -> list[torch.Tensor]:
        torch.compiler.reset()
        trainer, batch = trainer_on(torch.device("cpu"), "lean", compiled=compiled), batch_on(torch.device("cpu"))
        for number in range(3):
            trainer.step(number, batch, weights={"l1": 1.0}, learning_rate=1e-4, stop=False)
        return [parameter.detach() for parameter in trainer.network.parameters()]

    for found, expected in zip(weights("reduce-overhead"), weights(False), strict=True):
        assert (found - expected).abs().max() < 1e-4


class OneReplay(torch.autograd.Function):
    """What a CUDA graph does to gradients: those of each replay come in the same memory."""

    @staticmethod
    def forward(ctx, call, memory, *parameters):
        with torch.enable_grad():
            ctx.image = call()
        ctx.memory, ctx.parameters = memory, parameters
        return ctx.image.detach()

    @staticmethod
    def backward(ctx, grad):
        for kept, made in zip(ctx.memory, torch.autograd.grad(ctx.image, ctx.parameters, grad), strict=True):
            kept.copy_(made)
        return None, None, *(kept.detach() for kept in ctx.memory)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_micro_batches_add_up_where_their_gradients_come_in_the_same_memory(monkeypatch, accumulation):
    def replayed(network, **_options):
        memory = [torch.empty_like(parameter) for parameter in network.parameters()]
        return lambda *inputs: OneReplay.apply(partial(network, *inputs), memory, *network.parameters())

    monkeypatch.setattr(torch, "compile", replayed)
    cpu = torch.device("cpu")

    def weights(compiled: bool | str) -> list[torch.Tensor]:
        trainer, batch = trainer_on(cpu, "lean", accumulation, compiled=compiled), batch_on(cpu)
        for number in range(3):
            trainer.step(number, batch, weights={"l1": 1.0}, learning_rate=1e-3, stop=False)
        return [parameter.detach() for parameter in trainer.network.parameters()]

    for found, expected in zip(weights("reduce-overhead"), weights(False), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_network_that_cannot_be_compiled_is_one_sentence():
    class Broken(torch.nn.Linear):
        def forward(self, lr, images, features):
            return super().forward(lr) if lr.sum().item() > 0 else lr

    message = (
        r"train\.compile=default: torch\.compile failed on this network or machine: .+; set train\.compile to false"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"), compile_errors("default"):
        compiled_network(Broken(8, 8), "default")(torch.ones(8, 8), None, {})


def test_compile_is_a_switch_or_the_name_of_a_mode(make_config):
    for value in (True, False, "reduce-overhead"):
        assert make_config(compile=value).compile == value
    modes = "expected true, false or a mode of torch.compile: default, reduce-overhead, max-autotune, max-auto"
    with pytest.raises(ConfigError, match=f"^tiny: train.compile: {modes}.*found 'fast'"):
        make_config(compile="fast")
    assert set(COMPILE_MODES) < set(torch._inductor.list_mode_options())


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_bf16_only_where_the_hardware_has_it(monkeypatch, bf16, dtype):
    monkeypatch.setattr("championship_sr.train.run.step.has_bf16", lambda device: bf16)
    assert pick_precision("auto", torch.device("cuda")) is dtype
    assert pick_precision("auto", torch.device("cpu")) is torch.float32
