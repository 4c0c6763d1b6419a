"""One frozen expert, ready to run: padding, precision, taps and checks around its network."""

import contextlib
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from championship_sr.extract.config import ExpertConfig
from championship_sr.extract.device import float32_products
from championship_sr.extract.experts.networks import Network, load_network
from championship_sr.extract.experts.taps import TapShape, captured, possible_shapes, to_lr_grid
from championship_sr.extract.limits import peak_tflops
from championship_sr.store.errors import ConfigError, StoreError, WeightsError

COUNTED_PX = 32  # side of the image whose operations are counted, at least
PROBE_SIZES = ((32, 48), (48, 80))  # not square; the second one only where the first leaves a tap's layout open
CODE = "code"  # the key of an identity for what is known of a network's source
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteError(StoreError):
    """An expert's output that holds NaN or Inf."""


class LoadedExpert:
    """A frozen expert: LR image in, SR image and tapped features out.

    Always in evaluation mode and without gradients, whatever is called around it. Close it, or use it in a `with`
    block, to take its hooks off the network.
    """

    def __init__(
        self,
        config: ExpertConfig,
        network: Network,
        device: torch.device,
        scale: int | None,
        *,
        precision: str = "fp32",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        self.name, self.config, self.device = config.name, config, device
        self.scale = scale or 0  # 0 until the network's first output shows it
        self.n_parameters = sum(p.numel() for p in network.model.parameters())
        self._network, self.precision = network, precision
        self._channels_last, self._compiled = channels_last, compiled
        network.model.to(device)
        if channels_last:
            network.model.to(memory_format=torch.channels_last)
        self._hooks = ExitStack()
        self.open()  # before the first forward: hooks that are set after a compiled one never fire
        self._forward = torch.compile(network.call) if compiled else network.call
        try:
            self._shapes = self._probe()
        except BaseException:
            self.close()
            raise

    @property
    def channels(self) -> dict[str, int]:
        """Tap name -> channels of its tensor."""
        return {name: shape.channels for name, shape in self._shapes.items()}

    @property
    def multiple_px(self) -> int:
        """What the sides of the network's input are padded to a multiple of."""
        return self._network.multiple_px

    @property
    def align_px(self) -> int:
        """What tiles begin at multiples of."""
        return self._network.align_px

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides this expert's output, as plain values."""
        points, code = self.config.points, self._network.code
        return {
            "architecture": self._network.architecture,
            **({CODE: code} if code else {}),
            "hyperparameters": self._network.hyperparameters,
            "weights_sha256": self._network.weights_sha256,
            "random_weights": self._network.weights_sha256 is None,
            "taps": {
                name: {"path": points[name].path, "side": points[name].side, "item": points[name].item} | shape.record()
                for name, shape in self._shapes.items()
            },
            "window_px": self._network.multiple_px,
            "align_px": self._network.align_px,
            "precision": self.precision,
            "channels_last": self._channels_last,
            "compile": self._compiled,
            "versions": {"torch": torch.__version__, "spandrel": version("spandrel")},
        }

    @torch.no_grad()
    def __call__(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The SR image in 0..1 and the tapped features, float32.

        lr       (B, 3, h, w), 0..1, of any size
        returns  (B, 3, scale*h, scale*w), and for each tap (B, C, h, w)
        raises   NonFiniteError
        """
        sr, features = self.unchecked(lr)
        self._check_finite({"sr": sr} | features)
        return sr.clamp(0, 1), features

    @torch.no_grad()
    def unchecked(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, neither checked nor clipped, without waiting for a GPU."""
        height, width = lr.shape[-2:]
        padded = self.pad(lr.to(self.device))
        try:
            sr = self._run(padded)[..., : self.scale * height, : self.scale * width].float()
            size = padded.shape[-2], padded.shape[-1]
            return sr, {
                name: to_lr_grid(self._seen.pop(name).float(), shape, size, (height, width))
                for name, shape in self._shapes.items()
            }
        finally:
            self._seen.clear()  # a forward that failed leaves no tensors behind

    def bare(self, padded: Tensor) -> Tensor:
        """The network's own output for an image that needs no padding, to measure a bare forward."""
        return self._run(padded)

    @torch.no_grad()
    def flop_per_px(self) -> float:
        """Floating-point operations of the network for one LR pixel, counted on a small image without padding."""
        side = -(-max(COUNTED_PX, self.minimum_px) // self.multiple_px) * self.multiple_px
        with FlopCounterMode(display=False) as counter:
            self._network.call(torch.zeros(1, 3, side, side, device=self.device))
        self._seen.clear()
        return counter.get_total_flops() / side**2

    def peak_tflops(self) -> float:
        """What its device reaches in one large matrix product in its precision."""
        return peak_tflops(self.device, AUTOCAST.get(self.precision, torch.float32), self.precision == "tf32")

    def open(self) -> None:
        """Puts the hooks on the network."""
        self._seen = self._hooks.enter_context(captured(self._network.model, self.config.points))

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._hooks.close()

    def __enter__(self) -> "LoadedExpert":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _run(self, padded: Tensor) -> Tensor:
        dtype = AUTOCAST.get(self.precision)
        autocast = torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()
        if self._channels_last:
            padded = padded.contiguous(memory_format=torch.channels_last)
        with autocast, float32_products(tf32=self.precision == "tf32"):
            return self._forward(padded)

    @property
    def minimum_px(self) -> int:
        """What the sides of the network's input are at least."""
        return self._network.minimum_px

    def pad(self, image: Tensor) -> Tensor:
        """The image, reflected beyond its right and lower edge up to the network's window multiple."""
        return pad_to(image, self._network.multiple_px, self._network.minimum_px)

    def _check_finite(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            # a finite sum has finite terms, and costs a twentieth of checking each; the sum itself can overflow
            if not (torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):
                raise self.non_finite(name)

    def non_finite(self, name: str) -> NonFiniteError:
        """The message for an output that is not finite."""
        return NonFiniteError(
            f"expert {self.name}: {name} contains NaN or Inf at precision {self.precision}; {self._advice}"
        )

    @property
    def _advice(self) -> str:
        if self.precision == "fp32":
            return "the weights may be damaged"
        safer = "bf16 or fp32" if self.precision == "fp16" else "fp32"
        return f"set extract.precision to {safer}"

    @torch.no_grad()
    def _probe(self) -> dict[str, TapShape]:
        """The shapes of the taps, from a small image; checks scale, taps and finiteness before any real work."""
        shapes: dict[str, set[TapShape]] = {}
        for size in PROBE_SIZES:
            candidates = self._probe_at(size)
            shapes = {name: candidates[name] & shapes.get(name, candidates[name]) for name in candidates}
            if all(len(left) == 1 for left in shapes.values()):
                return {name: left.pop() for name, left in shapes.items()}
        open_name = next(name for name, left in shapes.items() if len(left) != 1)
        layouts = " or ".join(shape.layout for shape in shapes[open_name]) or "of another layout at each size"
        raise ConfigError(f"expert {self.name}: tap {open_name} could be {layouts}; set its layout")

    def _probe_at(self, size: tuple[int, int]) -> dict[str, set[TapShape]]:
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(self.device)
        padded = self.pad(image)
        height, width = padded.shape[-2:]
        try:
            sr = self._run(padded)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            line = str(error).strip().partition("\n")[0]
            raise WeightsError(f"expert {self.name}: fails on an image of {height} x {width}: {line}") from error
        self.scale = self.scale or max(1, sr.shape[-1] // width)
        if tuple(sr.shape) != (1, 3, self.scale * height, self.scale * width):
            raise WeightsError(
                f"expert {self.name}: returns {tuple(sr.shape)} for (1, 3, {height}, {width}), "
                f"expected x{self.scale} RGB"
            )
        points = self.config.points
        silent = [points[name].path for name in points if name not in self._seen]
        if silent:
            raise ConfigError(f"expert {self.name}: tap {', '.join(silent)} is not reached in the forward pass")
        seen = {name: self._seen.pop(name) for name in points}
        self._check_finite({"sr": sr} | seen)
        return {name: possible_shapes(seen[name], points[name], (height, width)) for name in points}


def pad_to(image: Tensor, multiple: int, minimum: int = 1) -> Tensor:
    """The image, reflected beyond its right and lower edge to sides of a multiple, at least the minimum."""
    sizes = [max(n, minimum) for n in image.shape[-2:]]
    down, right = (-(-n // multiple) * multiple - m for n, m in zip(sizes, image.shape[-2:], strict=True))
    while down or right:  # one reflection extends the image by at most its own size
        step_down, step_right = min(down, image.shape[-2] - 1), min(right, image.shape[-1] - 1)
        if not (step_down or step_right):
            return functional.pad(image, (0, right, 0, down), mode="replicate")
        image = functional.pad(image, (0, step_right, 0, step_down), mode="reflect")
        down, right = down - step_down, right - step_right
    return image


def load_expert(
    config: ExpertConfig,
    device: torch.device,
    scale: int | None,
    random_weights: bool = False,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    compiled: bool = False,
) -> LoadedExpert:
    """The expert on its device, its weights loaded strictly and tried on a small image.

    scale   required scale; None: the one that it is trained for, or that its outputs have
    raises  WeightsError, ConfigError (a tap that does not exist), NonFiniteError
    """
    if scale is None and config.pretrain:
        scale = config.pretrain.scale
    network = load_network(config, scale, random_weights)
    return LoadedExpert(
        config, network, device, scale, precision=precision, channels_last=channels_last, compiled=compiled
    )
