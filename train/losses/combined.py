"""The weighted sum of losses; a loss of weight zero is neither computed nor loaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from championship_sr.store.errors import ConfigError
from championship_sr.train.losses.clip import CLIPSemantic
from championship_sr.train.losses.edge import SobelEdge
from championship_sr.train.losses.pixel import L1, PSNR, Charbonnier, Complement, LumaL1
from championship_sr.train.losses.spectrum import LogSpectrum
from championship_sr.train.losses.ssim import SSIM
from championship_sr.train.losses.vgg import VGGPerceptual
from championship_sr.train.losses.wavelet import StationaryWavelet

TEACHER = "teacher"  # the distance to a teacher's image in place of HR
COMPLEMENT = "complement"  # what a teacher's image still lacks once this one is mixed into it
TAUGHT = (TEACHER, COMPLEMENT)

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
    COMPLEMENT: Complement,
}


class Criterion(nn.Module):
    """The sum of weight x loss over the losses that are ever used.

    names    losses to build, of LOSSES; those of weight 0 in every stage are left out by the caller
    weights  files for the losses that need some: "vgg", "clip"
    share    of the image in the mean with a teacher's, for the loss "complement"
    """

    def __init__(
        self, names: Iterable[str], weights: Mapping[str, Path | None] | None = None, share: float = 0.25
    ) -> None:
        super().__init__()
        options: dict[str, dict[str, Any]] = {name: {"weights": path} for name, path in (weights or {}).items()}
        options[COMPLEMENT] = {"share": share}
        unknown = sorted(set(names) - set(LOSSES))
        if unknown:
            raise ConfigError(f"losses: no loss is called {unknown[0]!r}; there are {', '.join(LOSSES)}")
        self.losses = nn.ModuleDict({name: LOSSES[name](**options.get(name, {})) for name in names})

    def forward(
        self, sr: Tensor, hr: Tensor, weights: Mapping[str, float], teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each loss that was used, unweighted and detached.

        teacher  the image that the losses of TAUGHT need
        Computed in float32 whatever the network's precision is: fp16 has no room for a spectrum or a variance.
        """
        with torch.autocast(sr.device.type, enabled=False):
            sr, hr = sr.float(), hr.float()
            targets = {TEACHER: (teacher,), COMPLEMENT: (hr, teacher)}
            values = {
                name: self.losses[name](sr, *targets.get(name, (hr,))) for name, weight in weights.items() if weight
            }
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        return total, {name: value.detach() for name, value in values.items()}
