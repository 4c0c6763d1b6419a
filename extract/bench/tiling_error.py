"""Tiling error: an expert's tiled output against its output for the whole image, for several halos."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.tiling import run_tiled


@dataclass(frozen=True)
class TilingError:
    """One expert at one halo, over several images."""

    name: str
    halo_px: int
    sr_psnr_db: float  # PSNR of the tiled SR image against the whole one, from the mean squared error over all images
    sr_max: float  # largest difference, in steps of 8 bits
    features_psnr_db: float  # against the features' own mean square
    features_max: float  # largest difference, in standard deviations of the features
    work: float  # pixels that pass through the network, relative to those of the images


def tiling_errors(
    expert: LoadedExpert, images: Sequence[Tensor], tile_px: int, halos: Sequence[int]
) -> list[TilingError]:
    """The differences for each halo, on images (1, 3, h, w) in 0..1 larger than a tile."""
    whole = [expert(lr) for lr in images]
    counted = _Counted(expert)
    result = []
    for halo in halos:
        counted.px = 0
        tiled = [run_tiled(counted, lr, tile_px, halo) for lr in images]
        sr = [(one[0] - other[0].cpu()) for one, other in zip(tiled, whole, strict=True)]
        features = [(one[1]["features"] - other[1]["features"].cpu()) for one, other in zip(tiled, whole, strict=True)]
        values = torch.cat([other[1]["features"].flatten().cpu() for other in whole])
        result.append(
            TilingError(
                name=expert.name,
                halo_px=halo,
                sr_psnr_db=_psnr(sr, 1.0),
                sr_max=max(d.abs().max().item() for d in sr) * 255,
                features_psnr_db=_psnr(features, values.square().mean().item()),
                features_max=max(d.abs().max().item() for d in features) / values.std().item(),
                work=counted.px / sum(lr.shape[-2] * lr.shape[-1] for lr in images),
            )
        )
    return result


class _Counted:
    """An expert that counts the pixels it is given."""

    def __init__(self, expert: LoadedExpert) -> None:
        self._expert, self.px = expert, 0
        self.scale, self.align_px, self.device = expert.scale, expert.align_px, expert.device
        self.unchecked = expert.unchecked

    def __call__(self, lr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.px += lr.shape[0] * lr.shape[-2] * lr.shape[-1]
        return self._expert(lr)


def _psnr(differences: Sequence[Tensor], power: float) -> float:
    flat = torch.cat([d.flatten() for d in differences]).double()
    return (10 * torch.log10(power / flat.square().mean())).item()
