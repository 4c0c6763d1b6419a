"""Phase 2: the LR image in nine frequency bands, three each of DCT, DWT and FFT."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from championship_sr.train.fusion.layers.blocks import apply_each, first, last, layers_of, padded, shuffle, unshuffle
from championship_sr.train.fusion.layers.constants import constant
from championship_sr.train.fusion.layers.forms import in_float32

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
        with in_float32(lr):
            bands = self.recalibrate(self.split(lr.float()))
            guidance = (bands * torch.softmax(self.fuse, dim=0)[..., None, None, None]).sum(1)
        return bands.flatten(1, 2), guidance

    def split(self, lr: Tensor) -> Tensor:
        """The bands (B, transform, tier, 3, h, w) as they are; each transform's three add up to the image."""
        dct, fft = masks(cuts_of(lr, self.dct_cuts, self.fft_cuts), *lr.shape[-2:])
        return torch.stack([dct_bands(lr, dct), dwt_bands(lr), fft_bands(lr, fft)], dim=1)


class Cuts(nn.Module):
    """Where low ends and high begins for each image, 0 < low < high < 1, from its colours and contrasts: (B, 2)."""

    def __init__(self, start: tuple[float, float], hidden: int = 64) -> None:
        super().__init__()
        enter, leave = nn.Linear(6, hidden), nn.Linear(hidden, 2)
        self.net = nn.Sequential(enter, nn.GELU(), leave)
        low, high = start
        nn.init.zeros_(leave.weight)
        with torch.no_grad():
            leave.bias.copy_(torch.logit(torch.tensor([low, (high - low) / (1 - low)])))

    def forward(self, lr: Tensor) -> Tensor:
        return cuts_of(lr, self)[:, 0]


def cuts_of(lr: Tensor, *transforms: Cuts) -> Tensor:
    """The cuts of several transforms at once, (B, transforms, 2)."""
    spread, mean = torch.std_mean(lr, dim=(-2, -1))
    n = len(transforms)
    enter, leave = zip(*(layers_of(nn.Linear, cuts.net) for cuts in transforms), strict=True)
    seen = torch.cat([mean, spread], dim=1).T.expand(n, -1, -1)  # (transforms, 6, B)
    hidden = F.gelu(apply_each(enter, seen))
    taken = F.softplus(apply_each(leave, hidden))
    # 1 - low, and (1 - low) (1 - rest) = 1 - high, in logarithms
    above = torch.bmm(taken_so_far(lr.device).to(taken.dtype).expand(n, -1, -1), taken).exp()
    return (1 - above).permute(2, 0, 1)


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
        flat = bands.flatten(1, 2)  # (B, 9, 3, h, w)
        strength = torch.linalg.vector_norm(flat, 1, dim=(-2, -1)).transpose(0, 1)  # (9, B, 3)
        pixels = bands.shape[-2] * bands.shape[-1]
        hidden = F.gelu(_per_band(self.squeeze, self.squeeze_bias, strength, alpha=1 / pixels))
        gain = 2 * torch.sigmoid(_per_band(self.excite, self.excite_bias, hidden))
        return (flat * gain.transpose(0, 1)[..., None, None]).view_as(bands)


def _per_band(weight: Tensor, bias: Tensor, x: Tensor, alpha: float = 1.0) -> Tensor:
    """Each band's own linear layer of alpha * x (9, B, inputs): (9, B, outputs)."""
    return torch.baddbmm(bias.flatten(0, 1).unsqueeze(1), x, weight.flatten(0, 1), alpha=alpha)


def dct_bands(x: Tensor, masks: Tensor) -> Tensor:
    """Bands (B, 3, C, h, w) of 8 x 8 blocks; masks (B, 3, 64) of the coefficients of each block."""
    basis = dct_basis(x.device).to(x.dtype)
    spectrum = _blocks(x, BLOCK) @ basis.T  # (B, h / 8, w / 8, C, 64)
    parts = spectrum.unsqueeze(1) * masks[:, :, None, None, None]
    return _whole(parts @ basis, BLOCK, x)


def dwt_bands(x: Tensor) -> Tensor:
    """Bands (B, 3, C, h, w) of one level of the Haar transform: LL, LH + HL, HH, each transformed back."""
    parts = _blocks(x, 2) @ haar_bands(x.device).to(x.dtype)  # (B, h / 2, w / 2, C, 12)
    return _whole(parts, 2, x).unflatten(1, (-1, len(TIERS))).transpose(1, 2)


def fft_bands(x: Tensor, masks: Tensor) -> Tensor:
    """Bands (B, 3, C, h, w) of the spectrum's rings; masks (B, 3, places) of the half-plane."""
    spectrum = torch.view_as_real(torch.fft.rfft2(x))
    parts = spectrum.unsqueeze(1) * masks.unflatten(-1, spectrum.shape[-3:-1])[:, :, None, ..., None]
    return torch.fft.irfft2(torch.view_as_complex(parts), s=x.shape[-2:])


def _blocks(x: Tensor, side: int) -> Tensor:
    """The blocks of an image (B, C, h, w) as rows, (B, h / side, w / side, C, side * side), edges repeated."""
    return last(unshuffle(padded(x, side), side)).unflatten(-1, (x.shape[1], -1))


def _whole(blocks: Tensor, side: int, x: Tensor) -> Tensor:
    """The way back, cut to the size of x."""
    return shuffle(first(blocks.flatten(-2)), side)[..., : x.shape[-2], : x.shape[-1]]


def masks(cuts: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """What each tier passes, low, mid and high, which add up to 1: of the DCT (B, 3, 64), of the FFT (B, 3, places).

    cuts   (B, 2, 2): low and high of the DCT in parts of the zigzag, of the FFT in parts of the largest radius
    places the half-plane of the spectrum of rows x cols, line by line
    """
    device, dtype = cuts.device, cuts.dtype
    places = places_of(rows, cols, device).to(dtype)
    steep = torch.addmm(places, cuts.flatten(1), steepness(rows, cols, device).to(dtype)).unflatten(-1, (3, -1))
    from_mean, to_tiers = below_mean(device).to(dtype), tiers_of(device).to(dtype)
    passed = torch.bmm(from_mean.expand(len(cuts), -1, -1), F.softplus(steep)).exp()
    tiers = torch.baddbmm(to_tiers[:, 2:], to_tiers[:, :2].expand(len(cuts), -1, -1), passed)
    return tiers.split([BLOCK**2, rows * (cols // 2 + 1)], dim=-1)


@constant
def taken_so_far(device: torch.device) -> Tensor:
    """What makes the first of two numbers, and their sum, negative."""
    return torch.tensor([[-1.0, 0.0], [-1.0, -1.0]], device=device)


@constant
def below_mean(device: torch.device) -> Tensor:
    """What makes the logarithms of the low and the high mask of the negative ones of low, high and low at the mean.

    The mean itself is low, wherever the cut. Negative, as softplus gives them: the logarithm of a sigmoid, as other
    programs compute an exported network, is minus infinity far from the cut, and a product of it with 0 no number.
    """
    return torch.tensor([[-1.0, 0.0, 1.0], [0.0, -1.0, 0.0]], device=device)


@constant
def tiers_of(device: torch.device) -> Tensor:
    """How low, mid and high are made of the low mask, the high mask and 1: mid is what those two leave."""
    return torch.tensor([[1.0, 0.0, 0.0], [-1.0, -1.0, 1.0], [0.0, 1.0, 0.0]], device=device)


@constant
def places_of(rows: int, cols: int, device: torch.device) -> Tensor:
    """What `steepness` times the cuts is added to: the places of all coefficients for low, high, and none."""
    fy = torch.fft.fftfreq(rows, device=device)[:, None]
    fx = torch.fft.rfftfreq(cols, device=device)[None, :]
    radius = torch.sqrt(fy**2 + fx**2) / math.sqrt(0.5)
    places = torch.cat([zigzag(device).flatten(), radius.flatten()])
    return SHARPNESS * torch.cat([places, -places, torch.zeros_like(places)])


@constant
def steepness(rows: int, cols: int, device: torch.device) -> Tensor:
    """(4, 3 * places): how low and high of the DCT and of the FFT enter the exponent in each mask's sigmoid."""
    transform = torch.arange(BLOCK**2 + rows * (cols // 2 + 1), device=device) >= BLOCK**2
    dct, fft, none = (SHARPNESS * x.float() for x in (~transform, transform, transform & ~transform))
    lines = [-dct, none, -dct], [none, dct, none], [-fft, none, -fft], [none, fft, none]
    return torch.stack([torch.cat(line) for line in lines])


@constant
def dct_basis(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of a block of 8 x 8 as a row of 64: rows are frequencies."""
    at = torch.arange(BLOCK, device=device)
    line = torch.cos(math.pi * (2 * at + 1) * at[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    line[0] /= math.sqrt(2)
    return torch.kron(line, line)


@constant
def haar_bands(device: torch.device) -> Tensor:
    """What makes LL, LH + HL and HH of a block of 2 x 2: (4, 12)."""
    one, mean = torch.eye(2, device=device), torch.full((2, 2), 0.5, device=device)
    along_rows, along_cols, both = torch.kron(one, mean), torch.kron(mean, one), torch.kron(mean, mean)
    bands = both, along_rows + along_cols - 2 * both, torch.eye(4, device=device) - along_rows - along_cols + both
    return torch.cat(bands, dim=1)


@constant
def zigzag(device: torch.device) -> Tensor:
    """Each coefficient's place in JPEG's zigzag order, in 0..1."""
    cells = [(i, j) for i in range(BLOCK) for j in range(BLOCK)]
    ordered = sorted(cells, key=lambda c: (c[0] + c[1], c[0] if (c[0] + c[1]) % 2 else c[1]))
    rank = {cell: at / (len(cells) - 1) for at, cell in enumerate(ordered)}
    return torch.tensor([[rank[i, j] for j in range(BLOCK)] for i in range(BLOCK)], device=device)
