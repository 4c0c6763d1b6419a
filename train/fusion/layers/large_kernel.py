"""Large kernel attention: each pixel is gated by its 23 x 23 surroundings, then mixed over channels.

Source: Guo et al. 2022, "Visual Attention Network", sec. 3.1: a K x K convolution as a (2d-1) x (2d-1) depthwise one,
one of ceil(K/d) x ceil(K/d) taps with dilation d, and a pointwise one. The document has K = 21 and d = 3, and a row and
a column in place of the dilated square.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import first, last, layers_of, linear, pointwise

KERNEL = 21
DILATION = 3
TAPS = -(-KERNEL // DILATION)
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class LKABlock(nn.Module):
    """LayerNorm, large kernel attention, LayerNorm, feed-forward; each added to its input.

    `forward` is the plain form, `across` that of few large operations; `around` and `mix` are two parts for a CPU: the
    first looks around, the second at each pixel alone. The layers are shared by all tokens.

    layout   of the depthwise convolutions in `across`, which `train/run/layouts.py` chooses: a key of LAYOUTS
    """

    layout = "channels_last"

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        reach = DILATION * (TAPS // 2)
        self.norm1 = nn.LayerNorm(dim)
        self.square = nn.Conv2d(dim, dim, 2 * DILATION - 1, padding=DILATION - 1, groups=dim)
        self.row = nn.Conv2d(dim, dim, (1, TAPS), padding=(0, reach), dilation=(1, DILATION), groups=dim)
        self.column = nn.Conv2d(dim, dim, (TAPS, 1), padding=(reach, 0), dilation=(DILATION, 1), groups=dim)
        self.point = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, T, C) to the same, as the layers are written down, each token an image with its channels first."""
        x = first(tokens.movedim(-2, 1)).flatten(0, 1).contiguous()
        seen = first(self.norm1(last(x))).contiguous()
        around = self._looked(seen)
        x = x + seen * F.conv2d(around, self.point.weight[:, :, None, None], self.point.bias)
        x = x + first(self.feed(self.norm2(last(x))))
        return last(x).unflatten(0, (-1, tokens.shape[-2])).movedim(1, -2)

    def across(self, tokens: Tensor) -> Tensor:
        """(T, B, h, w, C) to the same, all tokens as one batch of images."""
        x = tokens.flatten(0, 1)
        seen = self.norm1(x)
        x = x + seen * last(pointwise(self.depthwise(first(seen)), self.point))
        enter, leave = layers_of(nn.Linear, self.feed)
        hidden = F.gelu(pointwise(first(self.norm2(x)), enter))
        return (x + last(pointwise(hidden, leave))).view_as(tokens)

    def around(self, tokens: Tensor) -> Tensor:
        """What lies around each pixel, for its gate: (B, h, w, T, C) to the same."""
        x = self.norm1(tokens.movedim(-2, 1)).flatten(0, 1)  # (B T, h, w, C): few channels at a time stay in the cache
        x = self._looked(first(x))
        return last(x).unflatten(0, (-1, tokens.shape[-2])).movedim(1, -2)

    def depthwise(self, x: Tensor) -> Tensor:
        """The depthwise convolutions of x (B, C, h, w) in the block's layout; channels lie last before and after."""
        x = self._looked(x.contiguous(memory_format=LAYOUTS[self.layout]))
        return x.contiguous(memory_format=torch.channels_last)

    def _looked(self, x: Tensor) -> Tensor:
        x = self.row(self.square(x))
        if x.device.type != "cpu":
            return self.column(x)
        # in bfloat16 oneDNN (torch 2.14.1) reads beyond its input for the gradient of a dilated column's weights
        with torch.autocast("cpu", enabled=False):
            return self.column(x.float())

    def mix(self, tokens: Tensor, around: Tensor) -> Tensor:
        """The block's output, from its input and `around`, (..., C)."""
        enter, leave = layers_of(nn.Linear, self.feed)
        tokens = tokens + self.norm1(tokens) * linear(around, self.point.weight, self.point.bias)
        hidden = F.gelu(linear(self.norm2(tokens), enter.weight, enter.bias))
        return tokens + linear(hidden, leave.weight, leave.bias)
