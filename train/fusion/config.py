"""What the fusion network is made of, as one frozen configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal

from championship_sr.store.config import config_dataclass
from championship_sr.store.errors import ConfigError

PHASES = ("frequency", "bands", "collaboration", "hierarchy", "selection", "refinement", "edges")
"""The phases that can be switched off, in the order of the diagram: 2, 3, 4, 5, 6, 7a, 7b."""


ARCHITECTURE_KEY = "train.fusion.architecture"


@dataclass(frozen=True)
class Widths:
    """Channels of each phase; `expansion` is the feed-forward width over the attention width."""

    bands: int
    band_heads: int
    band_expansion: int
    experts: int
    expert_heads: int
    expert_expansion: int
    hierarchy: int
    selection: int
    refinement: int
    refinement_layers: int
    edges: int


# the document's layers
PAPER = Widths(64, 4, 4, 128, 8, 4, 64, 32, 128, 6, 32)
SWIFT = Widths(32, 2, 2, 64, 2, 2, 64, 32, 112, 6, 32)


@config_dataclass
class FusionConfig:
    """The fusion network of phases 2 to 7; a width of None is the profile's own."""

    architecture: str | None = None  # package.module:factory, a custom network instead of a profile's
    hyperparameters: dict[str, Any] = field(default_factory=dict)  # its further arguments
    profile: Literal["swift", "paper", "direct", "cnn", "lean"] = "swift"
    start: Literal["fitted", "mean", "document"] = "fitted"  # what the untrained network returns, see docs/fusion.md
    features: bool = True  # False: use the experts' images instead of their features, as for experts without any
    without: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()  # experts that a run began to use later than the others, by `train --init`
    checkpointing: bool = False  # recompute each phase in the backward pass
    bands: int | None = None
    band_heads: int | None = None
    band_expansion: int | None = None
    experts: int | None = None
    expert_heads: int | None = None
    expert_expansion: int | None = None
    hierarchy: int | None = None
    selection: int | None = None
    refinement: int | None = None
    refinement_layers: int | None = None
    edges: int | None = None

    def __post_init__(self) -> None:
        check_phases(self.without, "fusion.without")
        if self.hyperparameters and not self.architecture:
            raise ConfigError("fusion.hyperparameters: they are arguments of fusion.architecture, which is not set")
        widths = self.widths
        for name, width in vars(widths).items():
            if width < 1:
                raise ConfigError(f"fusion.{name}={width}: must be at least 1")
        for name, heads in (("bands", widths.band_heads), ("experts", widths.expert_heads)):
            if getattr(widths, name) % heads:
                raise ConfigError(f"fusion.{name}={getattr(widths, name)}: must be a multiple of its {heads} heads")
        if widths.refinement_layers < 3:
            raise ConfigError(f"fusion.refinement_layers={widths.refinement_layers}: must be at least 3")

    @property
    def widths(self) -> Widths:
        """The profile's widths, overridden by those of this configuration."""
        default = PAPER if self.profile in ("paper", "direct") else SWIFT
        own = {name: getattr(self, name) for name in vars(default)}
        return Widths(
            **{name: default_width if own[name] is None else own[name] for name, default_width in vars(default).items()}
        )


def check_phases(names: tuple[str, ...], where: str) -> None:
    """raises  ConfigError if a name is not a phase."""
    unknown = [name for name in names if name not in PHASES]
    if unknown:
        raise ConfigError(f"{where}: no phase {', '.join(unknown)} (there are: {', '.join(PHASES)})")
