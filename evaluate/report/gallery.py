"""What a report shows of the images, gathered while they are scored: windows, who wins where, and nothing larger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from championship_sr.evaluate.methods import EXPERT, FUSION, MEAN
from championship_sr.evaluate.metrics import to_tensor
from championship_sr.evaluate.scoring.cases import Case
from championship_sr.evaluate.scoring.comparison import Pictures
from championship_sr.extract.images.decode import eight_bit
from championship_sr.train.metrics import rgb_to_y

WINDOW_LR_PX = 40  # side of a window; in HR pixels `scale` times that
WINDOWS = 4  # of each kind in a report
PER_IMAGE = 2
WINS_BLUR = 9  # HR pixels over which an expert must be nearer on average to win there


@dataclass(frozen=True)
class Cut:
    """One window: where it lies in LR pixels, what it looks like, and how much better the fusion is there.

    gain    mean squared luma error of the best expert less that of the fusion, in levels of 8 bits
    images  "HR" and method -> (H, W, 3) in uint8
    """

    case: Case
    y: int
    x: int
    gain: float
    best: str
    images: dict[str, np.ndarray]

    def errors(self) -> dict[str, np.ndarray]:
        """Method -> luma error (H, W) in levels of 8 bits, without sign."""
        truth = _luma(self.images["HR"])
        return {name: np.abs(_luma(image) - truth) for name, image in self.images.items() if name != "HR"}


@dataclass
class Gallery:
    """Looks on while a run is scored; pass it as `observe`."""

    scale: int
    gains: list[Cut] = field(default_factory=list)
    losses: list[Cut] = field(default_factory=list)
    wins: dict[str, list[float]] = field(default_factory=dict)  # expert -> share of the pixels of each image

    def __call__(self, pictures: Pictures) -> None:
        experts = {k.removeprefix(EXPERT): v for k, v in pictures.images.items() if k.startswith(EXPERT)}
        winner = nearest_expert(list(experts.values()), pictures.hr)
        for index, name in enumerate(experts):
            self.wins.setdefault(name, []).append(float((winner == index).mean()))
        if FUSION in pictures.images:
            self._keep(pictures, _best_expert(pictures, experts))

    def _keep(self, pictures: Pictures, best: str) -> None:
        truth = _luma(eight_bit(pictures.hr))
        squares = {k: (_luma(pictures.images[k]) - truth) ** 2 for k in (EXPERT + best, FUSION)}
        difference = torch.from_numpy(squares[EXPERT + best] - squares[FUSION])
        size = min(WINDOW_LR_PX, *pictures.lr.shape[:2])
        # one value a window, windows at whole LR pixels
        means = F.avg_pool2d(difference[None, None], size * self.scale, stride=self.scale)[0, 0]
        self.gains = _top(self.gains + self._cuts(pictures, best, means, size), WINDOWS)
        self.losses = _top(self.losses + self._cuts(pictures, best, -means, size, sign=-1), WINDOWS, sign=-1)

    def _cuts(self, pictures: Pictures, best: str, means: Tensor, size: int, sign: int = 1) -> list[Cut]:
        means, cuts = means.clone(), []
        for _ in range(PER_IMAGE):
            value, place = means.flatten().max(dim=0)
            if value <= 0:
                break
            y, x = divmod(place.item(), means.shape[1])
            # windows of one image do not overlap
            means[max(0, y - size + 1) : y + size, max(0, x - size + 1) : x + size] = -torch.inf
            inside = tuple(slice(n * self.scale, (n + size) * self.scale) for n in (y, x))
            shown = {"HR": eight_bit(pictures.hr)[inside]}
            shown |= {k: pictures.images[k][inside].copy() for k in (EXPERT + best, MEAN, FUSION)}
            cuts.append(Cut(pictures.case, y, x, sign * value.item(), best, shown))
        return cuts


def nearest_expert(images: Sequence[np.ndarray], hr: np.ndarray) -> np.ndarray:
    """(H, W): the index of the expert whose luma is nearest to HR's around each pixel."""
    truth = rgb_to_y(to_tensor(hr))
    squares = torch.cat([(rgb_to_y(to_tensor(image)) - truth).square() for image in images])
    around = F.avg_pool2d(squares, WINS_BLUR, stride=1, padding=WINS_BLUR // 2, count_include_pad=False)
    return around[:, 0].argmin(dim=0).numpy()


def _best_expert(pictures: Pictures, experts: Mapping[str, np.ndarray]) -> str:
    """The expert with the least luma error on the whole image."""
    truth = _luma(eight_bit(pictures.hr))
    return min(experts, key=lambda name: float(np.mean((_luma(experts[name]) - truth) ** 2)))


def _luma(image: np.ndarray) -> np.ndarray:
    return rgb_to_y(to_tensor(image))[0, 0].numpy() * 255


def _top(cuts: list[Cut], count: int, sign: int = 1) -> list[Cut]:
    return sorted(cuts, key=lambda cut: -sign * cut.gain)[:count]
