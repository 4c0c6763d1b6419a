"""What the experts' features are worth on a given store: two short training runs that only differ in using them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from championship_sr.store.errors import ConfigError
from championship_sr.store.remote.bucket import store_place
from championship_sr.train.config import TrainConfig
from championship_sr.train.gains import Gain, Resampling, difference
from championship_sr.train.records.folder import feature_channels
from championship_sr.train.records.journal import read_metrics
from championship_sr.train.run.loop import train
from championship_sr.train.run.sources import open_store

RESAMPLES = 10_000
# long enough to beat fitted weights if that is possible, short enough to run before an extraction of days
SHORT = (
    "train.steps=400", "train.data.batch_size=8", "train.data.crop_px=48", "train.ema_decay=0.99",
    "train.schedule.warmup=20", "train.validation.every=100 %", "train.validation.hold_out=16",
    "train.tensorboard=false",
)  # fmt: skip


@dataclass(frozen=True)
class FeaturesWorth:
    """The same held-out images through both fusions, in dB of PSNR-Y."""

    images: int
    steps: int
    with_features: float
    without_features: float
    fitted: float  # the experts' images by fitted weights, without any training
    gain: Gain  # of features
    seconds: tuple[float, float]  # of training, with and without
    runs: tuple[str, str]

    def sentence(self) -> str:
        """What a reader needs to know, in plain words."""
        mean, low, high = self.gain.interval
        verdict = ", which may be nothing," if low <= 0 <= high else ""
        time = self.seconds[0] / self.seconds[1]
        return (
            f"After {self.steps} steps, on {self.images} images that were not trained on, features bring "
            f"{mean:+.3f} dB ({low:+.3f} .. {high:+.3f}){verdict} for {time:.2f} times the training time. "
            f"With them the fusion is {self.with_features - self.fitted:+.3f} dB over fitted weights, "
            f"without them {self.without_features - self.fitted:+.3f}."
        )


def compare_features(config: TrainConfig, store: Path | str, out: Path) -> FeaturesWorth:
    """Trains `out`/with-features and `out`/without-features, which differ in that alone, and compares them.

    The same call continues an interrupted comparison.

    raises  ConfigError if no expert of the store has features; and what `train` raises
    """
    place = store_place(store)
    opened = open_store(place, config.experts or None, config.data)
    if not any(feature_channels(entry) for entry in opened.experts.values()):
        raise ConfigError(f"{store}: none of its experts has features ({', '.join(opened.experts)})")
    hold_out = min(config.validation.hold_out, max(1, len(opened.images) // 4))
    config = replace(config, validation=replace(config.validation, hold_out=hold_out))
    runs = tuple(
        train(replace(config, fusion=replace(config.fusion, features=features)), place, out / name, resume=True)
        for name, features in (("with-features", True), ("without-features", False))
    )
    return compared(*runs)


def compared(with_features: Path, without_features: Path) -> FeaturesWorth:
    """What two finished runs say about the same images."""
    events = [read_metrics(run) for run in (with_features, without_features)]
    last = [[event for event in run_events if event["event"] == "validation"][-1] for run_events in events]
    names = sorted(last[0]["images"])
    ours, theirs = (np.array([validation["images"][name][0] for name in names]) for validation in last)
    reference = next(event for event in events[0] if event["event"] == "reference")
    return FeaturesWorth(
        images=len(names),
        steps=last[0]["step"],
        with_features=last[0]["psnr"],
        without_features=last[1]["psnr"],
        fitted=reference["psnr"]["fitted"],
        gain=Resampling(len(names), RESAMPLES, seed=0).gain(difference(ours, theirs)),
        seconds=(_training_seconds(events[0]), _training_seconds(events[1])),
        runs=(str(with_features), str(without_features)),
    )


def _training_seconds(events: list[dict]) -> float:
    """Without validation, from the rates that the run logged."""
    done, seconds = 0, 0.0
    for event in events:
        if event["event"] == "train":
            seconds += (event["step"] - done) / event["steps_per_second"]
            done = event["step"]
    return seconds
