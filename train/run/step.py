"""One optimiser step: forward, losses, backward, exchange, clipping, update, moving average."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from championship_sr.extract.device import has_bf16
from championship_sr.store.errors import ConfigError
from championship_sr.train.config import GRAPH_MODES, OptimiserConfig
from championship_sr.train.data.batch import Batch
from championship_sr.train.losses.combined import Criterion
from championship_sr.train.processes import World
from championship_sr.train.run.ema import Ema
from championship_sr.train.run.layouts import Times, choose_layouts
from championship_sr.train.run.watch import add

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """The network, its moving average and the optimiser, and how they take a step."""

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion,
        config: OptimiserConfig,
        *,
        ema_decay: float,
        precision: str,
        accumulation: int,
        world: World,
        compiled: bool | str = False,
    ) -> None:
        self.network, self.criterion, self.world, self.accumulation = network.train(), criterion, world, accumulation
        self.ema = Ema(network, ema_decay)
        self.clip_norm = config.clip_norm or math.inf
        self.optimiser = build_optimiser(network, config)
        self.precision = pick_precision(precision, world.device)
        self._forward, self._compiled = compiled_network(network, compiled), compiled
        # CUDA graphs give the gradients of every micro-batch in the same memory: they are added up in other tensors
        self._keeps_gradients = compiled in GRAPH_MODES and accumulation > 1
        if self._keeps_gradients:
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision is torch.float16)

    def step(
        self, number: int, batch: Batch, *, weights: Mapping[str, float], learning_rate: float, stop: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Takes the step of this number, from 0, without waiting for the device.

        returns  the loss, its parts and the gradient's norm before clipping, means over all processes;
                 and how many processes were asked to stop, over their number
        """
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        with compile_errors(self._compiled):
            values = self._gradients(batch, weights)
        stop_share = torch.full((), float(stop), device=self.world.device)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        self.world.mean([*gradients, *values.values(), stop_share])
        self.scaler.unscale_(self.optimiser)
        values["gradient_norm"] = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=not self._keeps_gradients)
        self.ema.update(number)
        return values, stop_share

    def choose_layouts(self, batch: Batch) -> Times:
        """On a CUDA device, gives depthwise convolutions the layout that is faster on such a batch; see layouts.py."""
        if self.world.device.type != "cuda":
            return {}
        part = micro_batches(batch, self.accumulation)[0]
        with self._autocast():
            return choose_layouts(self.network, partial(self.network, part.lr, part.images, part.features))

    def must_be_finite(self, values: Mapping[str, Tensor]) -> Tensor:
        """The values of a step that must be finite in a sound run."""
        # under fp16 the scaler finds its scale through overflowing gradients, and skips those steps
        return values["loss"] if self.scaler.is_enabled() else values["loss"] + values["gradient_norm"]

    def _gradients(self, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        parts = micro_batches(batch, self.accumulation)
        sums: dict[str, Tensor] = {}
        for part in parts:
            with self._autocast():
                sr = self._forward(part.lr, part.images, part.features)
            loss, values = self.criterion(sr, part.hr, weights, part.teacher)
            self.scaler.scale(loss / len(parts) if len(parts) > 1 else loss).backward()
            add(sums, {"loss": loss.detach(), **values})
        if len(parts) > 1:
            torch._foreach_div_(list(sums.values()), len(parts))
        return sums

    def _autocast(self) -> AbstractContextManager:
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=self.precision)


def compiled_network(network: nn.Module, compiled: bool | str) -> Callable[..., Tensor]:
    """The network by torch.compile, in the mode of that name if there is one; False: as it is."""
    if not compiled:
        return network
    mode = compiled if isinstance(compiled, str) else None
    return torch.compile(network, dynamic=False, fullgraph=True, mode=mode)  # the windows of a run have one size


@contextmanager
def compile_errors(compiled: bool | str) -> Iterator[None]:
    """Raises ConfigError where torch.compile fails in the block: at a network's first steps."""
    if not compiled:
        yield
        return
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ConfigError(
            f"train.compile={str(compiled).lower()}: torch.compile failed on this network or machine: {reason}; "
            "set train.compile to false"
        ) from error


def build_optimiser(network: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser of all of the network's parameters.

    source  Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon), its steps as large as AdamW's by Liu et al.
            2025, arXiv 2502.16982
    raises  ConfigError if Muon is asked for and timm is missing
    """
    arguments: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.kind == "adamw":
        return torch.optim.AdamW(network.parameters(), fused=True, **arguments)
    try:
        from timm.optim import Muon
    except ImportError:
        raise ConfigError("train.optimiser.kind=muon needs timm: pip install 'championship-sr[muon]'") from None
    return Muon(network.parameters(), nesterov=True, **arguments)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of the network's arithmetic; "auto" is bf16 on GPUs that support it, fp16 on others, fp32 elsewhere."""
    if name != "auto":
        return PRECISIONS[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if has_bf16(device) else torch.float16


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` equal parts.

    raises  ConfigError if it cannot be divided equally
    """
    size, rest = divmod(len(batch.lr), count)
    if rest:
        raise ConfigError(f"data.accumulation={count}: {len(batch.lr)} crops per process cannot be split evenly")
    return [_part(batch, slice(start, start + size)) for start in range(0, len(batch.lr), size)]


def _part(batch: Batch, rows: slice) -> Batch:
    features = {name: value[rows] for name, value in batch.features.items()}
    return replace(
        batch,
        lr=batch.lr[rows],
        hr=batch.hr[rows],
        images=batch.images[rows],
        features=features,
        places=batch.places[rows],
        teacher=None if batch.teacher is None else batch.teacher[rows],
    )
