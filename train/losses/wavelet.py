"""Difference of stationary wavelet transforms."""

import math

import pywt
import torch
from torch import Tensor, nn

from championship_sr.train.fusion.layers.constants import constant

WAVELET = "db4"
LEVELS = 3


class StationaryWavelet(nn.Module):
    """Mean absolute difference over the sub-bands of the stationary wavelet transform: L1 in each of ten bands.

    The transform is linear, so that only the difference is transformed, and periodic, so that each band is a
    product of spectra: five times as fast as dilated convolutions on a CPU. Each band's filters have norm 1: white
    noise is as strong in every band as in the image, and the mean over all bands is on L1's scale. The plain sum
    over bands, as often written, is ten times as large (3 * LEVELS + 1 bands), and its weight acts so.

    source  pywt.swt2 (periodic borders) with the same wavelet
    """

    def __init__(self, wavelet: str = WAVELET, levels: int = LEVELS) -> None:
        super().__init__()
        self.wavelet, self.levels = wavelet, levels

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return self.transform(sr - hr).abs().mean()

    def transform(self, image: Tensor) -> Tensor:
        """The sub-bands of `image` (B, C, H, W), as (B, C, 3 * levels + 1, H, W).

        From the finest level on the horizontal, vertical and diagonal details in pywt's meaning of the words, and
        last the coarsest approximation.
        """
        height, width = image.shape[-2:]
        responses = responses_of(self.wavelet, self.levels, height, width, image.dtype.to_complex(), image.device)
        return torch.fft.irfft2(torch.fft.rfft2(image)[:, :, None] * responses, s=(height, width))


@constant
def responses_of(
    wavelet: str, levels: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What each band does to the spectrum, (3 * levels + 1, H, W // 2 + 1); made on the host, in complex128."""
    lows_y, highs_y = _along(wavelet, levels, height, height)
    lows_x, highs_x = _along(wavelet, levels, width, width // 2 + 1)
    bands = []
    for low_y, high_y, low_x, high_x in zip(lows_y, highs_y, lows_x, highs_x, strict=True):
        bands += [torch.outer(high_y, low_x), torch.outer(low_y, high_x), torch.outer(high_y, high_x)]
    bands.append(torch.outer(lows_y[-1], lows_x[-1]))
    return torch.stack(bands).to(device, dtype)


def _along(wavelet: str, levels: int, size: int, n_frequencies: int) -> tuple[list[Tensor], list[Tensor]]:
    """The low and the high response of each level along one axis, filters of the finer levels included."""
    filters = [torch.tensor(taps, dtype=torch.complex128).flip(0) for taps in pywt.Wavelet(wavelet).filter_bank[:2]]
    n_taps = len(filters[0])
    frequency = torch.arange(n_frequencies, dtype=torch.float64) / size
    lows, highs, above = [], [], torch.ones(n_frequencies, dtype=torch.complex128)
    for level in range(levels):
        # dilated, and centred as pywt does it: half a filter's length lies ahead
        places = (torch.arange(n_taps, dtype=torch.float64) - n_taps // 2 + 1) * 2**level
        waves = torch.exp(2j * math.pi * frequency[:, None] * places)
        low, high = (above * (waves @ taps) for taps in filters)
        lows.append(low)
        highs.append(high)
        above = low
    return lows, highs
