"""Phase 4: the experts' features attend to each other; each expert's image is modulated by what comes out."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.attention import PixelAttention
from championship_sr.train.fusion.layers.blocks import (
    Pointwise,
    apply_each,
    conv3,
    first,
    last,
    layers_of,
    linear,
    resize,
    shuffle,
    zero,
)
from championship_sr.train.fusion.layers.constants import constant
from championship_sr.train.fusion.layers.forms import for_cpu, in_computed_type
from championship_sr.train.fusion.layers.large_kernel import LKABlock
from championship_sr.train.fusion.layers.newcomers import Newcomers
from championship_sr.train.fusion.layers.recomputed import in_pieces
from championship_sr.train.fusion.layers.views import Views

STRENGTH = 0.2  # the document: an image is scaled by 1 + 0.2 m, 0 < m < 1
REST = 0.5  # with `start: mean`, the modulation that changes nothing
LEAST_RMS = 1e-3


class Collaboration(nn.Module):
    """What the experts agree on, (B, C, h, w), and each expert's modulation m, (B, E, H, W).

    channels       feature channels of each expert, in order
    with_images    each expert's image joins its features, as channels of LR pixels
    subpixels      modulation values a side of an LR pixel: 1 = at LR, brought to HR bilinearly
    recompute      what attention keeps for backward is made again there: less memory, a little more time
    plain          the modulation on all channels at HR, as the document puts it
    """

    def __init__(
        self, channels: Mapping[str, int], dim: int, heads: int, expansion: int,
        *, with_images: bool = False, scale: int = 1, subpixels: int = 1, recompute: bool = False,
        plain: bool = False, neutral: bool = True, newcomers: Newcomers,
    ) -> None:  # fmt: skip
        super().__init__()
        beside = 1 + (3 * scale**2 if with_images else 0)
        self.project = nn.ModuleDict({name: nn.Linear(c + beside, dim) for name, c in channels.items()})
        self.attention = PixelAttention(dim, heads, plain=plain)
        self.consensus = conv3(dim, dim)
        self.surroundings = LKABlock(dim, expansion)
        self.modulate = nn.ModuleDict({name: Pointwise(dim, subpixels**2, plain=plain) for name in channels})
        self.subpixels = subpixels
        self.with_images = with_images
        self.recompute = recompute
        self.plain = plain
        self.late = newcomers.late
        if neutral:
            for layer in self.modulate.values():
                zero(layer)

    def forward(
        self, features: Mapping[str, Tensor], views: Views | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        given = [last(in_computed_type(features[name])) for name in self.project]
        images = last(views.per_expert) if views is not None and self.with_images else None  # (B, E, h, w, 3 scale^2)
        if self.plain or for_cpu(given[0]):
            consensus, maps = self._one_by_one(given, images, size)
        else:
            consensus, maps = self._across(given, images, size)
        return consensus, torch.sigmoid(maps)

    def _one_by_one(
        self, features: list[Tensor], images: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        tokens = self.tokens(features, [] if images is None else list(images.unbind(1)))
        mean = first(self._agreed(tokens, -2))
        consensus = first(self.surrounded(last(mean + self.consensus(mean))))
        seen = (first(token) + consensus for token in tokens.unbind(-2))
        layers = layers_of(Pointwise, self.modulate.values())
        maps = [self._map(layer, x, size) for layer, x in zip(layers, seen, strict=True)]
        return consensus, torch.cat(maps, dim=1)

    def _across(self, features: list[Tensor], images: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The same in few large operations: the experts' tokens lie one after the other, (E, B, h, w, C)."""
        tokens = _projected_at_once(layers_of(nn.Linear, self.project.values()), features, images)
        tokens = self._attended(tokens, 0, lambda x: x + self.attention.across(x))
        mean = first(self._agreed(tokens, 0))
        consensus = self.surroundings.across(last(mean + self.consensus(mean)).unsqueeze(0))
        layers = [layer.linear for layer in layers_of(Pointwise, self.modulate.values())]
        maps = apply_each(layers, (tokens + consensus).flatten(1, -2).mT).unflatten(-1, tokens.shape[1:-1])
        maps = shuffle(maps.permute(2, 0, 1, 3, 4), self.subpixels).flatten(1, 2)
        return first(consensus.squeeze(0)), resize(maps, size)

    def tokens(self, features: list[Tensor], images: list[Tensor]) -> Tensor:
        """A token of each expert with what the others tell it: (B, h, w, E, C)."""
        project = _projected_plainly if self.plain else _projected
        tokens = torch.stack(
            [
                project(layer, features[e], images[e : e + 1])
                for e, layer in enumerate(layers_of(nn.Linear, self.project.values()))
            ],
            dim=-2,
        )
        if not self.recompute:
            return self._attended(tokens, -2, lambda x: x + self.attention(x))
        return self._attended(
            tokens, -2, lambda x: in_pieces(lambda y: y + self.attention(y), x.flatten(0, 2)).view_as(x)
        )

    def _attended(self, tokens: Tensor, dim: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens after attention, which experts that joined later take no part in."""
        if not any(self.late):
            return attend(tokens)
        every = tokens.unbind(dim)
        chosen = [token for token, late in zip(every, self.late, strict=True) if not late]
        attended = iter(attend(torch.stack(chosen, dim)).unbind(dim))
        return torch.stack([t if late else next(attended) for t, late in zip(every, self.late, strict=True)], dim)

    def _agreed(self, tokens: Tensor, dim: int) -> Tensor:
        """The tokens' mean; experts that joined later, whose tokens begin at 0, add to that of the others."""
        return tokens.sum(dim) / self.late.count(False) if any(self.late) else tokens.mean(dim)

    def surrounded(self, x: Tensor) -> Tensor:
        """(B, h, w, C) after the block of large kernel attention."""
        if self.plain:
            return self.surroundings(x.unsqueeze(-2)).squeeze(-2)
        around = self.surroundings.around(x.unsqueeze(-2)).squeeze(-2)
        pixels = in_pieces(self.surroundings.mix, x.flatten(0, -2), around.flatten(0, -2))
        return pixels.view_as(x)

    def _map(self, layer: Pointwise, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.plain:
            return layer(resize(x, size))
        return resize(shuffle(layer(x), self.subpixels), size)


def modulated(modulation: Tensor, rest: float) -> Tensor:
    """What the experts' images are multiplied by; 1 at rest."""
    return STRENGTH * modulation + (1 - STRENGTH * rest)


def _projected_plainly(layer: nn.Linear, features: Tensor, images: list[Tensor]) -> Tensor:
    return layer(torch.cat([*scaled(features), *images], dim=-1))


def _projected(layer: nn.Linear, features: Tensor, images: list[Tensor]) -> Tensor:
    """The same; scaling commutes with the layer, and is cheaper after it."""
    inverse, log = (x[0] for x in inverse_and_log_rms(features))
    n_features, n_images = features.shape[-1], sum(x.shape[-1] for x in images)
    on_features, on_log, on_images = layer.weight.split([n_features, 1, n_images], dim=1)
    token = linear(features, on_features) * inverse + log * on_log[:, 0] + layer.bias
    return sum((linear(x, on_images) for x in images), token)


def _projected_at_once(layers: Sequence[nn.Linear], features: list[Tensor], images: Tensor | None) -> Tensor:
    """The same for all experts, (E, B, h, w, C): what is not their features in one product."""
    n_features = [x.shape[-1] for x in features]
    inverse, log = inverse_and_log_rms(*features)
    split = [layer.weight.split([n, layer.in_features - n], dim=1) for layer, n in zip(layers, n_features, strict=True)]
    on_features, on_others = zip(*split, strict=True)
    seen = torch.stack([F.linear(x, weight) for x, weight in zip(features, on_features, strict=True)])
    others = log if images is None else torch.cat([log, images.movedim(1, 0).to(log.dtype)], dim=-1)
    bias = torch.stack([layer.bias for layer in layers]).unsqueeze(1)
    others = torch.baddbmm(bias, others.flatten(1, -2), torch.stack(on_others).mT)
    return others.view_as(seen) + seen * inverse


def scaled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (..., C) of unit variance at each pixel, and the logarithm of what they were divided by, (..., 1).

    Experts differ a thousandfold in the size of their features: some work on 0..255.
    """
    inverse, log = (x[0] for x in inverse_and_log_rms(features))
    return features * inverse, log


def inverse_and_log_rms(*features: Tensor) -> tuple[Tensor, Tensor]:
    """1 / rms and log(rms) of each expert's features over their last dimension: (E, ..., 1), float32."""
    norms = torch.stack([torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) for x in features])
    shares = rms_of_norm(tuple(x.shape[-1] for x in features), norms.device)
    rms = norms * shares.view(-1, *[1] * features[0].ndim) + LEAST_RMS
    return rms.reciprocal(), rms.log()


@constant
def rms_of_norm(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """The root mean square of vectors with so many channels, over their norm."""
    return torch.tensor(channels, device=device) ** -0.5
