"""PSNR and SSIM as the field scores them, one value per image; training validates with the same code.

The usual protocol is `psnr(rgb_to_y(round_to_8bit(sr)), rgb_to_y(hr), border=scale)`, and the mean over images.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BT601_STUDIO = (65.481, 128.553, 24.966)  # ITU-R BT.601, R'G'B' in 0..1 to Y' in 16..235; MATLAB's rgb2ycbcr
BT601_BLACK = 16.0
SSIM_WINDOW = 11  # Wang et al. 2004, sec. III-C, as the next three
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def round_to_8bit(image: Tensor) -> Tensor:
    """The image (0..1, any shape) as it would be read again from an 8-bit file."""
    return (image.clamp(0, 1) * 255).round() / 255


def rgb_to_y(rgb: Tensor) -> Tensor:
    """Studio-range luma (B, 1, H, W) in 16/255..235/255 of RGB (B, 3, H, W) in 0..1, in float64."""
    rgb = _exact(rgb)
    return ((rgb * _luma_weights(rgb.dtype, rgb.device)).sum(dim=-3, keepdim=True) + BT601_BLACK) / 255


def psnr(sr: Tensor, hr: Tensor, *, border: int) -> Tensor:
    """PSNR of each image, in dB.

    sr, hr   (B, C, H, W), 0..1; `border` pixels are cut from each side
    returns  (B,) float64; inf where the images are equal
    raises   ValueError if shapes differ or nothing is left after the cut
    """
    sr, hr = _cut(sr, hr, border, least=1)
    return -10 * (sr - hr).square().mean(dim=(1, 2, 3)).log10()


def ssim(sr: Tensor, hr: Tensor, *, border: int) -> Tensor:
    """SSIM of each image: Gaussian window of 11 and sigma 1.5, no padding, mean over pixels and channels.

    sr, hr   (B, C, H, W), 0..1; `border` pixels are cut from each side
    returns  (B,) float64; 1 where the images are equal
    raises   ValueError if shapes differ or less than one window is left after the cut
    """
    return structural_similarity(*_cut(sr, hr, border, least=SSIM_WINDOW))


def structural_similarity(sr: Tensor, hr: Tensor) -> Tensor:
    """SSIM of each image in the precision of the tensors, without a border, for `ssim` and for the loss."""
    means = _blur(torch.cat([sr, hr, sr * hr, sr.square() + hr.square()], dim=1))
    mean_sr, mean_hr, mean_product, mean_squares = means.chunk(4, dim=1)
    product, squares = mean_sr * mean_hr, mean_sr.square() + mean_hr.square()
    luminance = (2 * product + SSIM_C1) / (squares + SSIM_C1)
    structure = (2 * (mean_product - product) + SSIM_C2) / (mean_squares - squares + SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


@cache
def _luma_weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(BT601_STUDIO, dtype=dtype, device=device).view(3, 1, 1)


@cache
def _gaussian(dtype: torch.dtype, device: torch.device) -> Tensor:
    offset = torch.arange(SSIM_WINDOW, dtype=dtype, device=device) - SSIM_WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    return window / window.sum()


def _exact(image: Tensor) -> Tensor:
    # Apple's GPUs have no float64
    return image.cpu().double() if image.device.type == "mps" else image.double()


def _cut(sr: Tensor, hr: Tensor, border: int, *, least: int) -> tuple[Tensor, Tensor]:
    if sr.shape != hr.shape or sr.ndim != 4:
        raise ValueError(f"images of shapes {tuple(sr.shape)} and {tuple(hr.shape)}: expected two equal (B, C, H, W)")
    height, width = sr.shape[-2] - 2 * border, sr.shape[-1] - 2 * border
    if min(height, width) < least:
        raise ValueError(f"{sr.shape[-1]} x {sr.shape[-2]} image: less than {least} pixels left after cutting {border}")
    inside = (..., slice(border, border + height), slice(border, border + width))
    return _exact(sr[inside]), _exact(hr[inside])


def _blur(image: Tensor) -> Tensor:
    window = _gaussian(image.dtype, image.device).expand(image.shape[1], 1, 1, -1)
    if image.dtype is torch.float32:  # faster in this memory format on a CPU; float64 is slower
        image = image.contiguous(memory_format=torch.channels_last)
    rows = F.conv2d(image, window, groups=image.shape[1])
    return F.conv2d(rows, window.transpose(2, 3), groups=image.shape[1])
