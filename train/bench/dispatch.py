"""Counts what a training step sends to the device: operations, kernels, and points where the host would wait.

A step is counted on torch's `meta` device, whose tensors have shapes and no contents. This takes no time and needs no
GPU, follows the code's path for devices other than the CPU, and shows where the host would wait: at numbers that are
read back, and at host tensors that are uploaded on the way.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default}  # .item(); torch.tensor(1.0)
NO_KERNELS = (  # allocations without contents, and a view that is not marked as one
    "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view",
)  # fmt: skip


class Dispatched(TorchDispatchMode):
    """Counts what is dispatched while the block runs, backward passes included.

    operations        every call of an operator
    kernels           those that compute or copy: neither views nor bare allocations
    synchronisations  name of the operator -> how often it made the host wait for the device, or would on a GPU
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[OpOverload] = Counter()
        self.synchronisations: Counter[str] = Counter()

    @property
    def operations(self) -> int:
        return self.calls.total()

    @property
    def kernels(self) -> int:
        return sum(count for operator, count in self.calls.items() if is_kernel(operator))

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        self.calls[operator] += 1
        if waits(operator, args, kwargs):
            self.synchronisations[str(operator)] += 1
        if operator is torch.ops.aten._local_scalar_dense.default and args[0].device == META:
            return 1  # placeholder for the number that would be read
        return laid_out(operator, args, operator(*args, **kwargs))


def laid_out(operator: OpOverload, args: tuple, result: Any) -> Any:
    """The result as a GPU lays it out in memory: on the meta device convolutions ignore that channels lie last.

    source  cudnn_conv_suggest_memory_format in ATen/native/ConvUtils.h, and its uses in cudnn/ConvShared.cpp
    """
    if operator is torch.ops.aten.convolution.default and result.device == META:
        return _laid_out_by(result, args[0], args[1])
    if operator is torch.ops.aten.convolution_backward.default and args[0].device == META:
        (grad, x, weight), (grad_x, grad_weight, grad_bias) = args[:3], result
        return _laid_out_by(grad_x, grad, weight), _laid_out_by(grad_weight, x, grad), grad_bias
    return result


def _laid_out_by(result: Tensor | None, *operands: Tensor) -> Tensor | None:
    """The result with channels last if they lie last in one of the operands."""
    formats = [suggest_memory_format(operand) for operand in operands]
    if result is None or torch.channels_last not in formats:
        return result
    return result.contiguous(memory_format=torch.channels_last)


def is_kernel(operator: OpOverload) -> bool:
    """Whether the operator computes or copies something."""
    return not operator.is_view and operator._schema.name.partition("::")[2] not in NO_KERNELS


def waits(operator: OpOverload, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether the host waits at this call: for a number, or for a copy from or to pageable memory."""
    if operator in WAITING:
        return True
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    of_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if operator is torch.ops.aten._to_copy.default:
        target = torch.device(kwargs.get("device") or args[0].device).type
        return (target == "cpu") != bool(of_host) and not _overlaps(args[0], target, kwargs.get("non_blocking"))
    if operator is torch.ops.aten.copy_.default and 0 < len(of_host) < len(tensors):
        return not _overlaps(args[1], args[0].device.type, kwargs.get("non_blocking", len(args) > 2 and args[2]))
    return False


def _overlaps(source: Tensor, target: str, non_blocking: bool | None) -> bool:
    """Whether a copy between host and device runs asynchronously."""
    return bool(non_blocking) and (target == "cpu" or source.is_pinned())


def count_step(network: nn.Module, inputs: tuple[Tensor, Tensor, Mapping[str, Tensor]]) -> Dispatched:
    """What forward, L1 loss and backward of the network dispatch on a device other than the CPU.

    inputs  LR, the experts' images and their features, as `forward` takes them
    """
    network, (lr, images, features) = copy.deepcopy(network).to(META), moved(inputs)
    target = images[:, 0].contiguous()

    def step() -> None:
        network.zero_grad()  # as in training, where each step has new gradients instead of adding to old ones
        network(lr, images, features).sub(target).abs().mean().backward()

    return dispatched(step)


def dispatched(step: Callable[[], object]) -> Dispatched:
    """What a step on the meta device dispatches, once everything that only the first step makes exists."""
    with on_meta():
        for _ in range(2):
            with Dispatched() as counts:
                step()
    return counts


def moved(value: Any) -> Any:
    """Tensors, and tuples and mappings of them, on the meta device."""
    if isinstance(value, Tensor):
        return value.to(META)
    if isinstance(value, Mapping):
        return {name: moved(part) for name, part in value.items()}
    return tuple(moved(part) for part in value)


@contextmanager
def on_meta() -> Iterator[None]:
    """Lets code in the block request autocast on the meta device, where torch has none and it stays off."""
    autocast, dtype, enabled = torch.autocast, torch.get_autocast_dtype, torch.is_autocast_enabled

    def of(device: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device == "meta" else autocast(device, *args, **kwargs)

    with (
        mock.patch("torch.autocast", of),
        mock.patch("torch.get_autocast_dtype", lambda device: torch.float32 if device == "meta" else dtype(device)),
        mock.patch("torch.is_autocast_enabled", lambda *device: device != ("meta",) and enabled(*device)),
    ):
        yield


def compiles_whole(network: nn.Module, inputs: tuple[Tensor, Tensor, Mapping[str, Tensor]]) -> bool:
    """Whether torch.compile takes forward and backward of a training step as one graph each."""
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="aot_eager")
    try:
        compiled(*inputs).mean().backward()
    except torch._dynamo.exc.TorchDynamoException:
        return False
    finally:
        torch.compiler.reset()
        network.zero_grad()
    return True
