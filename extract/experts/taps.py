"""Named inner tensors of a network: captured by forward hooks, brought onto the LR grid."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from championship_sr.extract.config import TapConfig
from championship_sr.store.errors import ConfigError

RESOLUTIONS = sorted({Fraction(n) for n in (1, 2, 3, 4, 8, 16)} | {Fraction(1, n) for n in (2, 3, 4, 8, 16, 32)})[::-1]


@contextmanager
def captured(model: nn.Module, points: Mapping[str, TapConfig]) -> Iterator[dict[str, Tensor]]:
    """The tapped tensors as the network has them, refreshed by each forward in the block.

    raises  ConfigError before any forward, if a path is absent
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, tap in points.items():
            module = _submodule(model, name, tap)

            def keep(_module, args, output, name=name, tap=tap):
                value = args if tap.side == "input" else output
                # a copy: later layers may work in place
                seen[name] = _one_tensor(value, name, tap).detach().clone()

            stack.callback(module.register_forward_hook(keep).remove)
        yield seen


def _submodule(model: nn.Module, name: str, tap: TapConfig) -> nn.Module:
    try:
        return model.get_submodule(tap.path)
    except AttributeError:
        parent = tap.path
        known = dict(model.named_modules())
        while parent not in known:
            parent = parent.rpartition(".")[0]
        there = ", ".join(child for child, _ in known[parent].named_children()) or "nothing"
        place = f"{parent} has" if parent else f"{type(model).__name__} has"
        raise ConfigError(f"tap {name}: there is no module {tap.path}; {place} {there}") from None


def _one_tensor(value: object, name: str, tap: TapConfig) -> Tensor:
    items = value if isinstance(value, (tuple, list)) else (value,)
    if tap.item >= len(items) or not isinstance(items[tap.item], Tensor):
        kinds = ", ".join(type(item).__name__ for item in items)
        raise ConfigError(f"tap {name}: the {tap.side} of {tap.path} is ({kinds}); item {tap.item} is not a tensor")
    return items[tap.item]


@dataclass(frozen=True)
class TapShape:
    """The layout of a tapped tensor: determined once with a probe, then used for every image."""

    layout: str  # channels_first | channels_last | tokens
    channels: int
    resolution: Fraction  # sides of the tensor's grid over the sides of the LR image
    resample: str

    def record(self) -> dict[str, object]:
        """What the store keeps of it."""
        record = {"layout": self.layout, "channels": self.channels, "resolution": str(self.resolution)}
        return record if self.resolution == 1 else record | {"resample": self.resample}


def possible_shapes(tensor: Tensor, tap: TapConfig, padded: tuple[int, int]) -> set[TapShape]:
    """Every way to read a tapped tensor of an image of `padded` size; a second size leaves one of several.

    raises  ConfigError if there is none
    """
    shapes = set()
    for layout in ("channels_first", "channels_last", "tokens"):
        resolution = _resolution(tensor, layout, padded) if tap.layout in ("auto", layout) else None
        if resolution:
            channels = tensor.shape[1] if layout == "channels_first" else tensor.shape[-1]
            shapes.add(TapShape(layout, channels, resolution, tap.resample))
    if not shapes:
        size = f"{padded[0]} x {padded[1]}"
        raise ConfigError(
            f"tap {tap.path}: {tuple(tensor.shape)} does not match the grid of an image of {size} "
            f"(layout: {tap.layout}). Check window_px"
        )
    return shapes


def _resolution(tensor: Tensor, layout: str, padded: tuple[int, int]) -> Fraction | None:
    height, width = padded
    if layout == "tokens":
        return next((r for r in RESOLUTIONS if tensor.dim() == 3 and height * r * (width * r) == tensor.shape[1]), None)
    if tensor.dim() != 4:
        return None
    rows, cols = tensor.shape[2:] if layout == "channels_first" else tensor.shape[1:3]
    # a network may pad further by itself: the finest grid that covers the image
    return next((r for r in RESOLUTIONS if 1 <= rows / (height * r) < 2 and 1 <= cols / (width * r) < 2), None)


def to_lr_grid(tensor: Tensor, shape: TapShape, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The tapped tensor as (B, C, h, w) of the LR image: cropped, and resampled where it has another resolution.

    padded  the size that the network saw, size  the size of the image in it (top left)
    """
    resolution = shape.resolution
    if shape.layout == "tokens":
        rows, cols = int(padded[0] * resolution), int(padded[1] * resolution)
        tensor = tensor.unflatten(1, (rows, cols)).permute(0, 3, 1, 2)
    elif shape.layout == "channels_last":
        tensor = tensor.permute(0, 3, 1, 2)
    if resolution > 1 and shape.resample == "area":
        tensor = torch.nn.functional.avg_pool2d(tensor, int(resolution))
    elif resolution != 1:
        grid = tuple(round(n / resolution) for n in tensor.shape[2:])
        mode = "nearest" if shape.resample == "area" else "bilinear"  # area of one coarse cell is its value
        align = {"align_corners": False} if mode == "bilinear" else {}
        tensor = torch.nn.functional.interpolate(tensor, grid, mode=mode, **align)
    return tensor[..., : size[0], : size[1]]
