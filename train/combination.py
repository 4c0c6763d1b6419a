"""Fixed weights of the experts' images, solved in closed form from the products of their luma errors.

One matrix, with a number for each pair of experts, is enough: for weights w of sum 1, the combined image's mean squared
luma error is w' P w, also for any subset of the experts, without reading the images again.
"""

import numpy as np
import torch
from torch import Tensor

from championship_sr.train.metrics import rgb_to_y

PULL = 1e-4  # share of the mean's squared error that moving from equal weights by a vector of length 1 must gain
EQUAL_RMS = 1e-6  # of luma in 0..1: images that differ by less count as equal; float32 rounds at a tenth of it
ROWS_AT_ONCE = 256  # memory cannot hold a large image in float64 many times


def error_products(images: Tensor, hr: Tensor) -> Tensor:
    """(E, E) in float64: the mean over batch and pixels of the products of two experts' luma errors.

    images  (B, E, 3, H, W), in about 0..1
    hr      (B, 3, H, W)
    """
    total = torch.zeros((), dtype=torch.float64)
    for top in range(0, hr.shape[-2], ROWS_AT_ONCE):
        rows = (..., slice(top, top + ROWS_AT_ONCE), slice(None))
        errors = (rgb_to_y(images[rows]) - rgb_to_y(hr[rows]).unsqueeze(1)).transpose(0, 1).flatten(1)
        total = total + errors @ errors.T
    return total / (hr.shape[0] * hr.shape[-2] * hr.shape[-1])


def fit_weights(products: np.ndarray, pull: float = PULL) -> np.ndarray:
    """(..., E): the weights of sum 1, possibly negative, with the least squared error.

    products  (..., E, E), as of `error_products`; a matrix for each set of weights
    pull      strength of the weak pull to equal weights, which experts with equal images get
    """
    n_experts = products.shape[-1]
    equal = np.full(n_experts, 1 / n_experts)
    centred = np.eye(n_experts) - 1 / n_experts
    # with w = equal + v and v of sum 0: v' D v + 2 v' c + the mean's error, D and c of differences from the mean
    differences = centred @ products @ centred
    correlation = centred @ products @ equal
    error = equal @ products @ equal
    error = np.where(error > 0, error, 1.0)[..., None, None]  # a perfect mean is kept
    # the sum of v is 0 without the last term, which only keeps the system from being singular
    ridge = pull * np.eye(n_experts) + 1 / n_experts
    return equal + np.linalg.solve(differences + error * ridge, -correlation[..., None])[..., 0]


def squared_error(weights: np.ndarray, products: np.ndarray) -> np.ndarray:
    """(...): the mean squared luma error of the images combined by weights (..., E) of sum 1."""
    return np.maximum(np.einsum("...i,...ij,...j", weights, products, weights), 0.0)


def psnr_of(squared: np.ndarray) -> np.ndarray:
    """PSNR in dB of a mean squared luma error; inf where it is 0."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(squared)


def equal_experts(products: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of experts whose images are equal, by index."""
    own = np.diag(products)
    apart = own[:, None] + own - 2 * products
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(apart <= EQUAL_RMS**2, 1))]


def all_equal(products: np.ndarray) -> bool:
    """Whether there are several experts with equal images, so that no weights are better than others."""
    n_experts = len(products)
    return n_experts > 1 and len(equal_experts(products)) == n_experts * (n_experts - 1) // 2


def combined(images: Tensor, weights: Tensor) -> Tensor:
    """(B, 3, H, W): the images (B, E, 3, H, W) combined by weights (E,)."""
    return (images * weights.to(images).view(-1, 1, 1, 1)).sum(1)
