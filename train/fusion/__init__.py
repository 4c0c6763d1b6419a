"""The network that is trained: phases 2 to 7."""

from championship_sr.train.fusion.config import PHASES, FusionConfig
from championship_sr.train.fusion.network import FusionNetwork, build_fusion

__all__ = ["PHASES", "FusionConfig", "FusionNetwork", "build_fusion"]
