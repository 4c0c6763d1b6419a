"""Phase 2: the LR image in nine frequency bands, three each of DCT, DWT and FFT."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRANSFORMS = ("dct", "dwt", "fft")
TIERS = ("low", "mid", "high")
N_BANDS = len(TRANSFORMS) * len(TIERS)
BLOCK = 8
SHARPNESS = 50.0  # the document's temperature of the masks
START_CUTS = {"dct": (0.1, 0.4), "fft": (0.15, 0.5)}  # of the zigzag; of the largest radius
RECALIBRATION_WIDTH = 4


class FrequencySplit(nn.Module):
    """Nine recalibrated bands (B, 9, 3, h, w) and three guidance bands (B, 3, 3, h, w) of an LR image."""

    def __init__(self) -> None:
        super().__init__()
        self.dct_cuts = Cuts(START_CUTS["dct"])
        self.fft_cuts = Cuts(START_CUTS["fft"])
        self.recalibrate = BandRecalibration()
        self.fuse = nn.Parameter(torch.zeros(len(TRANSFORMS), len(TIERS)))

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        # half precision has no FFT on the CPU and too few digits for a sum of bands
        with torch.autocast(lr.device.type, enabled=False):
            bands = self.recalibrate(self.split(lr.float()))
            guidance = torch.einsum("bktchw,kt->btchw", bands, torch.softmax(self.fuse, dim=0))
        return bands.flatten(1, 2), guidance

    def split(self, lr: Tensor) -> Tensor:
        """The bands (B, transform, tier, 3, h, w) as they are; each transform's three add up to the image."""
        bands = dct_bands(lr, self.dct_cuts(lr)), dwt_bands(lr), fft_bands(lr, self.fft_cuts(lr))
        return torch.stack(bands, dim=1)


class Cuts(nn.Module):
    """Where low ends and high begins for each image, 0 < low < high < 1, from its colours and contrasts: (B, 2)."""

    def __init__(self, start: tuple[float, float], hidden: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, hidden), nn.GELU(), nn.Linear(hidden, 2))
        low, high = start
        nn.init.zeros_(self.net[-1].weight)
        with torch.no_grad():
            self.net[-1].bias.copy_(torch.logit(torch.tensor([low, (high - low) / (1 - low)])))

    def forward(self, lr: Tensor) -> Tensor:
        spread, mean = torch.std_mean(lr, dim=(-2, -1))
        low, rest = torch.sigmoid(self.net(torch.cat([mean, spread], dim=1))).unbind(1)
        return torch.stack([low, low + (1 - low) * rest], dim=1)


class BandRecalibration(nn.Module):
    """Squeeze and excitation of each band's three colours by their strength; 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        shape = len(TRANSFORMS), len(TIERS)
        self.squeeze = nn.Parameter(torch.randn(*shape, 3, RECALIBRATION_WIDTH) / math.sqrt(3))
        self.squeeze_bias = nn.Parameter(torch.full((*shape, RECALIBRATION_WIDTH), 0.1))
        self.excite = nn.Parameter(torch.zeros(*shape, RECALIBRATION_WIDTH, 3))
        self.excite_bias = nn.Parameter(torch.zeros(*shape, 3))

    def forward(self, bands: Tensor) -> Tensor:
        strength = bands.abs().mean(dim=(-2, -1))
        hidden = F.gelu(torch.einsum("bktc,ktcd->bktd", strength, self.squeeze) + self.squeeze_bias)
        gain = 2 * torch.sigmoid(torch.einsum("bktd,ktdc->bktc", hidden, self.excite) + self.excite_bias)
        return bands * gain[..., None, None]


def dct_bands(x: Tensor, cuts: Tensor) -> Tensor:
    """Bands (B, 3, C, h, w) of 8 x 8 blocks, cut along the zigzag; cuts (B, 2) in parts of its length."""
    rows, cols = x.shape[-2:]
    padded = F.pad(x, (0, -cols % BLOCK, 0, -rows % BLOCK), mode="replicate")
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-3, -2)
    basis = dct_basis().to(x)
    spectrum = basis @ blocks @ basis.T
    low, high = _masks(zigzag().to(x), cuts)
    per_block = (slice(None), None, None, None)
    parts = torch.stack([spectrum * low[per_block], spectrum * high[per_block]], dim=1)
    low, high = (basis.T @ parts @ basis).transpose(-3, -2).flatten(-2).flatten(-3, -2)[..., :rows, :cols].unbind(1)
    return torch.stack([low, x - low - high, high], dim=1)


def dwt_bands(x: Tensor) -> Tensor:
    """Bands (B, 3, C, h, w) of one level of the Haar transform: LL, LH + HL, HH, each transformed back."""
    rows, cols = x.shape[-2:]
    padded = F.pad(x, (0, cols % 2, 0, rows % 2), mode="replicate")
    along_rows = _doubled(F.avg_pool2d(padded, (1, 2)), -1)
    along_cols = _doubled(F.avg_pool2d(padded, (2, 1)), -2)
    both = _doubled(F.avg_pool2d(along_rows, (2, 1)), -2)
    bands = torch.stack([both, along_rows + along_cols - 2 * both, padded - along_rows - along_cols + both], dim=1)
    return bands[..., :rows, :cols]


def fft_bands(x: Tensor, cuts: Tensor) -> Tensor:
    """Bands (B, 3, C, h, w) of the spectrum's rings; cuts (B, 2) in parts of the largest radius."""
    rows, cols = x.shape[-2:]
    spectrum = torch.fft.rfft2(x)
    fy = torch.fft.fftfreq(rows, device=x.device)[:, None]
    fx = torch.fft.rfftfreq(cols, device=x.device)[None, :]
    low, high = _masks(torch.sqrt(fy**2 + fx**2) / math.sqrt(0.5), cuts)
    parts = torch.stack([spectrum * low[:, None], spectrum * high[:, None]], dim=1)
    low, high = torch.fft.irfft2(parts, s=(rows, cols)).unbind(1)
    return torch.stack([low, x - low - high, high], dim=1)


def _masks(place: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high mask (B, *place) over places in 0..1; what they leave is the middle."""
    low, high = (cuts.view(-1, 2, *[1] * place.ndim)[:, i] for i in range(2))
    passed = torch.sigmoid(SHARPNESS * (low - place)) / torch.sigmoid(
        SHARPNESS * low
    )  # the mean is low, wherever the cut
    return passed, torch.sigmoid(SHARPNESS * (place - high))


def _doubled(x: Tensor, dim: int) -> Tensor:
    return x.repeat_interleave(2, dim)


@cache
def dct_basis() -> Tensor:
    """The orthonormal DCT-II of length 8: rows are frequencies."""
    k, n = torch.meshgrid(torch.arange(BLOCK), torch.arange(BLOCK), indexing="ij")
    basis = torch.cos(math.pi * (2 * n + 1) * k / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis


@cache
def zigzag() -> Tensor:
    """Each coefficient's place in JPEG's zigzag order, in 0..1."""
    cells = [(i, j) for i in range(BLOCK) for j in range(BLOCK)]
    ordered = sorted(cells, key=lambda c: (c[0] + c[1], c[0] if (c[0] + c[1]) % 2 else c[1]))
    place = torch.empty(BLOCK, BLOCK)
    for rank, cell in enumerate(ordered):
        place[cell] = rank / (len(cells) - 1)
    return place
