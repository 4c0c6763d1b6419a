"""The experts' images in the form that a network at LR sees."""

import torch
from torch import Tensor

from championship_sr.train.fusion.layers.blocks import resize, shuffle, unshuffle
from championship_sr.train.fusion.layers.newcomers import Newcomers


class Views:
    """Differences and details, brought to the order of 1; nothing here is learned.

    differences   (B, 3E, H, W): from the mean of the experts that the network began with, brought to the order of 1
    stacked       (B, E*3*scale^2, h, w): the same, as channels of LR pixels
    per_expert    (B, E, 3*scale^2, h, w): each expert's share of them
    detail        (B, 3*scale^2, h, w): the mean's own detail within each LR pixel
    """

    GAIN = 16.0  # experts differ by about 0.02, and from LR by about 0.05

    def __init__(self, lr: Tensor, images: Tensor, scale: int, newcomers: Newcomers) -> None:
        mean = newcomers.mean(images).unsqueeze(1)
        differences = ((images - mean) * self.GAIN).flatten(1, 2)
        self.scale = scale
        self.mean = mean[:, 0]
        self.differences = differences
        self.stacked = unshuffle(differences, scale)
        self.per_expert = self.stacked.unflatten(1, (images.shape[1], -1))
        inside = unshuffle(self.mean, scale).unflatten(1, (3, -1)) - lr.unsqueeze(2)
        self.detail = (inside * (self.GAIN / 4)).flatten(1, 2)

    def at(self, factor: int) -> Tensor:
        """The differences averaged to `factor` values a side of an LR pixel, as channels of LR pixels."""
        share, rest = divmod(self.scale, factor)
        if rest:
            size = [factor * side for side in self.stacked.shape[-2:]]
            return unshuffle(resize(self.differences, size), factor)
        values = self.stacked.unflatten(1, (-1, factor, share, factor, share))
        return values.mean((3, 5)).flatten(1, 3)

    def of(self, image: Tensor) -> Tensor:
        """A small image (B, 3, H, W), such as a correction, at LR."""
        return unshuffle(image * self.GAIN, self.scale)

    def moved(self, image: Tensor, x: Tensor, share: float) -> Tensor:
        """The image with this share of a correction x that was made at LR.

        Without the division by GAIN one early step of Adam moves the image further than its whole error.
        """
        return torch.add(image, shuffle(x, self.scale), alpha=share / self.GAIN)
