"""The configuration of a training run, as frozen dataclasses; every value is used.

Lengths (of the run, of stages, warm-up and intervals) are steps, epochs or per cent of the run: `500`,
`"500 steps"`, `"20 epochs"`, `"40 %"`.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from championship_sr.extract.config import ExpertConfig, load_expert_config
from championship_sr.store.config import UserPath, config_dataclass
from championship_sr.train.data.sampler import Weighting
from championship_sr.train.data.variants import Augment
from championship_sr.train.fusion.config import FusionConfig
from championship_sr.train.losses.combined import LOSSES, TAUGHT
from championship_sr.train.schedule import (
    Curriculum,
    LearningRate,
    RunLength,
    constant,
    cosine,
    parse_length,
    restarts,
    stages,
)


def _length(value: int | str) -> int | str:
    parse_length(value)
    return value


def _loss_name(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"no loss is called {name!r}; there are {', '.join(LOSSES)}")
    return name


def _compile_mode(value: bool | str) -> bool | str:
    if isinstance(value, str) and value not in COMPILE_MODES:
        raise ValueError(f"expected true, false or a mode of torch.compile: {', '.join(COMPILE_MODES)}")
    return value


GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of torch.compile: with CUDA graphs
COMPILE_MODES = ("default", *GRAPH_MODES, "max-autotune-no-cudagraphs")
WEIGHTED = ("fitted", "mean")  # teachers that are the experts' images combined by fixed weights

Length = Annotated[int | str, AfterValidator(_length)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Compile = Annotated[bool | str, AfterValidator(_compile_mode)]
LossName = Annotated[str, AfterValidator(_loss_name)]


@config_dataclass
class LiveConfig:
    """Experts in the step, and the augmentations that need them; these are refused on a store."""

    enabled: bool = False  # `--live`
    experts: tuple[str, ...] = ()  # names of configs/experts or YAML files; empty: those that the store records
    colour_jitter: Share = 0.0  # probability
    colour_strength: Share = 0.05  # brightness, contrast and saturation change by up to this
    blur: Share = 0.0  # probability
    blur_sigma_px: NotNegative = 0.5  # in LR pixels
    crop_scale: tuple[float, float] = (
        1.0,
        1.0,
    )  # a window's size before it is resized to crop_px, smallest and largest

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0.5 <= low <= high <= 2:
            raise ValueError(
                f"crop_scale={list(self.crop_scale)}: must be two factors between 0.5 and 2, the smaller first"
            )

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The augmentations that are on."""
        on = {
            "colour_jitter": self.colour_jitter > 0,
            "blur": self.blur > 0,
            "crop_scale": tuple(self.crop_scale) != (1.0, 1.0),
        }
        return tuple(name for name, used in on.items() if used)


@config_dataclass
class DataConfig:
    """Which windows a step sees. See train/data/sampler.py for the order and train/data/mixing.py for the mixing."""

    batch_size: Positive = 16  # windows per optimiser step, over all processes and micro-batches
    batch_per_process: Annotated[int, Field(ge=0)] = (
        0  # instead of batch_size: windows of each process; 0: share batch_size
    )
    accumulation: Positive = 1  # micro-batches per step: the same result in less memory
    crop_px: Annotated[int, Field(ge=8)] = 64  # side of a window, LR pixels
    repeat_factor: Positive = 20  # windows per image and epoch, on average
    weighting: Weighting = "crops"
    crops_per_visit: Positive = 1  # more: longer reads of a store that is larger than memory
    pool_visits: Positive = 64
    shards_at_once: Annotated[int, Field(ge=0)] = (
        0  # shards that are visited before the next ones; 0: all; see docs/training.md
    )
    sharding: Literal["all", "node"] = "all"  # node: each machine's processes only read a share of the shards
    cache: UserPath | None = None  # folder for shards of a store in object storage; None: below the user's cache folder
    cache_gb: Annotated[float, Field(gt=0)] = 100.0  # GB that they may take there
    threads: Annotated[int, Field(ge=0)] = 2  # threads that copy windows; 0 copies between steps
    buffer_mib: Positive = 128
    ahead_mib: Annotated[int, Field(ge=0)] = 128
    check: bool = False  # compare a local store's arrays with their checksums, each in full before its first window
    augment: Augment = "none"
    cutblur: Share = 0.0  # probability, each step
    cutblur_share: Share = 0.5  # the box's sides are at most this share of the window's
    mixup: Share = 0.0  # probability, each step
    mixup_alpha: Annotated[float, Field(gt=0)] = 1.2  # of the Beta distribution; Yoo et al. 2020 (CutBlur), table 1


@config_dataclass
class StageConfig:
    """One stage of the curriculum; weights that `to` also names change linearly to its values at the stage's end."""

    length: Length
    weights: dict[LossName, NotNegative]
    name: str = ""
    to: dict[LossName, NotNegative] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(self.weights.values()):
            raise ValueError("weights: at least one loss needs a weight above 0")
        if self.to and not any(self.weights_at(1).values()):
            raise ValueError("to: at least one loss needs a weight above 0 at the end of the stage")

    @property
    def used(self) -> set[str]:
        """The losses that have a weight at any step."""
        return {name for weights in (self.weights, self.to) for name, weight in weights.items() if weight}

    def weights_at(self, done: float) -> dict[str, float]:
        """The weights once this share of the stage, 0 to 1, is done."""
        names = dict.fromkeys([*self.weights, *self.to])
        first = {name: self.weights.get(name, 0.0) for name in names}
        return {name: start + (self.to.get(name, start) - start) * done for name, start in first.items()}


@config_dataclass
class LossConfig:
    """The stages, and files for the losses that need weights."""

    stages: tuple[StageConfig, ...] = (StageConfig("100 %", {"l1": 1.0}, "pixels"),)
    vgg_weights: UserPath | None = None  # None: torch's cache
    clip_weights: UserPath | None = None  # None: the cache of huggingface_hub
    complement_share: Annotated[float, Field(gt=0, lt=1)] = 0.25  # of the student in the mean with its teacher

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: at least one is needed")

    @property
    def used(self) -> tuple[str, ...]:
        """The losses that any stage gives a weight to."""
        return tuple(name for name in LOSSES if any(name in stage.used for stage in self.stages))


@config_dataclass
class OptimiserConfig:
    """AdamW, or Muon for the weights of layers (timm's, AdamW for everything else): needs the extra `muon`."""

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: NotNegative = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    clip_norm: NotNegative = 1.0  # of the gradient; 0 does not clip


@config_dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    kind: Literal["cosine", "restarts", "constant"] = "cosine"
    warmup: Length = "2 %"
    warmup_from: NotNegative = 5e-7
    lowest: NotNegative = 5e-8
    first_cycle: Length = "100 %"  # of restarts
    cycle_factor: Annotated[float, Field(ge=1)] = 2.0


@config_dataclass
class ValidationConfig:
    """Whole images that are never trained on, by which checkpoints are chosen.

    One of: a `store` of their own; the `images` of the training store with these ids; `hr` folders (with `lr`,
    or LR made by the bicubic recipe), extracted into the run first; or else `hold_out` images of the training
    store, chosen by a hash of their ids.
    """

    every: Length = 500
    store: UserPath | None = None
    images: tuple[str, ...] = ()
    hr: tuple[UserPath, ...] = ()
    lr: tuple[UserPath, ...] = ()
    hold_out: Annotated[int, Field(ge=0)] = 4  # 0: no validation; the last checkpoint then counts as the best
    pictures: Annotated[int, Field(ge=0)] = 2  # shown in TensorBoard
    patience: Annotated[int, Field(ge=0)] = 0  # validations without a better PSNR before the run stops; 0: never

    def __post_init__(self) -> None:
        given = [name for name in ("store", "images", "hr") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; choose one")
        if self.lr and not self.hr:
            raise ValueError("lr is given without hr")


@config_dataclass
class CheckpointConfig:
    """When a checkpoint is written, besides at each validation, and which are kept."""

    every: Length = 500
    best: Positive = 5  # by validation PSNR
    last: Positive = 10
    milestones: tuple[Length, ...] = ("25 %", "50 %", "75 %", "100 %")


@config_dataclass
class TeacherConfig:
    """Images to learn from beside HR, made once from the store and kept in it; see docs/training.md."""

    of: str = ""  # fitted, mean: the experts combined by such weights; or the folder of a run; "": no teacher
    x8: bool = False  # the mean over the eight stored variants of each image
    experts: tuple[str, ...] = ()  # experts that fitted or equal weights combine; empty: all of the store

    def __post_init__(self) -> None:
        if not self.of and (self.x8 or self.experts):
            raise ValueError("of is missing; expected fitted, mean or a run's folder")
        if self.experts and self.of not in WEIGHTED:
            raise ValueError(
                f"experts: a run has its own experts; leave them out, or set of to {' or '.join(WEIGHTED)}"
            )


@config_dataclass
class TrainConfig:
    """A training run."""

    fusion: FusionConfig = field(default_factory=FusionConfig)
    experts: tuple[str, ...] = ()  # empty: all of the store
    student: str | ExpertConfig | None = None  # the entry of a network that only sees LR, instead of the fusion
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    steps: Length = 20_000
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    live: LiveConfig = field(default_factory=LiveConfig)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: fp32 on the CPU, else bf16 or fp16
    compile: Compile = False  # the network by torch.compile, as one graph of fixed shapes; true, or the name of a mode
    device: str = "auto"
    log_every: Length = 50
    tensorboard: bool = True
    allow_random_weights: bool = False  # train on a store whose experts have random weights
    seed: int = 42

    def __post_init__(self) -> None:
        if parse_length(self.steps)[1] == "%":
            raise ValueError(f"steps={self.steps}: the length of a run must be in steps or epochs")
        taught = [name for name in TAUGHT if name in self.losses.used]
        if taught and not self.teacher.of:
            raise ValueError(
                f"losses: the loss {taught[0]} needs a teacher: set teacher.of to fitted, mean or a run's folder"
            )
        if self.teacher.of and not taught:
            raise ValueError(
                "teacher: no stage learns from it; give the loss teacher a weight, for example "
                "losses.stages=[{length: 100 %, weights: {l1: 1, teacher: 1}}]"
            )
        if isinstance(self.student, str):  # resolved, so that a run does not need the entry's file
            object.__setattr__(self, "student", load_expert_config(self.student))
        if self.student and self.experts:
            raise ValueError("experts: a student sees only LR; name its teacher's experts with teacher.experts")
        if self.student and self.live.enabled:
            raise ValueError("student: it sees only LR, so there is no expert to run live; leave live out")
        if self.teacher.of and self.live.enabled:
            raise ValueError("teacher: its images are stored, but live training changes the images; choose one")

    @property
    def student_entry(self) -> ExpertConfig | None:
        """The student's entry, which replaces its name or file when the configuration is written."""
        assert not isinstance(self.student, str), "__post_init__ has resolved it"
        return self.student


def span(config: TrainConfig, samples_per_epoch: int) -> RunLength:
    """The run's length, given how many windows an epoch has."""
    per_epoch = samples_per_epoch / config.data.batch_size
    steps = RunLength(0, per_epoch).in_steps(config.steps)
    if steps < 1:
        raise ValueError(f"train.steps={config.steps}: less than one step")
    return RunLength(steps, per_epoch)


def learning_rate(config: TrainConfig, run: RunLength) -> LearningRate:
    """The learning rate of each step."""
    schedule = config.schedule
    rates = {
        "peak": config.optimiser.learning_rate,
        "lowest": schedule.lowest,
        "warmup_from": schedule.warmup_from,
    }
    if schedule.kind == "restarts":
        first_cycle, factor = schedule.first_cycle, schedule.cycle_factor
        return restarts(run, warmup=schedule.warmup, first_cycle=first_cycle, cycle_factor=factor, **rates)
    return {"cosine": cosine, "constant": constant}[schedule.kind](run, warmup=schedule.warmup, **rates)


def loss_stages(config: TrainConfig, run: RunLength) -> Curriculum:
    """Which of `config.losses.stages` each step belongs to."""
    return stages(run, [stage.length for stage in config.losses.stages])
