"""The configuration of this stage: which images, which experts, how the store is filled."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args

from championship_sr.store.config import PathText, UserPath, build, config_dataclass, read_yaml
from championship_sr.store.disk.small_files import parse_yaml
from championship_sr.store.errors import ConfigError
from championship_sr.store.format.layout import checked_name
from championship_sr.store.format.variants import VARIANTS


@config_dataclass
class PretrainConfig:
    """How an expert is trained; `network` is `package.module:Class`, `hyperparameters` its arguments."""

    network: str
    hyperparameters: dict[str, Any]
    hr: tuple[PathText, ...] = ()  # folders of HR images, for `experts pretrain` without a store
    start: UserPath | None = None  # weights to start from, instead of random ones
    scale: int = 4
    steps: int = 6000
    batch_size: int = 8
    patch_px: int = 32  # side of a crop, LR pixels
    losses: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})  # as in train.losses, without a teacher
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    ema_decay: float = 0.999
    collapse_tail: bool = False  # the linear layers at the end as one convolution while training
    local_attention: bool = False  # untrained window attention begins with near pixels
    half: bool = False  # write the weights in float16
    autocast: bool = True  # bfloat16 in the forward pass; weights and gradients stay float32
    checkpoint_steps: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "patch_px", "checkpoint_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, found {getattr(self, key)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), found {self.ema_decay}")


BUNDLED = "bundled:"  # weights that are package data, in extract/weights
FEATURES = "features"  # the tap that training reads
NO_TAP = "none"  # only the expert's SR images are kept
NETWORK_KEYS = ("taps", "architecture", "hyperparameters", "window_px", "sha256", "pretrain")
RESERVED_NAMES = ("lr", "hr", "sr")
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS = get_args(Precision)
FULL_SIZE_CHANNELS = {"hat-l": 180, "drct-l": 180, "grl-b": 180, "edsr-l": 256}  # of the published experts' features
FULL_SIZE = tuple(FULL_SIZE_CHANNELS)


@config_dataclass
class TapConfig:
    """A module of the network and which of its tensors is kept."""

    path: str  # dotted, as in named_modules()
    side: Literal["output", "input"] = "output"
    item: int = 0  # which tensor, if the module takes or returns several
    layout: Literal["auto", "channels_first", "channels_last", "tokens"] = "auto"
    resample: Literal["area", "bilinear"] = (
        "area"  # how to resample to the LR grid, if the tensor has another resolution
    )


@config_dataclass
class ExpertConfig:
    """A frozen network, its weights and its taps, or the images that it made; docs/experts.md explains each key."""

    name: str
    weights: str | None = None  # a path, or `bundled:file`
    images: str | None = None  # instead of weights: a folder of SR images that another program has made
    tap: str | TapConfig | None = None  # short for taps: {features: ...}; `none`: only the SR images are kept
    taps: dict[str, str | TapConfig] = field(default_factory=dict)
    architecture: str | None = None  # package.module:factory; absent: spandrel recognises the file
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    window_px: int | None = None  # images are padded to a multiple of it; absent: as the network states
    url: str | None = None
    sha256: str | None = None  # of the weights file; the first 8 digits or more
    licence: str | None = None
    source: str | None = None
    pretrain: PretrainConfig | None = None

    def __post_init__(self) -> None:
        checked_name(self.name, "name")
        if bool(self.weights) == bool(self.images):
            raise ValueError("give either weights or images")
        if self.images:
            self._check_images()
            return
        if bool(self.tap) == bool(self.taps):
            raise ValueError("give either tap or taps")
        if self.points and FEATURES not in self.points:
            raise ValueError(f"taps: one must be called {FEATURES}, found {', '.join(self.taps)}")
        for name in self.points:
            if name in RESERVED_NAMES:
                raise ValueError(f"taps: {name} is a name that the store uses itself")
            checked_name(name, "tap")
        if self.architecture and ":" not in self.architecture:
            raise ValueError(f"architecture must be package.module:factory, found {self.architecture}")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", self.sha256):
            raise ValueError(f"sha256 must be 8 to 64 hexadecimal digits, found {self.sha256}")
        if self.window_px is not None and self.window_px < 1:
            raise ValueError(f"window_px must be at least 1, found {self.window_px}")

    def _check_images(self) -> None:
        given = [key for key in NETWORK_KEYS if getattr(self, key)]
        if given or self.tap not in (None, NO_TAP):
            raise ValueError(
                f"{given[0] if given else 'tap'} belongs to a network, but this expert is given as images; leave it out"
            )

    @property
    def points(self) -> dict[str, TapConfig]:
        """Array name -> tap; none for an expert without features."""
        if self.images or self.tap == NO_TAP:
            return {}
        taps = {FEATURES: self.tap} if self.tap else self.taps
        return {name: TapConfig(path=tap) if isinstance(tap, str) else tap for name, tap in taps.items()}


@config_dataclass
class ImagesConfig:
    """Where the images are: data sets in a known layout, or folders of HR images, of LR images, or of both."""

    roots: tuple[PathText, ...] = ()  # folders in the layout of DF2K, DIV2K, Flickr2K or a benchmark
    split: Literal["train", "val", "all"] = "train"  # of the roots that have one
    hr: tuple[PathText, ...] = ()
    lr: tuple[PathText, ...] = ()  # one for each of hr, or LR only; none: LR is made from HR by the bicubic recipe

    def __post_init__(self) -> None:
        if not self.roots and not self.hr and not self.lr:
            raise ValueError("give roots, hr or lr: there are no images to read")
        if self.roots and self.lr and not self.hr:
            raise ValueError(
                "lr without hr cannot be combined with roots, which have HR: "
                "a store holds HR for all images or for none"
            )
        if self.lr and self.hr and len(self.lr) != len(self.hr):
            raise ValueError(f"lr must name one folder for each of hr, found {len(self.lr)} for {len(self.hr)}")

    @property
    def has_hr(self) -> bool:
        """Whether there are HR images; for all of them or for none."""
        return bool(self.roots or self.hr)


@config_dataclass
class ExtractConfig:
    """One extraction: images, experts, store, and everything that decides the bytes."""

    store: PathText
    data: ImagesConfig
    experts: tuple[str | dict[str, Any], ...] = FULL_SIZE  # names in configs/experts, YAML files or entries
    scale: int = 4
    container: Literal["zarr", "hdf5"] = "zarr"
    codecs: dict[str, str] = field(default_factory=dict)  # array -> codec; float16 where absent
    images_per_shard: int = 16
    tile_px: int = 512  # images with a longer side run in tiles of at most this side, LR pixels
    halo_px: int = 32  # overlap that is discarded on each inner side of a tile, LR pixels
    features: bool = True  # False: only the SR images of every expert are kept, as with `tap: none`
    batch_size: int = 1  # tiles or images of one size in one forward of a GPU; the CPU takes one at a time
    precision: Precision = "fp32"  # tf32: float32 whose products NVIDIA's GPUs round to ten bits of mantissa
    channels_last: bool = False
    compile: bool = False
    variants: tuple[str, ...] = ("identity",)
    device: str = "auto"
    one_device: bool = False  # the kind of device is part of an expert's identity: another one is refused
    random_weights: bool = False  # to plan a run before the weights exist; recorded in the store

    def __post_init__(self) -> None:
        for key in ("scale", "images_per_shard", "tile_px", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, found {getattr(self, key)}")
        if not 0 <= 2 * self.halo_px < self.tile_px:
            raise ValueError(f"halo_px must be at least 0 and less than half of tile_px, found {self.halo_px}")
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        if unknown or "identity" not in self.variants:
            raise ValueError(
                f"variants must contain identity and otherwise only {', '.join(VARIANTS)}; found {self.variants}"
            )
        # sorted and without repeats, so that stores of the same variants are equal
        object.__setattr__(self, "variants", tuple(variant for variant in VARIANTS if variant in self.variants))


def entries_dir() -> Traversable:
    """The folder of the expert entries that come with the package."""
    return resources.files("championship_sr.configs.experts")


def entry_names() -> list[str]:
    """The experts that come with the package, by name."""
    return sorted(item.name.removesuffix(".yaml") for item in entries_dir().iterdir() if item.name.endswith(".yaml"))


def load_expert_config(entry: str | Path | Mapping[str, Any] | ExpertConfig) -> ExpertConfig:
    """The expert's configuration, from a name in configs/experts, a YAML file or the entry itself.

    raises  ConfigError for an unknown name or a faulty entry
    """
    if isinstance(entry, ExpertConfig):
        return entry
    if isinstance(entry, Mapping):
        return build(ExpertConfig, entry, f"expert {entry.get('name', '(without name)')}")
    if str(entry).endswith((".yaml", ".yml")):
        path = Path(entry).expanduser()
        return _found_beside(build(ExpertConfig, read_yaml(path), str(entry)), path.parent)
    if entry not in entry_names():
        raise ConfigError(
            f"expert {entry}: no such entry (has: {', '.join(entry_names())}); give one of these or a YAML file"
        )
    text = entries_dir().joinpath(f"{entry}.yaml").read_text(encoding="utf-8")
    return build(ExpertConfig, parse_yaml(text), f"configs/experts/{entry}.yaml")


def _found_beside(config: ExpertConfig, folder: Path) -> ExpertConfig:
    """The configuration with weights that are beside the entry's file, instead of at a relative path."""
    weights = config.weights or ""
    if not weights or weights.startswith(BUNDLED) or Path(weights).exists() or not (folder / weights).exists():
        return config
    return replace(config, weights=str(folder / weights))


def expert_configs(entries: tuple[str | dict[str, Any], ...], names: Sequence[str] = ()) -> list[ExpertConfig]:
    """The configurations of the experts, all of them or those that are asked for.

    names   experts of the configuration, names in configs/experts, or YAML files
    raises  ConfigError for a name that is none of these, or two experts of one name
    """
    configs = _by_name(map(load_expert_config, entries))
    if not names:
        return list(configs.values())
    return list(_by_name(configs[name] if name in configs else _named(name, configs) for name in names).values())


def _by_name(configs: Iterable[ExpertConfig]) -> dict[str, ExpertConfig]:
    result: dict[str, ExpertConfig] = {}
    for config in configs:
        if config.name in result:
            raise ConfigError(f"expert {config.name}: named twice")
        result[config.name] = config
    return result


def _named(name: str, configs: Iterable[str]) -> ExpertConfig:
    if not name.endswith((".yaml", ".yml")) and name not in entry_names():
        raise ConfigError(
            f"expert {name}: not in this configuration (has: {', '.join(configs)}) and not an entry of the "
            "package; give one of these or a YAML file"
        )
    return load_expert_config(name)


def chosen_experts(config: ExtractConfig, names: Sequence[str] = ()) -> list[ExpertConfig]:
    """What `expert_configs` finds, without taps where the extraction keeps no features."""
    configs = expert_configs(config.experts, names)
    return configs if config.features else [replace(expert, tap=NO_TAP, taps={}) for expert in configs]
