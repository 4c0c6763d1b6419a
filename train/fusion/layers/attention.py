"""Attention across the few tokens of each pixel: nine bands, or the experts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import first, last, linear, pointwise

GROUPED_TOKENS = 16  # tokens per call on a CPU: attending pixels in groups costs a third less than one by one


class PixelAttention(nn.Module):
    """Multi-head attention across the tokens of each pixel, (..., T, C) to (..., T, C).

    `across` does the same for tokens that lie one after the other, (T, B, h, w, C): few large operations, for a GPU.
    """

    def __init__(self, dim: int, heads: int, *, plain: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.plain = plain
        # without bias: a constant added to every key cancels in the softmax
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        pixels = tokens.flatten(0, -3)
        return (self._plainly(pixels) if self.plain else self._in_groups(pixels)).view(tokens.shape)

    def across(self, tokens: Tensor) -> Tensor:
        """The explicit product: kernels for long sequences are slow for so few tokens, and end at 65,535 pixels."""
        qkv = self._at_each(self.qkv, tokens).flatten(1, -2).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 1, 3, 0, 4).flatten(1, 2)  # (pixels * heads, T, D)
        ignored = q.new_empty(1, 1, 1)
        weights = torch.softmax(torch.baddbmm(ignored, q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5), dim=-1)
        attended = torch.bmm(weights.to(v.dtype), v).unflatten(0, (-1, self.heads)).permute(2, 0, 1, 3).flatten(-2)
        return self._at_each(self.out, attended.view_as(tokens))

    def _at_each(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        """The layer of each token (T, B, h, w, C), all as one batch of images."""
        return last(pointwise(first(tokens.flatten(0, 1)), layer)).unflatten(0, tokens.shape[:2])

    def _in_groups(self, pixels: Tensor) -> Tensor:
        attended = _attend_in_groups(linear(pixels, self.qkv.weight), self.heads)
        return linear(attended, self.out.weight, self.out.bias)

    def _plainly(self, pixels: Tensor) -> Tensor:
        """What nn.MultiheadAttention does, the layer that the document names, with these weights."""
        tokens = pixels.transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            tokens, tokens, tokens, tokens.shape[-1], self.heads, self.qkv.weight, None, None, None, False, 0.0,
            self.out.weight, self.out.bias, training=self.training,
        )  # fmt: skip
        return attended.transpose(0, 1).contiguous()


def _attend_in_groups(qkv: Tensor, heads: int) -> Tensor:
    """Several pixels share a call; a mask keeps their tokens apart."""
    pixels, n_tokens, width = qkv.shape
    group = next(size for size in range(max(1, GROUPED_TOKENS // n_tokens), 0, -1) if pixels % size == 0)
    mask = None
    if group > 1:
        pixel = torch.arange(group * n_tokens, device=qkv.device) // n_tokens
        mask = pixel[:, None] == pixel[None, :]
    q, k, v = qkv.view(pixels // group, group * n_tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).reshape(pixels, n_tokens, width // 3)
