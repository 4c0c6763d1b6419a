"""The weighted sum of losses; a loss of weight zero is neither computed nor loaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from championship_sr.store.errors import ConfigError
from championship_sr.train.losses.clip import CLIPSemantic
from championship_sr.train.losses.edge import SobelEdge
from championship_sr.train.losses.pixel import L1, PSNR, Charbonnier, LumaL1
from championship_sr.train.losses.spectrum import LogSpectrum
from championship_sr.train.losses.ssim import SSIM
from championship_sr.train.losses.vgg import VGGPerceptual
from championship_sr.train.losses.wavelet import StationaryWavelet

TEACHER = "teacher"  # the distance to a teacher's image in place of HR

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "l1": L1,
    "l1_luma": LumaL1,
    "charbonnier": Charbonnier,
    "psnr": PSNR,
    "ssim": SSIM,
    "vgg": VGGPerceptual,
    "swt": StationaryWavelet,
    "fft": LogSpectrum,
    "edge": SobelEdge,
    "clip": CLIPSemantic,
    TEACHER: L1,
}


class Criterion(nn.Module):
    """The sum of weight x loss over the losses that are ever used.

    names    losses to build, of LOSSES; those of weight 0 in every stage are left out by the caller
    weights  files for the losses that need some: "vgg", "clip"
    """

    def __init__(self, names: Iterable[str], weights: Mapping[str, Path | None] | None = None) -> None:
        super().__init__()
        files = {name: {"weights": path} for name, path in (weights or {}).items()}
        unknown = sorted(set(names) - set(LOSSES))
        if unknown:
            raise ConfigError(f"losses: no loss is called {unknown[0]!r}; there are {', '.join(LOSSES)}")
        self.losses = nn.ModuleDict({name: LOSSES[name](**files.get(name, {})) for name in names})

    def forward(
        self, sr: Tensor, hr: Tensor, weights: Mapping[str, float], teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each loss that was used, unweighted and detached.

        teacher  the image that the loss of this name measures the distance to
        Computed in float32 whatever the network's precision is: fp16 has no room for a spectrum or a variance.
        """
        with torch.autocast(sr.device.type, enabled=False):
            sr, hr = sr.float(), hr.float()
            targets = {name: teacher if name == TEACHER else hr for name, weight in weights.items() if weight}
            values = {name: self.losses[name](sr, target) for name, target in targets.items()}
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        return total, {name: value.detach() for name, value in values.items()}
