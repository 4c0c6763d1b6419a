"""Attention across the few tokens of each pixel: nine bands, or the experts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPED_TOKENS = 16  # tokens a call: pixels are attended in groups, which costs a third less than one by one


class PixelAttention(nn.Module):
    """Multi-head attention across the tokens of each pixel, (..., T, C) to (..., T, C)."""

    def __init__(self, dim: int, heads: int, *, plain: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.plain = plain
        # without bias: a constant added to every key cancels in the softmax
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        attend = _attend_plainly if self.plain else _attend_in_groups
        shape = tokens.shape
        return self.out(attend(self.qkv(tokens).reshape(-1, shape[-2], 3 * shape[-1]), self.heads)).view(shape)


def _attend_plainly(qkv: Tensor, heads: int) -> Tensor:
    pixels, n_tokens, width = qkv.shape
    q, k, v = qkv.view(pixels, n_tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return (weights @ v).transpose(1, 2).reshape(pixels, n_tokens, width // 3)


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
