"""Difference of stationary wavelet transforms."""

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVELET = "db4"
LEVELS = 3


class StationaryWavelet(nn.Module):
    """Mean absolute difference over the sub-bands of the stationary wavelet transform: L1 in each of ten bands.

    The transform is linear, so that only the difference is transformed. Each band's filters have norm 1: white
    noise is as strong in every band as in the image, and the mean over all bands is on L1's scale. The plain sum
    over bands, as often written, is ten times as large (3 * LEVELS + 1 bands), and its weight acts so.

    source  pywt.swt2 (periodic borders) with the same wavelet
    """

    def __init__(self, wavelet: str = WAVELET, levels: int = LEVELS) -> None:
        super().__init__()
        low, high = (torch.tensor(taps).flip(0) for taps in pywt.Wavelet(wavelet).filter_bank[:2])
        self.levels = levels
        self.register_buffer("filters", torch.stack([low, high]).float(), persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        approximation, details = self.transform(sr - hr)
        total = approximation.abs().mean() + sum(3 * detail.abs().mean() for detail in details)
        return total / (3 * self.levels + 1)

    def transform(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The sub-bands of `image` (B, C, H, W).

        returns  the coarsest approximation (B * C, 1, H, W), and from the finest level on the horizontal,
                 vertical and diagonal details (B * C, 3, H, W), in pywt's meaning of the words
        raises   ValueError if the image is smaller than half of the widest filter
        """
        reach = self.filters.shape[1] // 2 << (self.levels - 1)
        if min(image.shape[-2:]) < reach:
            raise ValueError(f"the wavelet loss needs at least {reach} x {reach} pixels, found {tuple(image.shape)}")
        approximation = image.reshape(-1, 1, *image.shape[-2:])
        details = []
        for level in range(self.levels):
            bands = self._split(approximation, 1 << level)
            approximation = bands[:, :1]
            details.append(bands[:, 1:])
        return approximation, details

    def _split(self, plane: Tensor, dilation: int) -> Tensor:
        """(N, 1, H, W) to (N, 4, H, W): low-low; low along x and high along y; the reverse; high-high."""
        n_taps = self.filters.shape[1]
        span = (n_taps - 1) * dilation
        # pywt centres its filters: half a filter's length lies ahead
        after = n_taps // 2 * dilation
        before = span - after
        rows = F.conv2d(
            F.pad(plane, (before, after, 0, 0), mode="circular"),
            self.filters.view(2, 1, 1, n_taps),
            dilation=(1, dilation),
        )
        return F.conv2d(
            F.pad(rows, (0, 0, before, after), mode="circular"),
            self.filters.repeat(2, 1).view(4, 1, n_taps, 1),
            dilation=(dilation, 1),
            groups=2,
        )
