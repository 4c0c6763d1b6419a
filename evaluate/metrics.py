"""What evaluation adds to `train.metrics`: metrics by name, their protocol in words, and the learned ones."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor

from championship_sr.store.errors import ConfigError, WeightsError
from championship_sr.train.data.uploads import to_device
from championship_sr.train.metrics import SSIM_WINDOW, psnr, rgb_to_y, ssim


@dataclass(frozen=True)
class Metric:
    """How one metric is written, and which way is better."""

    title: str
    channel: str
    digits: int
    higher_is_better: bool = True
    pyiqa: str | None = None  # its name there; None: from lpips, or computed here

    @property
    def learned(self) -> bool:
        """Whether it has weights of its own."""
        return self.pyiqa is not None or self.title == "LPIPS"


METRICS = {
    "psnr_y": Metric("PSNR-Y", "BT.601 luma", 3),
    "ssim_y": Metric("SSIM-Y", "BT.601 luma", 4),
    "psnr_rgb": Metric("PSNR-RGB", "RGB", 3),
    "ssim_rgb": Metric("SSIM-RGB", "RGB", 4),
    "lpips": Metric("LPIPS", "RGB, AlexNet", 4, higher_is_better=False),
    "dists": Metric("DISTS", "RGB", 4, higher_is_better=False, pyiqa="dists"),
    "niqe": Metric("NIQE", "luma", 3, higher_is_better=False, pyiqa="niqe"),
    "musiq": Metric("MUSIQ", "RGB", 3, pyiqa="musiq"),
    "maniqa": Metric("MANIQA", "RGB", 4, pyiqa="maniqa"),
    "clipiqa": Metric("CLIP-IQA", "RGB", 4, pyiqa="clipiqa"),
}
PERCEPTUAL_PARTS = ("lpips", "dists", "clipiqa", "maniqa", "musiq", "niqe")


@dataclass(frozen=True)
class Protocol:
    """What is compared, and how: printed beside every number."""

    scale: int
    border: int
    lr: str = "as stored"

    def describe(self, metrics: Sequence[str]) -> str:
        """The protocol in one line."""
        channels = "; ".join(f"{METRICS[name].title} on {METRICS[name].channel}" for name in metrics)
        uncut = ", ".join(METRICS[name].title for name in metrics if METRICS[name].learned)
        but = f" (none for {uncut})" if uncut else ""
        return (
            f"x{self.scale}; {channels}; {self.border} pixels cut from each side{but}; outputs rounded to 8 bits; "
            f"whole images, one value an image, mean over images; LR {self.lr}"
        )


def to_tensor(image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(1, 3, H, W) in 0..1, float64, of an image (H, W, 3) in uint8 or uint16, made of its integers on the device."""
    integers = to_device(image if image.flags.writeable else image.copy(), torch.device(device))
    return (integers.double() / np.iinfo(image.dtype).max).permute(2, 0, 1)[None]


class Scorer:
    """Scores images against one HR image, whose luma is computed once.

    hr       (H, W, 3), uint8 or uint16
    metrics  names of `METRICS`
    border   cut from each side, but not for learned metrics, which challenges compute on whole images
    device   where all is computed, in float64; Apple's GPUs have none, and the CPU computes in their place
    """

    def __init__(self, hr: np.ndarray, metrics: Sequence[str], border: int, device: torch.device | str = "cpu") -> None:
        self.metrics, self.border, self.device = tuple(metrics), border, scoring_device(device)
        self._hr = to_tensor(hr, self.device)
        self._hr_y = rgb_to_y(self._hr)

    def __call__(self, sr: np.ndarray) -> dict[str, float]:
        """Metric -> value of an image (H, W, 3) in uint8; inf where it equals HR, nan where SSIM has no window."""
        image = to_tensor(sr, self.device)
        return {name: self._score(name, image) for name in self.metrics}

    def _score(self, name: str, sr: Tensor) -> float:
        if name.startswith("ssim") and min(sr.shape[-2:]) - 2 * self.border < SSIM_WINDOW:
            return math.nan
        if name in ("psnr_y", "ssim_y"):
            metric = psnr if name == "psnr_y" else ssim
            return metric(rgb_to_y(sr), self._hr_y, border=self.border).item()
        if name in ("psnr_rgb", "ssim_rgb"):
            metric = psnr if name == "psnr_rgb" else ssim
            return metric(sr, self._hr, border=self.border).item()
        return learned_metric(name, self.device)(sr.float(), self._hr.float())


def scoring_device(device: torch.device | str) -> torch.device:
    """Where metrics are computed for networks on this device."""
    device = torch.device(device)
    return device if device.type == "cuda" else torch.device("cpu")


@cache
def learned_metric(name: str, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], float]:
    """A metric with weights, from the packages `lpips` or `pyiqa`.

    raises  ConfigError if the package is not installed, WeightsError if its weights are missing or damaged
    """
    try:
        with redirect_stdout(sys.stderr):  # pyiqa prints while loading; standard output is for results
            theirs = METRICS[name].pyiqa
            return _pyiqa(theirs, device) if theirs else _lpips(device)
    except ImportError as error:
        raise ConfigError(f"metric {name}: {error}. Run: pip install 'championship-sr[perceptual]'") from None
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        outside = " and ~/.cache/huggingface" if name == "maniqa" else ""
        raise WeightsError(
            f"metric {name}: its weights can't be loaded ({_one_line(error)}). Where there is a network, run: python "
            f"-c \"from championship_sr.evaluate.metrics import learned_metric; learned_metric('{name}')\", then copy "
            f"{torch.hub.get_dir()}{outside} from there to here"
        ) from None


def check_learned(metrics: Sequence[str], device: torch.device | str = "cpu") -> None:
    """Loads the learned ones of these metrics, so that a missing one is reported before any work.

    raises  ConfigError, WeightsError
    """
    for name in metrics:
        if METRICS[name].learned:
            learned_metric(name, scoring_device(device))


def _lpips(device: torch.device | str) -> Callable[[Tensor, Tensor], float]:
    from lpips import LPIPS

    network = LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)
    return lambda sr, hr: network(sr, hr, normalize=True).item()


def _pyiqa(name: str, device: torch.device | str) -> Callable[[Tensor, Tensor], float]:
    from pyiqa import create_metric

    metric = create_metric(name, device=torch.device(device))
    return lambda sr, hr: (metric(sr, hr) if metric.metric_mode == "FR" else metric(sr)).item()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def ntire_perceptual(means: Mapping[str, float]) -> float:
    """The NTIRE perceptual score of a method, from its means over images.

    source  NTIRE 2025 Challenge on Image Super-Resolution (x4), weighted score of the perceptual track; metrics by
            pyiqa's names in metrics.py of its repository, on whole images
    """
    return (
        (1 - means["lpips"])
        + (1 - means["dists"])
        + means["clipiqa"]
        + means["maniqa"]
        + means["musiq"] / 100
        + max(0.0, (10 - means["niqe"]) / 10)
    )
