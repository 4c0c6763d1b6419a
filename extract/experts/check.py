"""Checks an expert: what is known without running it, whether it works, and how far it is from commuting with flips."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from championship_sr.extract.config import ExpertConfig
from championship_sr.extract.experts.expert import LoadedExpert
from championship_sr.extract.experts.networks import Network, load_network
from championship_sr.extract.experts.taps import captured, possible_shapes
from championship_sr.extract.experts.weights_file import weights_path
from championship_sr.extract.images.pairs import image_files
from championship_sr.extract.limits import now
from championship_sr.extract.memory import peak_memory
from championship_sr.store.errors import ConfigError, StoreError, WeightsError
from championship_sr.store.format.variants import VARIANTS, inverse, transform

CHECKED_PX = 32  # side of the image that `experts check` runs
ON_GRID_SIZES = ((64, 128), (128, 192))  # multiples of every published window; two sizes, to tell layouts apart


@dataclass(frozen=True)
class Listed:
    """One line of `experts list`."""

    name: str
    weights: str  # or the folder of its images
    state: str  # "there", "missing", or the fault of the file or the entry
    parameters: int | None  # None where only the missing file could tell
    taps: dict[str, str]  # name -> path
    channels: dict[str, int]  # of the taps, where the network's size is known
    licence: str | None
    url: str | None


def listed(config: ExpertConfig, scale: int) -> Listed:
    """What the entry says, what is on disk, and the network's size, without a forward pass of real numbers."""
    if config.images:
        return _listed_images(config, Path(config.images).expanduser())
    path, network, channels, state = weights_path(config), None, {}, "missing"
    if path.is_file():
        try:
            network, state = load_network(config, scale), "there"
        except (WeightsError, ConfigError) as error:
            state = str(error)
    if network is None:
        with contextlib.suppress(ConfigError):
            network = load_network(config, scale, random_weights=True)
    parameters = None if network is None else sum(p.numel() for p in network.model.parameters())
    if network is not None:
        try:
            channels = _tap_channels(config, network)
        except ConfigError as error:
            state = str(error)
    paths = {name: tap.path for name, tap in config.points.items()}
    return Listed(config.name, str(path), state, parameters, paths, channels, config.licence, config.url)


def _listed_images(config: ExpertConfig, folder: Path) -> Listed:
    state = "there"
    try:
        image_files(folder)
    except StoreError as error:
        state = str(error)
    return Listed(config.name, str(folder), state, None, {}, {}, config.licence, config.url)


def _tap_channels(config: ExpertConfig, network: Network) -> dict[str, int]:
    """Tap name -> channels, found from shapes alone (torch's meta device); none where the network needs numbers.

    raises  ConfigError for a tap that does not exist
    """
    model, points = network.model.to("meta"), config.points
    with captured(model, points) as seen, torch.no_grad():
        channels: dict[str, set[int]] = {}
        for size in ON_GRID_SIZES:
            try:
                network.call(torch.empty(1, 3, *size, device="meta"))
            except RuntimeError:
                return {}
            for name, tensor in seen.items():
                here = {shape.channels for shape in possible_shapes(tensor, points[name], size)}
                channels[name] = channels.get(name, here) & here
    return {name: left.pop() for name, left in channels.items() if len(left) == 1}


@dataclass(frozen=True)
class Checked:
    """One line of `experts check`."""

    name: str
    parameters: int
    scale: int
    channels: dict[str, int]
    deterministic: bool
    seconds: float  # of one forward of 32 x 32
    peak_gib: float


def check(expert: LoadedExpert) -> Checked:
    """Runs a 32 x 32 image twice; loading has checked weights, scale, taps and finiteness.

    raises  WeightsError if shapes are wrong, NonFiniteError
    """
    image = torch.rand(1, 3, CHECKED_PX, CHECKED_PX, generator=torch.Generator().manual_seed(1))
    with peak_memory(expert.device) as peak:
        started = time.perf_counter()
        sr, features = expert(image)
        seconds = now(expert.device) - started
    again = expert(image)
    side = CHECKED_PX * expert.scale
    wrong = {name: t for name, t in features.items() if t.shape[2:] != image.shape[2:]}
    if tuple(sr.shape) != (1, 3, side, side) or wrong:
        shapes = {"sr": tuple(sr.shape)} | {name: tuple(t.shape) for name, t in wrong.items()}
        raise WeightsError(f"expert {expert.name}: wrong shapes for an image of {CHECKED_PX} x {CHECKED_PX}: {shapes}")
    same = sr.equal(again[0]) and all(features[name].equal(again[1][name]) for name in features)
    return Checked(expert.name, expert.n_parameters, expert.scale, expert.channels, same, seconds, peak.gib)


@dataclass(frozen=True)
class Equivariance:
    """The difference between an expert's output for a transformed image and its transformed output."""

    variant: str
    psnr_db: float  # of the SR images, all channels
    cosine: dict[str, float]  # of each tap's features, mean over pixels


def equivariance(expert: LoadedExpert, lr: Tensor) -> list[Equivariance]:
    """One entry for each of the seven flips and rotations, on an image (1, 3, h, w) in 0..1."""
    sr, features = expert(lr)
    result = []
    for variant in VARIANTS[1:]:
        turned_sr, turned = expert(transform(lr, variant, (2, 3)))
        back_sr = transform(turned_sr, inverse(variant), (2, 3))
        error = torch.mean((back_sr.double() - sr.double()) ** 2)
        cosines = {
            name: torch.cosine_similarity(transform(turned[name], inverse(variant), (2, 3)), features[name], dim=1)
            for name in features
        }
        mean = {name: cosine.mean().item() for name, cosine in cosines.items()}
        result.append(Equivariance(variant, (-10 * torch.log10(error)).item(), mean))
    return result
