"""The baseline for the seven phases: a plain residual CNN with the same inputs and parameter count."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.layers.blocks import Join, ResidualBlock, blend, conv3, first, last, shuffle, zero
from championship_sr.train.fusion.layers.forms import in_computed_type
from championship_sr.train.fusion.layers.newcomers import Newcomers
from championship_sr.train.fusion.layers.views import Views
from championship_sr.train.fusion.phases.collaboration import inverse_and_log_rms
from championship_sr.train.fusion.phases.refinement import RESIDUAL_SCALE
from championship_sr.train.fusion.start import start_weights

BLOCKS = 6
WIDTH = 96
PLAIN: dict[str, dict[str, int]] = {"cnn": {}, "lean": {"width": 64, "blocks": 3}}
"""The profiles that are this network, and their arguments; `lean` takes a third of the operations."""


class PlainCNN(nn.Module):
    """Everything that `swift` sees, at LR, through residual blocks, to weights of the experts and a residual."""

    start_weights: Tensor | None

    def __init__(
        self, config: FusionConfig, channels: Mapping[str, int], scale: int, width: int = WIDTH, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        self.config, self.scale, self.experts = config, scale, tuple(channels)
        pixel, n_experts = 3 * scale**2, len(channels)
        seen = [3, pixel * n_experts, pixel]
        self.with_features = tuple(name for name, c in channels.items() if config.features and c)
        seen += [part for name in self.with_features for part in (channels[name], 1)]
        self.enter = Join(seen, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.weights = conv3(width, n_experts * scale**2)
        self.residual = conv3(width, pixel)
        zero(self.weights)
        zero(self.residual)
        self.newcomers = Newcomers(self.experts, config.joined)
        self.register_buffer("start_weights", start_weights(config, n_experts))
        self.to(memory_format=torch.channels_last)

    def forward(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return self.fuse(lr, images, features)["image"]

    @torch.no_grad()
    def maps(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the experts (B, E, H, W), its only map."""
        return {"gates": self.fuse(lr, images, features)["gates"]}

    def fuse(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fused image, and the map that led to it."""
        views = Views(lr, images, self.scale, self.newcomers)
        x = self.trunk(lr, views, features)
        gates = self.gates(x)
        image = views.moved(blend(images, gates), self.residual(x), RESIDUAL_SCALE)
        return {"image": image, "gates": gates}

    def trunk(self, lr: Tensor, views: Views, features: Mapping[str, Tensor]) -> Tensor:
        seen = [lr.contiguous(memory_format=torch.channels_last), views.stacked, views.detail]
        given = [last(in_computed_type(features[name])) for name in self.with_features]
        if given:
            inverses, logs = inverse_and_log_rms(*given)
            of_each = zip(given, inverses, logs, strict=True)
            seen += [first(part) for x, inverse, log in of_each for part in (x * inverse, log)]
        return self.blocks(self.enter(*seen))

    def gates(self, x: Tensor) -> Tensor:
        gates = self.newcomers.softmax(shuffle(self.weights(x), self.scale))
        if self.start_weights is None:
            return gates
        return gates + (self.start_weights - self.newcomers.anchor).view(1, -1, 1, 1)
