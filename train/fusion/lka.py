"""Large kernel attention: each pixel is gated by its 23 x 23 surroundings, then mixed over channels.

Source: Guo et al. 2022, "Visual Attention Network", sec. 3.1: a K x K convolution as a (2d-1) x (2d-1) depthwise one,
one of ceil(K/d) x ceil(K/d) taps with dilation d, and a pointwise one. The document has K = 21 and d = 3, and a row and
a column in place of the dilated square.
"""

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
        x = self.norm1(tokens.movedim(-2, 1)).flatten(0, 1)  # (B T, h, w, C): few channels at a time stay in the cache
        x = first(x).contiguous() if self.plain else first(x)
        x = self.column(self.row(self.square(x)))
        return last(x).unflatten(0, (-1, tokens.shape[-2])).movedim(1, -2)

    @property
    def mixers(self) -> tuple[nn.Module, ...]:
        """The layers of `mix`."""
        return self.norm1, self.point, self.norm2, self.feed

    def mix(self, tokens: Tensor, around: Tensor) -> Tensor:
        """The block's output, from its input and `around`, (..., C)."""
        tokens = tokens + self.norm1(tokens) * self.point(around)
        return tokens + self.feed(self.norm2(tokens))
