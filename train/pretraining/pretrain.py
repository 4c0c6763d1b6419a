"""Trains a small expert from folders of HR images or from a store: a student with a short configuration."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from championship_sr.extract.config import ExpertConfig, ExtractConfig, PretrainConfig
from championship_sr.extract.run.extraction import extract
from championship_sr.store.config import build
from championship_sr.store.errors import ConfigError
from championship_sr.train.config import TeacherConfig, TrainConfig
from championship_sr.train.losses.combined import COMPLEMENT, TEACHER
from championship_sr.train.records.folder import PAIRS_STORE, check_folder
from championship_sr.train.run.loop import train

NO_TEACHER = TeacherConfig()
IMAGES_PER_SHARD = 16
BUILDING = ("network", "hyperparameters", "start", "scale", "collapse_tail", "local_attention", "half")


def pretrain(
    config: ExpertConfig,
    out: Path,
    *,
    device: str = "auto",
    store: Path | str | None = None,
    teacher: TeacherConfig = NO_TEACHER,
    beside: Sequence[str] = (),
) -> Path:
    """Trains the entry's network and returns the path of its weights, in the run `out`.

    The same call continues from the last checkpoint.

    store    to train from; None: one with only the images, made in `out` from the folders of `pretrain.hr`
    teacher  of the store, to learn from besides HR
    beside   experts of the store to complement: what is also trained is the mean with their images
    raises   ConfigError, StoreError, WeightsError
    """
    recipe = config.pretrain
    if recipe is None:
        raise ConfigError(f"{config.name}: has no pretrain section")
    if (teacher.of or beside) and not store:
        raise ConfigError("a teacher is made from a store's experts; give --store")
    settings = train_config(config, recipe, device, teacher, beside)
    train(settings, store or _pairs_store(recipe, out), out, resume=True, changes=True)
    return out / f"{config.name}.safetensors"


def train_config(
    config: ExpertConfig,
    recipe: PretrainConfig,
    device: str,
    teacher: TeacherConfig = NO_TEACHER,
    beside: Sequence[str] = (),
) -> TrainConfig:
    """The training that a `pretrain` section stands for."""
    if teacher.of and beside:
        raise ConfigError("--teacher and --beside: an expert learns from its teacher or complements others; choose one")
    # what builds the network; the rest may change when the training continues
    student = replace(config, pretrain=PretrainConfig(**{key: getattr(recipe, key) for key in BUILDING}))
    weights, mixing = dict(recipe.losses), {}
    if teacher.of:
        weights = {name: weight / 2 for name, weight in weights.items()} | {TEACHER: 0.5}
    if beside:
        weights, teacher = weights | {COMPLEMENT: 1.0}, TeacherConfig(of="mean", experts=tuple(beside))
        mixing = {"complement_share": 1 / (1 + len(beside))}
    content = {
        "student": student,
        "teacher": teacher,
        "steps": recipe.steps,
        "data": {
            "batch_size": recipe.batch_size,
            "crop_px": recipe.patch_px,
            "augment": "stored",
            "weighting": "images",
        },
        "losses": {"stages": [{"length": "100 %", "weights": weights}], **mixing},
        "optimiser": {
            "kind": recipe.optimiser,
            "learning_rate": recipe.learning_rate,
            "weight_decay": 0,
            "betas": (0.9, 0.99),
        },
        "schedule": {"warmup": min(recipe.warmup_steps, recipe.steps - 1), "warmup_from": 0, "lowest": 0},
        "ema_decay": recipe.ema_decay,
        "validation": {"hold_out": 0},
        "checkpoints": {"every": recipe.checkpoint_steps, "best": 1, "last": 2, "milestones": ()},
        "precision": "bf16" if recipe.autocast else "fp32",
        "log_every": recipe.checkpoint_steps,
        "device": device,
        "seed": recipe.seed,
    }
    return build(TrainConfig, content, config.name, "train")


def _pairs_store(recipe: PretrainConfig, out: Path) -> Path:
    """A store with only the images; LR is made by the bicubic recipe."""
    if not recipe.hr:
        raise ConfigError("pretrain.hr: no folder of HR images; give --hr or --store")
    check_folder(out)
    store = out / PAIRS_STORE
    content = {
        "store": str(store),
        "data": {"hr": recipe.hr},
        "experts": (),
        "scale": recipe.scale,
        "images_per_shard": IMAGES_PER_SHARD,
        "device": "cpu",
    }
    extract(build(ExtractConfig, content, "pretrain", "extract"))
    return store
