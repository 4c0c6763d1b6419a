"""What an extraction will cost: bytes for each expert and codec, disk, hours; nothing is written."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from extract.config import ExtractConfig, expert_configs
from extract.experts import LoadedExpert, load_expert, resolve_device
from extract.images import find_pairs
from extract.statedict import weights_path
from extract.tiling import spans
from store.codecs import get_codec

# features and SR images, as one would choose them together
CODECS = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("float16", "uint8"),
    ("int8", "uint8"),
    ("pca64-int8", "uint8"),
)
MEASURED_PX = 64


@dataclass(frozen=True)
class ExpertPlan:
    """One expert's share of a plan."""

    name: str
    random_weights: bool
    channels: dict[str, int]
    px_per_second: float  # LR pixels through the network here, windows of 64 x 64
    hours: float
    bytes_by_codec: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """What an extraction will cost on this machine."""

    images: int
    shards: int
    lr_px: int
    pairs_bytes: int
    experts: tuple[ExpertPlan, ...]
    free_bytes: int

    @property
    def hours(self) -> float:
        return sum(expert.hours for expert in self.experts)

    def total_bytes(self, codec: str) -> int:
        """Bytes of the whole store."""
        return self.pairs_bytes + sum(expert.bytes_by_codec[codec] for expert in self.experts)


def plan(config: ExtractConfig, sizes: Sequence[tuple[int, int]] | None = None, names: tuple[str, ...] = ()) -> Plan:
    """The plan of an extraction of `config`'s images, or of images of these LR sizes.

    Experts whose weights are missing are measured with random ones, where their entry allows.
    raises  ConfigError, StoreError, WeightsError as the extraction would
    """
    if sizes is None:
        sizes = [pair.lr_size for pair in find_pairs(config.data, config.scale)]
    device = resolve_device(config.device)
    lr_px = sum(height * width for height, width in sizes)
    experts = []
    for entry in expert_configs(config.experts, names):
        random = config.random_weights or not weights_path(entry).is_file()
        with load_expert(entry, device, config.scale, random, precision=config.precision) as expert:
            speed = measured_speed(expert)
            work = sum(worked_px(size, config, expert.multiple_px, expert.align_px) for size in sizes) * len(
                config.variants
            )
            experts.append(
                ExpertPlan(
                    name=expert.name,
                    random_weights=random,
                    channels=expert.channels,
                    px_per_second=speed,
                    hours=work / speed / 3600,
                    bytes_by_codec={
                        f"{features} + {sr}": lr_px * len(config.variants) * _bytes_per_px(expert, features, sr)
                        for features, sr in CODECS
                    },
                )
            )
    return Plan(
        images=len(sizes),
        shards=-(-len(sizes) // config.images_per_shard),
        lr_px=lr_px,
        pairs_bytes=lr_px * 3 * (1 + config.scale**2),
        experts=tuple(experts),
        free_bytes=free_bytes(Path(config.store)),
    )


def measured_speed(expert: LoadedExpert) -> float:
    """LR pixels a second of one forward of 64 x 64; loading has warmed the network up."""
    image = torch.rand(1, 3, MEASURED_PX, MEASURED_PX)
    started = time.perf_counter()
    with torch.inference_mode():
        sr, _ = expert(image)
        sr.cpu()  # waits for the device
    return MEASURED_PX**2 / (time.perf_counter() - started)


def worked_px(size: tuple[int, int], config: ExtractConfig, multiple_px: int, align_px: int) -> int:
    """LR pixels that the network sees of an image of this size: with window padding and overlaps."""
    axes = [spans(length, config.tile_px, config.halo_px, align_px) for length in size]
    return prod(sum(-(-span.size // multiple_px) * multiple_px for span in axis) for axis in axes)


def free_bytes(store: Path) -> int:
    """Bytes free where the store is or will be."""
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _bytes_per_px(expert: LoadedExpert, features: str, sr: str) -> int:
    codec, sr_codec = get_codec(features), get_codec(sr)
    taps = sum(codec.raw_channels(n) * codec.raw_dtype.itemsize for n in expert.channels.values())
    return taps + 3 * expert.scale**2 * sr_codec.raw_dtype.itemsize
