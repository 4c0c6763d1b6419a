"""Difference of Fourier spectra."""

import torch
from torch import Tensor, nn


class LogSpectrum(nn.Module):
    """L1 between log(1 + |FFT|) of each channel.

    The transform is orthonormal, so that a magnitude is as large as the noise that makes it and the value lies
    near L1's scale; an unscaled transform would make it depend on the size of the crop.
    """

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return (log_magnitude(sr) - log_magnitude(hr)).abs().mean()


def log_magnitude(image: Tensor) -> Tensor:
    """log(1 + |FFT|), the half-plane that a real image needs; its redundant columns count once."""
    return torch.log1p(torch.fft.rfft2(image, norm="ortho").abs())
