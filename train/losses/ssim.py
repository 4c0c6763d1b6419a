"""Structural similarity as a loss."""

from torch import Tensor, nn

from championship_sr.train.metrics import structural_similarity


class SSIM(nn.Module):
    """1 - SSIM, mean over RGB channels and images; Gaussian window 11, sigma 1.5, no padding."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return 1 - structural_similarity(sr, hr).mean()
