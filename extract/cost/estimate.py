"""What an extraction will cost: bytes for each expert and codec, disk, hours; nothing is written."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from championship_sr.extract.config import ExpertConfig, ExtractConfig, chosen_experts
from championship_sr.extract.device import bench_px, pick_device
from championship_sr.extract.experts.expert import LoadedExpert, load_expert
from championship_sr.extract.experts.tiling import spans
from championship_sr.extract.experts.weights_file import weights_path
from championship_sr.extract.images.pairs import find_pairs, joined
from championship_sr.extract.images.results import asked_of, match_results
from championship_sr.extract.limits import bus_gbytes_per_second, now, share_of_bus
from championship_sr.extract.run.register import DEFAULT_CODEC
from championship_sr.store.codecs import get_codec
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.remote.bucket import is_remote

# features and SR images, as one would choose them together
CODECS = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("float16", "uint8"),
    ("int8", "uint8"),
    ("pca64-int8", "uint8"),
    ("pca150-int4", "uint8"),
)
SR_CODECS = tuple(sr for _, sr in CODECS)
MEASURED_TIMES, MEASURED_SECONDS = 3, 1.0  # the extra cost of the first forward of a size is not counted


@dataclass(frozen=True)
class ExpertPlan:
    """One expert's share of a plan."""

    name: str
    random_weights: bool
    channels: dict[str, int]
    px_per_second: float | None  # LR pixels through the network; None for a folder of images
    measured: bool  # here, on a tile of `bench_px`; False: given, or nothing to measure
    multiple_px: int  # what sides are padded to
    align_px: int  # what tiles begin at multiples of
    share_of_peak: float | None  # of one large matrix product, by the measured forward; None where none was measured
    share_of_bus: float | None  # of the speed of pinned copies, by its arrays at that speed; None without a bus as well
    hours: float
    bytes_by_codec: dict[str, int]
    bytes: int  # with the configuration's own codecs
    bytes_without_features: int  # the same for its SR images alone


@dataclass(frozen=True)
class Plan:
    """What an extraction will cost one device."""

    images: int
    shards: int
    lr_px: int
    pairs_bytes: int
    experts: tuple[ExpertPlan, ...]
    free_bytes: int | None  # None for object storage, which has no limit
    peak_tflops: float | None  # of the device in one large matrix product; None if nothing was measured
    bus_gbytes_per_second: float | None  # of pinned copies from the device; None on a device without a bus as well

    @property
    def hours(self) -> float:
        return sum(expert.hours for expert in self.experts)

    @property
    def bytes(self) -> int:
        """Bytes of the whole store with the configuration's codecs."""
        return self.pairs_bytes + sum(expert.bytes for expert in self.experts)

    @property
    def bytes_without_features(self) -> int:
        """Bytes of the whole store if only SR images were kept, with the configuration's codec."""
        return self.pairs_bytes + sum(expert.bytes_without_features for expert in self.experts)

    def total_bytes(self, codec: str) -> int:
        """Bytes of the whole store."""
        return self.pairs_bytes + sum(expert.bytes_by_codec[codec] for expert in self.experts)


def plan(
    config: ExtractConfig,
    sizes: Sequence[tuple[int, int]] | None = None,
    names: tuple[str, ...] = (),
    speeds: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of an extraction of `config`'s images, or of images of these LR sizes.

    speeds   expert -> LR pixels per second, for experts that are not to be measured here
    raises   ConfigError, StoreError, WeightsError as the extraction would

    Experts whose weights are missing are loaded with random ones, where their entry allows.
    """
    entries = chosen_experts(config, names)
    sizes, speeds = planned_sizes(config, entries) if sizes is None else sizes, dict(speeds or {})
    device = pick_device(config.device)
    lr_px = sum(height * width for height, width in sizes)
    unknown = sorted(speeds.keys() - {entry.name for entry in entries})
    if unknown:
        raise ConfigError(f"--px-per-second {unknown[0]}: no such expert (has: {', '.join(e.name for e in entries)})")
    experts, peak = list[ExpertPlan](), None
    for entry in entries:
        if entry.images:
            experts.append(_images_plan(entry, config, lr_px))
            continue
        random = config.random_weights or not weights_path(entry).is_file()
        with load_expert(
            entry,
            device,
            config.scale,
            random,
            precision=config.precision,
            channels_last=config.channels_last,
            compiled=config.compile,
        ) as expert:
            experts.append(_expert_plan(expert, config, sizes, random, speeds.get(entry.name)))
            peak = peak if entry.name in speeds else expert.peak_tflops()
    return Plan(
        images=len(sizes),
        shards=-(-len(sizes) // config.images_per_shard),
        lr_px=lr_px,
        pairs_bytes=lr_px * 3 * (1 + config.scale**2 * config.data.has_hr),
        experts=tuple(experts),
        free_bytes=None if is_remote(config.store) else free_bytes(Path(config.store)),
        peak_tflops=peak,
        bus_gbytes_per_second=bus_gbytes_per_second(device) if peak else None,
    )


def planned_sizes(config: ExtractConfig, entries: Sequence[ExpertConfig] = ()) -> list[tuple[int, int]]:
    """The LR sizes of the configuration's images, by their headers.

    raises  StoreError listing what does not fit, also of experts that are folders of images
    """
    pairs, faults = find_pairs(config.data, config.scale), list[str]()
    for entry in entries:
        if entry.images:
            match_results(entry, asked_of(pairs), config.scale, faults)
    if faults:
        raise StoreError(joined(faults))
    return [pair.lr_size for pair in pairs]


def _expert_plan(
    expert: LoadedExpert, config: ExtractConfig, sizes: Sequence[tuple[int, int]], random: bool, given: float | None
) -> ExpertPlan:
    speed = given or measured_speed(expert)
    n_px = sum(height * width for height, width in sizes) * len(config.variants)
    work = sum(
        count * worked_px(size, config, expert.multiple_px, expert.align_px) for size, count in Counter(sizes).items()
    )
    own_bytes = _bytes_per_px(expert, {name: _own(name, config) for name in ("sr", *expert.channels)})
    return ExpertPlan(
        name=expert.name,
        random_weights=random,
        channels=expert.channels,
        px_per_second=speed,
        measured=given is None,
        multiple_px=expert.multiple_px,
        align_px=expert.align_px,
        share_of_peak=None if given else speed * expert.flop_per_px() / 1e12 / expert.peak_tflops(),
        share_of_bus=None if given else share_of_bus(speed * own_bytes, expert.device),
        hours=work * len(config.variants) / speed / 3600,
        bytes_by_codec={
            f"{features} + {sr}": n_px * _bytes_per_px(expert, {"sr": sr} | dict.fromkeys(expert.channels, features))
            for features, sr in CODECS
        },
        bytes=n_px * own_bytes,
        bytes_without_features=n_px * _bytes_per_px(expert, {"sr": _own("sr", config)}),
    )


def _images_plan(entry: ExpertConfig, config: ExtractConfig, lr_px: int) -> ExpertPlan:
    """The plan of an expert that is a folder of images: nothing is run, and each image is kept in one variant."""
    sr_bytes = {
        codec: lr_px * config.scale**2 * get_codec(codec).pixel_bytes(3) for codec in (_own("sr", config), *SR_CODECS)
    }
    own = sr_bytes[_own("sr", config)]
    return ExpertPlan(
        name=entry.name,
        random_weights=False,
        channels={},
        px_per_second=None,
        measured=False,
        multiple_px=1,
        align_px=1,
        share_of_peak=None,
        share_of_bus=None,
        hours=0.0,
        bytes_by_codec={f"{features} + {sr}": sr_bytes[sr] for features, sr in CODECS},
        bytes=own,
        bytes_without_features=own,
    )


def measured_speed(expert: LoadedExpert) -> float:
    """LR pixels per second of one forward: the fastest of three, or the first if that takes long."""
    side, times = bench_px(expert.device), list[float]()
    image = torch.rand(1, 3, side, side, device=expert.device)
    with torch.inference_mode():
        while not times or (len(times) < MEASURED_TIMES and sum(times) < MEASURED_SECONDS):
            started = now(expert.device)
            expert.unchecked(image)
            times.append(now(expert.device) - started)
    return side**2 / min(times)


def worked_px(size: tuple[int, int], config: ExtractConfig, multiple_px: int, align_px: int) -> int:
    """LR pixels that the network processes for an image of this size, with window padding and overlaps."""
    axes = [spans(length, config.tile_px, config.halo_px, align_px) for length in size]
    return prod(sum(-(-span.size // multiple_px) * multiple_px for span in axis) for axis in axes)


def free_bytes(store: Path) -> int:
    """Bytes free where the store is or will be."""
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _bytes_per_px(expert: LoadedExpert, codecs: Mapping[str, str]) -> int:
    """Bytes for one LR pixel of the arrays with these codecs, before compression."""
    channels = {name: (n, 1) for name, n in expert.channels.items()} | {"sr": (3, expert.scale**2)}
    return sum(
        factor * get_codec(codecs[name]).pixel_bytes(n) for name, (n, factor) in channels.items() if name in codecs
    )


def _own(array: str, config: ExtractConfig) -> str:
    """The configuration's codec of an array."""
    return config.codecs.get(array, DEFAULT_CODEC)
