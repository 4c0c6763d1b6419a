"""Attention that begins by looking at its neighbours, as a convolution does."""

import torch
from torch import nn

OFFSETS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))  # one for each head, in turn


@torch.no_grad()
def start_local(network: nn.Module) -> int:
    """Lowers the position bias of untrained window attention by the squared distance from each head's own offset.

    A network starts with attention that is nearly uniform over the window, and small amounts of training are spent on
    finding out that near pixels matter. Returns the number of layers that were changed: those with a
    `relative_position_bias_table` ((2 w - 1)^2, heads), as in Swin, HAT and DRCT.

    source  d'Ascoli et al. 2021, "ConViT: improving vision transformers with soft convolutional inductive biases"
    """
    changed = 0
    for layer in network.modules():
        table = getattr(layer, "relative_position_bias_table", None)
        if not isinstance(table, nn.Parameter):
            continue
        side = round(len(table) ** 0.5)
        if side**2 != len(table):
            continue
        rows, columns = torch.meshgrid(*2 * [torch.arange(side) - side // 2], indexing="ij")
        for head in range(table.shape[1]):
            row, column = OFFSETS[head % len(OFFSETS)]
            table[:, head] -= ((rows - row) ** 2 + (columns - column) ** 2).flatten()
        changed += 1
    return changed
