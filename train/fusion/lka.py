"""Large kernel attention: each pixel is gated by its 23 x 23 surroundings, then mixed over channels.

Source: Guo et al. 2022, "Visual Attention Network", sec. 3.1: a K x K convolution as a (2d-1) x (2d-1) depthwise one,
one of ceil(K/d) x ceil(K/d) taps with dilation d, and a pointwise one. The document has K = 21 and d = 3, and a row and
a column in place of the dilated square.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from train.fusion.blocks import first, gelu_linear, last

KERNEL = 21
DILATION = 3
TAPS = -(-KERNEL // DILATION)


class LargeKernelAttention(nn.Module):
    """x times its gate; depthwise in space, shared by all tokens; (B, h, w, T, C) to the same."""

    def __init__(self, dim: int, *, plain: bool = False) -> None:
        super().__init__()
        reach = DILATION * (TAPS // 2)
        self.square = nn.Conv2d(dim, dim, 2 * DILATION - 1, padding=DILATION - 1, groups=dim)
        self.row = nn.Conv2d(dim, dim, (1, TAPS), padding=(0, reach), dilation=(1, DILATION), groups=dim)
        self.column = nn.Conv2d(dim, dim, (TAPS, 1), padding=(reach, 0), dilation=(DILATION, 1), groups=dim)
        self.point = nn.Linear(dim, dim)
        self.plain = plain

    def forward(self, tokens: Tensor) -> Tensor:
        over_tokens = _token_by_token if self.plain else _tokens_as_channels
        gate = over_tokens((self.square, self.row, self.column), tokens)
        return tokens * self.point(gate)


class LKABlock(nn.Module):
    """LayerNorm, large kernel attention, LayerNorm, feed-forward; each added to its input."""

    def __init__(self, dim: int, expansion: int, *, plain: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = LargeKernelAttention(dim, plain=plain)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, expansion * dim)
        self.contract = nn.Linear(expansion * dim, dim)
        self.plain = plain

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + gelu_linear(self.expand(self.norm2(tokens)), self.contract, plain=self.plain)


def _token_by_token(convs: tuple[nn.Conv2d, ...], tokens: Tensor) -> Tensor:
    batch, rows, cols, n_tokens, dim = tokens.shape
    x = tokens.permute(0, 3, 4, 1, 2).reshape(batch * n_tokens, dim, rows, cols)
    for conv in convs:
        x = conv(x)
    return x.view(batch, n_tokens, dim, rows, cols).permute(0, 3, 4, 1, 2)


def _tokens_as_channels(convs: tuple[nn.Conv2d, ...], tokens: Tensor) -> Tensor:
    """One depthwise convolution over tokens x channels: nothing moves in memory."""
    n_tokens = tokens.shape[-2]
    x = first(tokens.flatten(-2))
    for conv in convs:
        weight, bias = conv.weight.repeat(n_tokens, 1, 1, 1), conv.bias.repeat(n_tokens)
        x = F.conv2d(x, weight, bias, 1, conv.padding, conv.dilation, x.shape[1])
    return last(x).unflatten(-1, (n_tokens, -1))
