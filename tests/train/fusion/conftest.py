"""Small fusion networks and inputs that are images rather than noise."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.fusion.network import build_fusion

SMALL = {"bands": 8, "band_heads": 2, "experts": 16, "expert_heads": 2, "hierarchy": 8, "selection": 8}
SMALL |= {"refinement": 16, "refinement_layers": 4, "edges": 8}


class Fusions:
    """Builds small networks and the inputs that they take."""

    channels = {"a": 5, "b": 9, "c": 12}  # noqa: RUF012

    def build(
        self, profile: str = "swift", *, channels: Mapping[str, int] | None = None, scale: int = 4, **options
    ) -> nn.Module:
        torch.manual_seed(0)
        own = {} if profile in ("cnn", "lean") else SMALL
        return build_fusion(FusionConfig(profile=profile, **{**own, **options}), channels or self.channels, scale)

    def inputs(
        self,
        rows: int = 12,
        cols: int = 11,
        *,
        batch: int = 2,
        channels: Mapping[str, int] | None = None,
        scale: int = 4,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        channels = channels or self.channels
        hr = F.interpolate(
            torch.rand(batch, 3, 5, 5, generator=generator), size=(rows * scale, cols * scale), mode="bicubic"
        )
        noise = torch.randn(batch, len(channels), 3, rows * scale, cols * scale, generator=generator)
        features = {
            name: torch.randn(batch, rows, cols, n, generator=generator).movedim(-1, 1) for name, n in channels.items()
        }
        return F.avg_pool2d(hr, scale), hr.unsqueeze(1) + 0.03 * noise, features

    def train(self, network: nn.Module, steps: int = 3) -> None:
        """A few steps towards an image that is none of the experts'."""
        lr, images, features = self.inputs()
        target = images[:, 0] + 0.1 * torch.sin(20 * images[:, 1])
        optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            (network(lr, images, features) - target).abs().mean().backward()
            optimiser.step()


@pytest.fixture
def fusions() -> Fusions:
    return Fusions()
