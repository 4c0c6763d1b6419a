"""The last layers of a network as one convolution while it trains, and the network itself afterwards."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from championship_sr.store.errors import ConfigError

COLOURS = 3
PROBE_PX = 7  # wide enough that no border reaches the middle pixel


def collapse_tail(network: nn.Module) -> None:
    """Replaces `upsample` and `conv_last` by one 3x3 convolution and one pixel shuffle, in place.

    EDSR, HAT, DRCT and their kin have no activation between these layers: together they are one linear map, from
    features at LR to the image, and most of a small network's arithmetic. The convolution starts from the middle 3x3
    of that map. After training, `restored` gives the whole network back.

    source  Bhardwaj et al. 2022, "Collapsible linear blocks for super-efficient super resolution"
    raises  ConfigError for a network without such layers, or with too few features to restore it
    """
    convolutions, factors, last = _stages(network)
    width, scale = convolutions[0].in_channels, prod(factors)
    if width < COLOURS * (scale // factors[0]) ** 2:
        raise ConfigError(f"collapse_tail: {width} features of the tail are too few for scale {scale}")
    one = nn.Conv2d(width, COLOURS * scale**2, 3, padding=1)
    with torch.no_grad():
        tail = nn.Sequential(network.get_submodule("upsample"), last)
        one.load_state_dict(_linear_map(tail, width, scale))
    network.upsample = nn.Sequential(one, nn.PixelShuffle(scale))
    network.conv_last = nn.Identity()


@torch.no_grad()
def restored(collapsed: nn.Module, whole: nn.Module) -> nn.Module:
    """`whole`, built like the network before its tail was collapsed, with the weights that make the same image.

    The first convolution computes every pixel of the image; the others only hand it on to its place.
    """
    state = collapsed.state_dict()
    weight, bias = state.pop("upsample.0.weight"), state.pop("upsample.0.bias")
    whole.load_state_dict({key: state.get(key, value) for key, value in whole.state_dict().items()})
    convolutions, factors, last = _stages(whole)
    for parameter in (parameter for layer in (*convolutions, last) for parameter in layer.parameters()):
        parameter.zero_()
    rest = prod(factors[1:])
    first = dict(convolutions[0].named_parameters())
    first["weight"][: len(weight)] = _by_stage(weight, factors[0], rest)
    first["bias"][: len(bias)] = _by_stage(bias, factors[0], rest)
    for convolution, factor in zip(convolutions[1:], factors[1:], strict=True):
        handed = torch.eye(COLOURS * rest**2)
        rest //= factor
        convolution.weight[: len(handed), : len(handed), 1, 1] = _by_stage(handed, factor, rest)
    last.weight[:, :COLOURS, 1, 1] = torch.eye(COLOURS)
    return whole


def _stages(network: nn.Module) -> tuple[list[nn.Conv2d], list[int], nn.Conv2d]:
    """A tail of convolutions and pixel shuffles: the convolutions, the shuffles' factors, and the last convolution."""
    upsample, last = getattr(network, "upsample", None), getattr(network, "conv_last", None)
    layers = list(upsample) if isinstance(upsample, nn.Sequential) else []
    convolutions = [each for each in layers if isinstance(each, nn.Conv2d)]
    shuffles = [each for each in layers if isinstance(each, nn.PixelShuffle)]
    alternating = layers == [each for pair in zip(convolutions, shuffles, strict=False) for each in pair]
    if not layers or not alternating or not isinstance(last, nn.Conv2d):
        raise ConfigError(
            f"collapse_tail: {type(network).__name__} has no tail of `upsample`, convolutions with pixel shuffles, and "
            "`conv_last`; leave collapse_tail out"
        )
    return convolutions, [each.upscale_factor for each in shuffles], last


def _linear_map(tail: nn.Module, width: int, scale: int) -> dict[str, Tensor]:
    """The middle 3x3 of what the tail does to each feature: weight (3 scale^2, width, 3, 3), bias (3 scale^2,)."""
    middle = PROBE_PX // 2
    bias = pixel_unshuffle(tail(torch.zeros(1, width, PROBE_PX, PROBE_PX)), scale)[0, :, middle, middle]
    probes = torch.zeros(width, width, PROBE_PX, PROBE_PX)
    probes[range(width), range(width), middle, middle] = 1
    responses = pixel_unshuffle(tail(probes), scale) - bias.view(-1, 1, 1)
    around = slice(middle - 1, middle + 2)
    return {"weight": responses[:, :, around, around].flip(2, 3).transpose(0, 1), "bias": bias}


def _by_stage(rows: Tensor, factor: int, rest: int) -> Tensor:
    """Rows in the order of one large pixel shuffle, now in the order of one by `factor` followed by one by `rest`."""
    parts = rows.unflatten(0, (COLOURS, factor, rest, factor, rest))
    return parts.permute(0, 2, 4, 1, 3, *range(5, parts.ndim)).flatten(0, 4)
