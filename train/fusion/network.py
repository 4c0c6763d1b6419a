"""The fusion network: phases 2 to 7, from the experts' images and features to one image."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from championship_sr.extract.experts.architecture import USER, Origin, build_network
from championship_sr.store.errors import ConfigError
from championship_sr.train.fusion.config import ARCHITECTURE_KEY, PHASES, FusionConfig, Widths, check_phases
from championship_sr.train.fusion.layers.blocks import blend, resize
from championship_sr.train.fusion.layers.newcomers import Newcomers
from championship_sr.train.fusion.layers.views import Views
from championship_sr.train.fusion.phases.bands import CrossBand
from championship_sr.train.fusion.phases.collaboration import REST, Collaboration, modulated
from championship_sr.train.fusion.phases.frequency import N_BANDS, TIERS, FrequencySplit
from championship_sr.train.fusion.phases.hierarchy import ROUTING, Hierarchy, SwiftHierarchy
from championship_sr.train.fusion.phases.refinement import RESIDUAL_SCALE, Edges, Refinement, SwiftRefinement
from championship_sr.train.fusion.phases.selection import Selection
from championship_sr.train.fusion.plain_cnn import PLAIN, PlainCNN
from championship_sr.train.fusion.start import start_weights

SWIFT_BAND_FACTOR = 2  # the bands are attended at half of the LR resolution


class FusionNetwork(nn.Module):
    """Frozen experts' images (B, E, 3, H, W) and features, expert -> (B, C, h, w), to one image (B, 3, H, W).

    The image is not clamped. Sizes are any from 8 x 8 LR pixels; experts any number from 1, in the order of `channels`.
    """

    start_weights: Tensor | None
    hierarchy: Hierarchy | SwiftHierarchy | None

    def __init__(self, config: FusionConfig, channels: Mapping[str, int], scale: int) -> None:
        super().__init__()
        self.config, self.scale, self.experts = config, scale, tuple(channels)
        self.off = frozenset(config.without)
        self.at_lr = config.profile == "swift"
        neutral = config.start != "document"
        widths = self.widths = config.widths
        self.rest = REST if neutral else 0.0
        self.by_image = frozenset(name for name in channels if not (config.features and channels[name]))
        self.newcomers = Newcomers(self.experts, config.joined)
        channels = {name: 3 * scale**2 if name in self.by_image else n for name, n in channels.items()}
        if self.at_lr:
            with_images = len(self.by_image) < len(channels)
            phases = _swift_phases(widths, channels, scale, neutral, self.newcomers, with_images=with_images)
        else:
            phases = _document_phases(
                widths, channels, scale, neutral, self.newcomers, plain=config.profile == "direct"
            )
        for name in PHASES:
            setattr(self, name, None if name in self.off else phases[name])
        self.residual_scale = nn.Parameter(torch.tensor(0.0 if neutral else RESIDUAL_SCALE))
        self.register_buffer("start_weights", start_weights(config, len(channels)))
        if config.profile != "direct":
            for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
                if conv.weight.shape[1] > 1:  # depthwise weights lie the same either way: their input alone decides
                    conv.to(memory_format=torch.channels_last)

    def forward(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return self.fuse(lr, images, features)["image"]

    @torch.no_grad()
    def maps(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network decides at each pixel: difficulty (B, 1, H, W), gates and modulation (B, E, H, W)."""
        result = self.fuse(lr, images, features)
        return {name: result[name] for name in ("difficulty", "gates", "modulation")}

    def fuse(self, lr: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fused image, and the maps that led to it."""
        views = self.views(lr, images)
        if views is not None and self.by_image:
            by_image = zip(self.experts, views.per_expert.unbind(1), strict=True)
            features = {**features, **{name: view for name, view in by_image if name in self.by_image}}

        bands, guidance = self.phase("frequency", lr)
        bands = self.phase("bands", bands)
        routing = torch.cat([bands, guidance], dim=1).flatten(1, 2)
        consensus, modulation = self.phase("collaboration", features, views, images.shape[-2:])
        scales = modulated(modulation, self.rest)
        scaled = None if self.at_lr else images * scales.unsqueeze(2)
        fused, guide = self.phase("hierarchy", scaled, consensus, routing, views)
        fused, difficulty, gates = self.phase("selection", fused, scaled, lr, guide)
        fused = self.combined(images, fused * scales) if self.at_lr else self.from_start(fused, images)
        fused = self.phase("refinement", fused, views, guide, consensus, routing)
        fused = self.phase("edges", fused)
        image = fused + self.residual_scale * resize(lr, fused.shape[-2:])
        return {"image": image, "difficulty": difficulty, "gates": gates, "modulation": modulation}

    def from_start(self, fused: Tensor, images: Tensor) -> Tensor:
        """The result of phases 4 to 6, moved from the experts' mean to the fitted combination.

        Their weights add up to 1, so that moving every image moves their result by as much.
        """
        moved = self.moved_weights()
        return fused if moved is None else fused + blend(images, moved)

    def combined(self, images: Tensor, weights: Tensor) -> Tensor:
        """The same of weights (B, E, H, W): at LR phases 5 and 6 decide on these, and the images are combined once."""
        moved = self.moved_weights()
        return blend(images, weights if moved is None else weights + moved)

    def moved_weights(self) -> Tensor | None:
        """By what the fitted weights (1, E, 1, 1) differ from those of the mean; None where nothing is fitted."""
        return None if self.start_weights is None else (self.start_weights - self.newcomers.anchor).view(1, -1, 1, 1)

    def phase(self, name: str, *inputs: Any) -> Any:
        """The phase's output, or its replacement if the phase is switched off."""
        if name in self.off:
            return self.neutral(name, *inputs)
        module = getattr(self, name)
        if self.config.checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def neutral(self, name: str, x: Any, *others: Any) -> Any:
        """The neutral output that replaces a phase."""
        if name == "frequency":
            third = x.unsqueeze(1) / len(TIERS)
            return third.repeat(1, N_BANDS, 1, 1, 1), third.repeat(1, len(TIERS), 1, 1, 1)
        if name == "collaboration":
            some = next(iter(x.values()))
            consensus = some.new_zeros(some.shape[0], self.widths.experts, *some.shape[-2:])
            return consensus, some.new_full((some.shape[0], len(self.experts), *others[-1]), self.rest)
        if name == "hierarchy":
            consensus = others[0]
            guide = consensus.new_zeros(consensus.shape[0], self.widths.hierarchy, *consensus.shape[-2:])
            if self.at_lr:
                size = others[-1].mean.shape[-2:]
                return self.newcomers.anchor.view(1, -1, 1, 1).expand(len(consensus), -1, *size), guide
            return self.newcomers.mean(x), guide
        if name == "selection":
            gates = x.new_full((len(x), len(self.experts), *x.shape[-2:]), 1 / len(self.experts))
            return x, torch.zeros_like(gates[:, :1]), gates
        return x

    @contextmanager
    def switched_off(self, *names: str) -> Iterator[None]:
        """The same weights without these phases, for an ablation.

        raises  ConfigError if a name is not a phase
        """
        check_phases(names, "phases to switch off")
        before = self.off
        self.off = before | set(names)
        try:
            yield
        finally:
            self.off = before

    def views(self, lr: Tensor, images: Tensor) -> Views | None:
        """How the network at LR sees the images; the document's layers need it only in place of features.

        raises  ValueError if the inputs do not fit together
        """
        expected = lr.shape[0], len(self.experts), 3, lr.shape[-2] * self.scale, lr.shape[-1] * self.scale
        if tuple(images.shape) != expected:
            raise ValueError(f"images {tuple(images.shape)}: expected {expected} for LR {tuple(lr.shape)}")
        return Views(lr, images, self.scale, self.newcomers) if self.at_lr or self.by_image else None


def build_fusion(config: FusionConfig, channels: Mapping[str, int], scale: int, origin: Origin = USER) -> nn.Module:
    """The network of a configuration.

    channels  expert -> channels of its features, in the order of the images; 0 for an expert without features, whose
              image takes their place
    origin    who names the network, if it is a custom one
    raises    ConfigError, RefusedArchitecture
    """
    if not channels:
        raise ConfigError("fusion: no experts to fuse")
    if config.architecture:
        arguments = {"config": config, "channels": dict(channels), "scale": scale, **config.hyperparameters}
        return build_network(config.architecture, arguments, ARCHITECTURE_KEY, origin)
    if config.profile in PLAIN:
        return PlainCNN(config, channels, scale, **PLAIN[config.profile])
    return FusionNetwork(config, channels, scale)


def _document_phases(
    widths: Widths, channels: Mapping[str, int], scale: int, neutral: bool, newcomers: Newcomers, plain: bool
) -> dict[str, nn.Module]:
    experts = len(channels)
    return {
        "frequency": FrequencySplit(),
        "bands": CrossBand(widths.bands, widths.band_heads, widths.band_expansion, plain=plain),
        "collaboration": Collaboration(
            channels,
            widths.experts,
            widths.expert_heads,
            widths.expert_expansion,
            recompute=not plain,
            plain=plain,
            neutral=neutral,
            newcomers=newcomers,
        ),
        "hierarchy": Hierarchy(
            experts, scale, widths.hierarchy, widths.experts, plain=plain, neutral=neutral, newcomers=newcomers
        ),
        "selection": Selection(experts, widths.selection, neutral=neutral, newcomers=newcomers),
        "refinement": Refinement(widths.refinement, widths.refinement_layers, plain=plain, neutral=neutral),
        "edges": Edges(widths.edges, plain=plain, neutral=neutral),
    }


def _swift_phases(
    widths: Widths, channels: Mapping[str, int], scale: int, neutral: bool, newcomers: Newcomers, with_images: bool
) -> dict[str, nn.Module]:
    experts, pixel = len(channels), 3 * scale**2
    return {
        "frequency": FrequencySplit(),
        "bands": CrossBand(widths.bands, widths.band_heads, widths.band_expansion, factor=SWIFT_BAND_FACTOR),
        "collaboration": Collaboration(
            channels, widths.experts, widths.expert_heads, widths.expert_expansion,
            with_images=with_images, scale=scale, subpixels=scale, neutral=neutral, newcomers=newcomers,
        ),
        "hierarchy": SwiftHierarchy(
            experts, scale, widths.hierarchy, widths.experts, neutral=neutral, newcomers=newcomers
        ),
        "selection": Selection(
            experts, widths.selection, guide=widths.hierarchy, subpixels=scale, neutral=neutral, newcomers=newcomers
        ),
        "refinement": SwiftRefinement(
            [pixel, pixel, widths.hierarchy, widths.experts, ROUTING],
            widths.refinement, widths.refinement_layers, scale, neutral=neutral,
        ),
        "edges": Edges(widths.edges, subpixels=scale, neutral=neutral),
    }  # fmt: skip
