"""The network that is trained: phases 2 to 7."""

from train.fusion.config import PHASES, FusionConfig
from train.fusion.network import FusionNetwork, build_fusion

__all__ = ["PHASES", "FusionConfig", "FusionNetwork", "build_fusion"]
