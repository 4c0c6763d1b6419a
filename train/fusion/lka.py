"""Large kernel attention: each pixel is gated by its 23 x 23 surroundings, then mixed over channels.

Source: Guo et al. 2022, "Visual Attention Network", sec. 3.1: a K x K convolution as a (2d-1) x (2d-1) depthwise one,
one of ceil(K/d) x ceil(K/d) taps with dilation d, and a pointwise one. The document has K = 21 and d = 3, and a row and
a column in place of the dilated square.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from train.fusion.blocks import first, last

KERNEL = 21
DILATION = 3
TAPS = -(-KERNEL // DILATION)


class LKABlock(nn.Module):
    """LayerNorm, large kernel attention, LayerNorm, feed-forward; each added to its input.

    In two parts, as the first looks around and the second at each pixel alone. The layers are shared by all tokens.
    """

    def __init__(self, dim: int, expansion: int, *, plain: bool = False) -> None:
        super().__init__()
        reach = DILATION * (TAPS // 2)
        self.norm1 = nn.LayerNorm(dim)
        self.square = nn.Conv2d(dim, dim, 2 * DILATION - 1, padding=DILATION - 1, groups=dim)
        self.row = nn.Conv2d(dim, dim, (1, TAPS), padding=(0, reach), dilation=(1, DILATION), groups=dim)
        self.column = nn.Conv2d(dim, dim, (TAPS, 1), padding=(reach, 0), dilation=(DILATION, 1), groups=dim)
        self.point = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))
        self.plain = plain

    def around(self, tokens: Tensor) -> Tensor:
        """What lies around each pixel, for its gate: (B, h, w, T, C) to the same."""
        over_tokens = _token_by_token if self.plain else _tokens_as_channels
        return over_tokens((self.square, self.row, self.column), self.norm1(tokens))

    @property
    def mixers(self) -> tuple[nn.Module, ...]:
        """The layers of `mix`."""
        return self.norm1, self.point, self.norm2, self.feed

    def mix(self, tokens: Tensor, around: Tensor) -> Tensor:
        """The block's output, from its input and `around`, (..., C)."""
        tokens = tokens + self.norm1(tokens) * self.point(around)
        return tokens + self.feed(self.norm2(tokens))


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
