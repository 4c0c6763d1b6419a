"""How a run is scored and images are super-resolved: the section `evaluate` of a configuration file."""

from evaluate.metrics import METRICS
from store.config import config_dataclass


@config_dataclass
class EvaluateConfig:
    """Metrics, their protocol, and how large images are cut."""

    metrics: tuple[str, ...] = ("psnr_y", "ssim_y")
    border_px: int | None = None  # cut from each side before scoring; None: the scale
    tile_px: int = 256  # side of the kept part of a tile, LR pixels; larger images are cut
    halo_px: int = 32  # read around a tile and thrown away, LR pixels
    blend_px: int = 8  # width of the seam over which neighbouring tiles fade into each other, LR pixels
    bootstrap: int = 10_000  # resamples behind each interval
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.metrics) - set(METRICS))
        if unknown or not self.metrics:
            raise ValueError(
                f"metrics: no such metric: {', '.join(unknown) or 'none given'} (has: {', '.join(METRICS)})"
            )
        if self.tile_px < 16:
            raise ValueError(f"tile_px must be at least 16, found {self.tile_px}")
        widest = min(2 * self.halo_px, self.tile_px // 2)
        if not 0 <= self.blend_px <= widest:
            raise ValueError(f"blend_px={self.blend_px}: must be in 0..min(2 * halo_px, tile_px / 2) = {widest}")
        if self.border_px is not None and self.border_px < 0:
            raise ValueError(f"border_px must be at least 0, found {self.border_px}")
        if self.bootstrap < 100:
            raise ValueError(f"bootstrap must be at least 100, found {self.bootstrap}")
