"""The layout of large kernel attention's depthwise convolutions, measured where training begins on a GPU."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from championship_sr.train.fusion.layers.large_kernel import LAYOUTS, LKABlock

ROUNDS = 10

Times = dict[str, dict[str, float]]
"""Block -> layout -> seconds of a forward and backward pass."""


def measured(block: LKABlock, x: Tensor) -> float:
    """Seconds of the block's depthwise convolutions, forward and backward, once cuDNN has chosen how it runs them."""
    weights = [parameter for conv in (block.square, block.row, block.column) for parameter in conv.parameters()]
    x = x.detach().requires_grad_()

    def step() -> None:
        y = block.depthwise(x)
        torch.autograd.grad(y, [x, *weights], torch.ones_like(y))

    return Timer("step()", globals={"step": step}).timeit(ROUNDS).mean


def choose_layouts(
    network: nn.Module, forward: Callable[[], object], seconds: Callable[[LKABlock, Tensor], float] = measured
) -> Times:
    """Gives each block the layout in which its depthwise convolutions are faster; returns what was measured.

    forward  runs the network on a batch of training, whose shapes are measured
    """
    blocks = {name: block for name, block in network.named_modules() if isinstance(block, LKABlock)}
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, block in blocks.items():

            def keep(_module: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                inputs[name] = arguments[0].contiguous(memory_format=torch.channels_last)

            stack.callback(block.square.register_forward_pre_hook(keep).remove)
        forward()
    times: Times = {}
    for name, x in inputs.items():
        block, times[name] = blocks[name], {}
        for layout in LAYOUTS:
            block.layout = layout
            times[name][layout] = seconds(block, x)
        block.layout = min(times[name], key=times[name].__getitem__)
    return times
