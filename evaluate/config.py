"""How a run is scored and images are super-resolved: the section `evaluate` of a configuration file."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from championship_sr.evaluate.diffusion.config import DiffusionConfig
from championship_sr.evaluate.inference.tiles import FadedTiling
from championship_sr.evaluate.metrics import METRICS
from championship_sr.store.config import UserPath, config_dataclass

# Timofte et al. 2017, "NTIRE 2017 Challenge": RGB, and 6 + scale pixels ignored; later challenges score luma
NTIRE2017_BORDER = 6
PROTOCOL_METRICS = {"luma": ("psnr_y", "ssim_y"), "ntire2017": ("psnr_rgb", "ssim_rgb")}


@config_dataclass
class EvaluateConfig:
    """Metrics, their protocol, and how large images are cut."""

    protocol: Literal["luma", "ntire2017"] = (
        "luma"  # the protocol that decides metrics and border if they are not given
    )
    metrics: tuple[str, ...] = ()
    border_px: int | None = None  # cut from each side before scoring
    tile_px: int = 256  # side of the kept part of a tile, LR pixels; larger images are cut
    halo_px: int = 32  # read around a tile and discarded, LR pixels
    blend_px: int = 8  # width of the seam over which neighbouring tiles fade into each other, LR pixels
    bootstrap: int = 10_000  # resamples behind each interval
    seed: int = 0
    device: str = "auto"
    cache: UserPath | None = None  # folder for shards of a store in object storage; None: below the user's cache folder
    cache_gb: Annotated[float, Field(gt=0)] = 100.0  # GB that they may take there
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)  # used if --diffusion names its weights

    def __post_init__(self) -> None:
        unknown = sorted(set(self.metrics) - set(METRICS))
        if unknown:
            raise ValueError(f"metrics: no such metric: {', '.join(unknown)} (has: {', '.join(METRICS)})")
        if self.tile_px < 16:
            raise ValueError(f"tile_px must be at least 16, found {self.tile_px}")
        widest = min(2 * self.halo_px, self.tile_px // 2)
        if not 0 <= self.blend_px <= widest:
            raise ValueError(f"blend_px={self.blend_px}: must be in 0..min(2 * halo_px, tile_px / 2) = {widest}")
        if self.border_px is not None and self.border_px < 0:
            raise ValueError(f"border_px must be at least 0, found {self.border_px}")
        if self.bootstrap < 100:
            raise ValueError(f"bootstrap must be at least 100, found {self.bootstrap}")

    @property
    def scored(self) -> tuple[str, ...]:
        """The metrics; methods are compared by the first one."""
        return self.metrics or PROTOCOL_METRICS[self.protocol]

    def border(self, scale: int) -> int:
        """How many pixels are cut from each side."""
        if self.border_px is not None:
            return self.border_px
        return scale + (NTIRE2017_BORDER if self.protocol == "ntire2017" else 0)

    @property
    def tiling(self) -> FadedTiling:
        """How large images are cut."""
        return FadedTiling(self.tile_px, self.halo_px, self.blend_px)
