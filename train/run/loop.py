"""The training run: steps, validation, checkpoints, and stopping without loss."""

import logging
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from championship_sr.extract.device import float32_products
from championship_sr.extract.run.shares import LONGEST_WAIT
from championship_sr.store.disk import leases
from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.store.progress import progress
from championship_sr.store.remote.bucket import store_place
from championship_sr.train.config import TrainConfig, learning_rate, loss_stages, span
from championship_sr.train.data.batch import Batch
from championship_sr.train.data.mixing import cutblur, mixup
from championship_sr.train.data.sampler import step_rng
from championship_sr.train.fusion.network import build_fusion
from championship_sr.train.fusion.start import has_start, start_from
from championship_sr.train.losses.combined import LOSSES, Criterion
from championship_sr.train.processes import World, world
from championship_sr.train.records import checkpoint
from championship_sr.train.records.checkpoint import load_fusion
from championship_sr.train.records.folder import LOCK_FILE, begin, check_folder, feature_channels
from championship_sr.train.records.journal import Journal
from championship_sr.train.records.seen import write_seen
from championship_sr.train.run.beginning import Beginning
from championship_sr.train.run.fitting import fit_start
from championship_sr.train.run.layouts import Times
from championship_sr.train.run.sources import Source, make_loader, make_validation, open_source, whole_batch
from championship_sr.train.run.step import Trainer
from championship_sr.train.run.validation import Validation
from championship_sr.train.run.watch import Meter, Watch, stop_signals
from championship_sr.train.students.student import export_student, new_student

log = logging.getLogger(__name__)

# a process may have the larger validation images, fetch the first shards or write a checkpoint while the others wait
LONGEST_PHASE = timedelta(hours=2)


def train(
    config: TrainConfig,
    store: Path | str,
    out: Path,
    *,
    resume: bool = False,
    changes: bool = False,
    trusted: Sequence[str] = (),
    init: Path | None = None,
) -> Path:
    """Trains a fusion, or a student, from a store and returns the run's folder, `out`.

    resume   continue the run in `out` if there is one: the result is that of an uninterrupted run
    changes  with resume: accept a configuration that differs from the run's, except in the network
    trusted  modules that the store may name as its experts' networks, and `init` as its network
    init     a run or an export from whose best weights a new run starts
    raises   ConfigError, StoreError, WeightsError; Diverged if the loss is not finite;
             KeyboardInterrupt after Ctrl-C or SIGTERM, when a checkpoint has been written
    """
    store, out = store_place(store), Path(out)
    with ExitStack() as stack:
        # making validation images or a teacher first may take one process days, while the others wait
        timeout = LONGEST_WAIT if config.validation.hr or config.teacher.of else LONGEST_PHASE
        processes, stopping = stack.enter_context(world(config.device, timeout)), stack.enter_context(stop_signals())
        source = stack.enter_context(closing(open_source(store, config, processes, trusted, stopping)))
        # resolved, so that an expert added to the store later does not change the run
        config = replace(config, experts=tuple(source.entries), data=whole_batch(config.data, processes.size))
        beginning = None
        if init:
            fusion = load_fusion(init, trusted=trusted)
            beginning = Beginning(fusion, Path(init), config.fusion, source.entries, source.store.scale)
            config = replace(config, fusion=beginning.fusion)
        if processes.first:
            check_folder(out)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(leases.held(out / LOCK_FILE, watch=True))  # first: another process may be training here
            trained = bool(checkpoint.folders(out))
            begin(
                out, config, source.entries, store,
                trained=trained, resume=resume, changes=changes, images=len(source.store.images), init=init,
                teacher=source.store.experts[source.teacher] if source.teacher else None,
            )  # fmt: skip
        processes.wait()
        stack.enter_context(closing(Run(config, source, out, processes, beginning))).go(stopping)
        if config.student_entry and processes.first:
            export_student(config.student_entry, out, source.store.scale)
    return out


class Run:
    """A run in memory after `step` steps; it continues from the last checkpoint in its folder."""

    def __init__(
        self, config: TrainConfig, source: Source, out: Path, processes: World, beginning: Beginning | None = None
    ) -> None:
        self.config, self.out, self.world = config, out, processes
        training, self.validation = make_validation(source, config, out, processes)
        if processes.first:
            held = self.validation
            chosen_by = [held.store.images[image] for image in held.images] if held else []
            write_seen(out, {"training": [source.store.images[image] for image in training], "validation": chosen_by})
        self.loader = make_loader(source, training, config, processes)
        self.span = span(config, self.loader.samples_per_epoch)
        self.rate, self.stage_of = learning_rate(config, self.span), loss_stages(config, self.span)
        self.milestones = {self.span.in_steps(length) for length in config.checkpoints.milestones}
        begins = not checkpoint.folders(out)  # a resumed run has everything in its checkpoint
        fits = begins and not config.student and not (beginning and has_start(beginning.trained.network))
        self.fitted = fit_start(source, training, config, processes) if fits else {}
        network = new_network(config, source, processes.device, self.fitted)
        if begins and beginning:
            self.fitted = beginning.fill(network) or self.fitted
            if processes.first:
                log.warning("%s", beginning.sentence())
        self.trainer = Trainer(
            network,
            new_criterion(config, processes.device),
            config.optimiser,
            ema_decay=config.ema_decay,
            precision=config.precision,
            accumulation=config.data.accumulation,
            world=processes,
            compiled=config.compile,
        )
        self.step, self.best, self.stale = 0, -math.inf, 0
        self.latest: checkpoint.Checkpoint | None = None
        self.layouts: Times | None = None
        self.watch, self.meter = Watch(processes, "No checkpoint was written"), Meter()
        self._go_on()
        self.journal = Journal(out, self.step, config.tensorboard, self.unscored) if processes.first else None
        log.info("%s: %d steps on %d images, on %s", out, self.span.steps, len(training), processes.device)
        if processes.first:
            log.warning("%s", arithmetic(config, processes.size))

    def close(self) -> None:
        if self.journal:
            self.journal.close()

    @property
    def finished(self) -> bool:
        return self.step >= self.span.steps or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        return 0 < self.config.validation.patience <= self.stale

    @property
    def unscored(self) -> bool:
        """Whether the latest checkpoint was saved, and the run ended before it was scored."""
        return self.latest is not None and self.latest.psnr is None and self._validates

    @property
    def _validates(self) -> bool:
        return self.validation is not None and (self.step == self.span.steps or self._due(self.config.validation.every))

    def go(self, stopping: threading.Event) -> None:
        """Trains to the end; raises KeyboardInterrupt once `stopping` is set, with a checkpoint written."""
        if self.step == 0 and self.validation:
            self._reference_lines(self.validation)
        if self.unscored:
            self._validate()
        self.meter.restart()
        with ExitStack() as stack:
            stack.enter_context(float32_products(fixed_shapes=True))
            batches = stack.enter_context(closing(self.loader.batches(self.step, self.span.steps)))
            bar = stack.enter_context(self._progress())
            while not self.finished:
                self._one_step(batches, stopping.is_set())
                self._after_step(bar)
                if self.watch.stop_wanted and not self.finished:
                    raise KeyboardInterrupt
        log.info("%s: ended after %d steps, best %.3f dB", self.out, self.step, self.best)
        self._write("end", reason="patience" if self.out_of_patience else "steps", best_psnr=self.best)

    def _one_step(self, batches: Iterator[Batch], stop: bool) -> None:
        began = time.perf_counter()
        batch = self._mixed(next(batches))
        waited = time.perf_counter() - began
        if self.layouts is None:
            self._choose_layouts(batch)
        stage = self.config.losses.stages[self.stage_of(self.step)]
        weights = stage.weights_at(self.stage_of.done(self.step))
        values, stop_share = self.trainer.step(
            self.step, batch, weights=weights, learning_rate=self.rate(self.step), stop=stop
        )
        self.watch(self.step, batch.places, self.trainer.must_be_finite(values), stop_share, batch.check)
        self.meter.add(values, waited)
        self.step += 1

    def _choose_layouts(self, batch: Batch) -> None:
        self.layouts = self.trainer.choose_layouts(batch)
        for block, times in self.layouts.items():
            layout = min(times, key=times.__getitem__)
            shown = ", ".join(f"{name} {1000 * seconds:.3f} ms" for name, seconds in times.items())
            log.info("%s: depthwise convolutions in %s (%s)", block, layout, shown)
        if self.layouts:
            self._write("layouts", seconds=self.layouts)

    def _mixed(self, batch: Batch) -> Batch:
        data, rng = self.config.data, step_rng(self.config.seed, self.step)
        if rng.random() < data.mixup:
            batch = mixup(batch, alpha=data.mixup_alpha, rng=rng)
        if rng.random() < data.cutblur:
            batch = cutblur(batch, max_share=data.cutblur_share, rng=rng)
        return batch

    def _after_step(self, bar: tqdm) -> None:
        last = self.step == self.span.steps
        bar.update()
        if last or self._due(self.config.log_every):
            self._log(bar)
        saves = self._due(self.config.checkpoints.every) or self.step in self.milestones
        if last or self._validates or saves or self.watch.stop_wanted:
            self._save()
        # a run that was asked to stop is scored when it is resumed
        if self._validates and (last or not self.watch.stop_wanted):
            self._validate()

    def _due(self, every: int | str) -> bool:
        return self.span.due(self.step, every)

    def _log(self, bar: tqdm) -> None:
        means = self.meter.read()
        stage = self.stage_of(self.step - 1)
        self._write(
            "train",
            losses={name: means.pop(name) for name in LOSSES if name in means},
            **means,
            learning_rate=self.rate(self.step - 1),
            stage=self.config.losses.stages[stage].name or str(stage + 1),
            epoch=round(self.step / self.span.steps_per_epoch, 3),
        )
        best = {"PSNR": f"{self.best:.3f}"} if self.best > -math.inf else {}
        bar.set_postfix({"loss": f"{means['loss']:.5f}", **best})

    def _reference_lines(self, validation: Validation) -> None:
        with self._memory_told("before the first step; run the same command again once memory is free"):
            scores = validation.references(self.fitted)
        self._write(
            "reference",
            psnr={method: score.mean.psnr for method, score in scores.items()},
            ssim={method: score.mean.ssim for method, score in scores.items()},
            weights=self.fitted,
        )

    def _validate(self) -> None:
        """Scores the moving average, whose checkpoint is saved already: a failure here loses nothing."""
        assert self.validation is not None, "nothing is due without images to score"
        began = time.perf_counter()
        saved = f"at step {self.step}, whose checkpoint is saved; continue with --resume once memory is free"
        with self._memory_told(saved):
            scores = self.validation.score(self.trainer.ema.network)
        psnr, ssim = scores.mean
        self.best, self.stale = (psnr, 0) if psnr > self.best else (self.best, self.stale + 1)
        self._write("validation", psnr=psnr, ssim=ssim, seconds=time.perf_counter() - began, images=scores.images)
        if self.journal:
            self.journal.pictures(self.step, scores.pictures)
        if self.world.first and self.latest:
            self.latest = checkpoint.rescored(self.latest, psnr, self._extra())
            checkpoint.prune(self.out, self.config.checkpoints, self.milestones)
        log.info("step %d: %.3f dB, SSIM %.4f", self.step, psnr, ssim)
        self.meter.restart()

    @contextmanager
    def _memory_told(self, then: str) -> Iterator[None]:
        """Raises StoreError where memory runs out in the block: in validation, at this time."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise StoreError(f"{self.out}: out of memory in validation {then}, or validate on smaller images") from None

    def _write(self, event: str, **values) -> None:
        if self.journal:
            self.journal.write(event, self.step, **values)

    def _save(self) -> None:
        self.watch.flush()  # a network that has diverged is not kept
        if self.world.first:
            trainer = self.trainer
            self.latest = checkpoint.save(
                self.out,
                self.step,
                scored=trainer.ema.network,
                network=trainer.network,
                optimiser=trainer.optimiser,
                psnr=None,
                extra=self._extra(),
            )
            checkpoint.prune(self.out, self.config.checkpoints, self.milestones)
        self.watch.last_good = f"The last good checkpoint is of step {self.step}, in {self.out}"
        self.meter.restart()
        self.world.wait()

    def _extra(self) -> dict[str, Any]:
        return {"scaler": self.trainer.scaler.state_dict(), "best": self.best, "stale": self.stale}

    def _go_on(self) -> None:
        """Loads the last whole checkpoint; damaged ones are set aside once it has been found."""
        damaged: list[Path] = []
        for folder in reversed(checkpoint.folders(self.out)):
            try:
                self._restore(folder)
                break
            except checkpoint.Damaged as error:
                log.warning("%s; continuing from the previous checkpoint", error)
                damaged.append(folder)
        else:
            if damaged:
                raise WeightsError(
                    f"{self.out}: all of its checkpoints are damaged; to start over, choose another --out"
                )
        self.world.wait()
        if self.world.first:
            for folder in damaged:
                checkpoint.set_aside(folder)

    def _restore(self, folder: Path) -> None:
        trainer = self.trainer
        self.latest, extra = checkpoint.restore(
            folder, scored=trainer.ema.network, network=trainer.network, optimiser=trainer.optimiser
        )
        trainer.scaler.load_state_dict(extra["scaler"])
        self.step, self.best, self.stale = self.latest.step, extra["best"], extra["stale"]
        self.watch.last_good = f"The last good checkpoint is of step {self.step}, in {self.out}"

    def _progress(self) -> tqdm:
        return progress(total=self.span.steps, initial=self.step, desc="train", unit="step", first=self.world.first)


def arithmetic(config: TrainConfig, processes: int) -> str:
    """The parts of a step, and its learning rate."""
    data = config.data
    windows = data.batch_size // (processes * data.accumulation)
    return (
        f"a step has {data.batch_size} windows: processes x micro-batches x windows = {processes} x "
        f"{data.accumulation} x {windows}; the learning rate is {config.optimiser.learning_rate:g} at its peak, "
        "whatever the number of windows"
    )


def new_network(
    config: TrainConfig, source: Source, device: torch.device, fitted: Mapping[str, float] | None = None
) -> nn.Module:
    """The untrained network for the source's experts, or the student, the same for the same seed.

    fitted  expert -> weight, of which `start: fitted` makes its first output
    """
    seed_everything(config.seed)
    if config.student_entry:
        student = new_student(config.student_entry, source.store.scale)
        return student.to(device).to(memory_format=torch.channels_last)
    channels = {name: feature_channels(entry) for name, entry in source.entries.items()}
    network = build_fusion(config.fusion, channels, source.store.scale)
    if fitted and config.fusion.start == "fitted" and has_start(network):
        start_from(network, torch.tensor([fitted[name] for name in channels]))
    return network.to(device)


def seed_everything(seed: int) -> None:
    """Sets the three random number generators that checkpoints keep."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def new_criterion(config: TrainConfig, device: torch.device) -> Criterion:
    """The losses that any stage uses."""
    files = {"vgg": config.losses.vgg_weights, "clip": config.losses.clip_weights}
    return Criterion(config.losses.used, files, config.losses.complement_share).to(device)
