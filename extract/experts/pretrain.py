"""Training of a small expert of one's own: L1, Adam, cosine with warm-up, EMA, random crops, resume."""

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from championship_sr.extract.config import PretrainConfig
from championship_sr.extract.experts.architecture import build_network
from championship_sr.extract.images.bicubic import downscale
from championship_sr.extract.images.decode import decode
from championship_sr.extract.images.pairs import image_files
from championship_sr.extract.images.picture import eight_bit
from championship_sr.store.errors import StoreError, WeightsError
from championship_sr.store.progress import progress

log = logging.getLogger(__name__)

# spandrel tells GRL's window and stripe sizes from these, which GRL itself does not save
GRL_SIZE_BUFFERS = ("table_w", "table_sh", "index_sh_a2w")


def load_pairs(folders: tuple[str, ...], scale: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(LR, HR) of every image in the folders, (h, w, 3) and (H, W, 3) uint8; LR by the bicubic recipe."""
    paths = [path for folder in folders for path in image_files(Path(folder))]
    pairs = []
    for path in progress(paths, desc="reading", unit="image"):
        image = eight_bit(decode(path))
        height, width = (n - n % scale for n in image.shape[:2])
        hr = np.ascontiguousarray(image[:height, :width])
        pairs.append((downscale(hr, scale), hr))
    return pairs


def _large_enough(pairs: list, config: PretrainConfig) -> list:
    """The pairs that a crop fits into.

    raises  StoreError if there is none
    """
    fitting = [pair for pair in pairs if min(pair[0].shape[:2]) >= config.patch_px]
    small = f"{len(pairs) - len(fitting)} images are smaller than pretrain.patch_px={config.patch_px} LR pixels"
    if not fitting:
        raise StoreError(f"{', '.join(config.hr)}: {small}, and no other is there")
    if len(fitting) < len(pairs):
        log.warning("%s and are left out", small)
    return fitting


def sample_batch(pairs: list, config: PretrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """LR (B, 3, p, p) and HR crops in 0..1, randomly flipped and turned; a pure function of (seed, step)."""
    rng = np.random.default_rng((config.seed, step))
    size, scale = config.patch_px, config.scale
    lrs, hrs = [], []
    for index in rng.integers(len(pairs), size=config.batch_size):
        lr, hr = pairs[index]
        y, x = rng.integers(lr.shape[0] - size + 1), rng.integers(lr.shape[1] - size + 1)
        turns, flip = rng.integers(4), rng.integers(2)
        crops = (
            lr[y : y + size, x : x + size],
            hr[y * scale : (y + size) * scale, x * scale : (x + size) * scale],
        )
        lr, hr = (np.rot90(crop[:, ::-1] if flip else crop, turns) for crop in crops)
        lrs.append(lr)
        hrs.append(hr)
    return tuple(torch.from_numpy(np.stack(a)).permute(0, 3, 1, 2).float() / 255 for a in (lrs, hrs))


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def save_atomically(write, path: Path) -> None:
    """`write(temporary)`, then the rename: the file is the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    temporary.replace(path)


def narrowed(buffer: Tensor) -> Tensor:
    """The buffer as 8-bit integers where that loses nothing: index tables and masks are most of a small file."""
    for dtype in (torch.uint8, torch.int8):
        if buffer.to(dtype).to(buffer.dtype).equal(buffer):
            return buffer.to(dtype)
    return buffer


def export(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Writes weights that spandrel recognises and loads again, as safetensors."""
    weights = dict(weights)
    if type(network).__name__ == "GRL":
        weights |= {name: getattr(network, name) for name in GRL_SIZE_BUFFERS}
    parameters = dict(network.named_parameters())
    tensors = {
        key: (value if key in parameters else narrowed(value)).detach().clone().contiguous()
        for key, value in weights.items()
    }
    save_atomically(lambda temporary: save_file(tensors, temporary), path)


@dataclass
class Training:
    """What a checkpoint holds."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Writes the checkpoint; the one before is there until this one is whole."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.averaged,
            "step": self.step,
            "seconds": self.seconds,
        }
        save_atomically(lambda temporary: torch.save(state, temporary), path)

    def load(self, path: Path, device: torch.device) -> None:
        """Goes back to a checkpoint.

        raises  WeightsError if it is of another network
        """
        state = torch.load(path, map_location=device, weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise WeightsError(f"{path}: not of this network with these hyperparameters: {line}") from None
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged, self.step, self.seconds = state["ema"], state["step"], state["seconds"]


def begin(config: PretrainConfig, device: torch.device) -> Training:
    """A training at its first step."""
    torch.manual_seed(config.seed)
    network = build_network(config.network, config.hyperparameters, "pretrain.network").train()
    network.to(device, memory_format=torch.channels_last)
    averaged = {key: value.detach().clone() for key, value in network.state_dict().items()}
    return Training(network, torch.optim.Adam(network.parameters(), betas=(0.9, 0.99)), averaged)


def pretrain(name: str, config: PretrainConfig, out: Path, device: torch.device) -> Path:
    """Trains the network and returns the path of its exported EMA weights.

    A checkpoint is written every `checkpoint_steps`; the same command goes on from the last one.
    """
    training = begin(config, device)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, weights = out / "checkpoint.pt", out / f"{name}.safetensors"
    if checkpoint.exists():
        training.load(checkpoint, device)
        log.info("%s: going on from step %d", checkpoint, training.step)
    pairs = _large_enough(load_pairs(config.hr, config.scale), config)
    started = time.monotonic() - training.seconds
    with (
        progress(total=config.steps, initial=training.step, desc=name, unit="step") as bar,
        open(out / "metrics.jsonl", "a", encoding="utf-8") as metrics,
    ):
        while training.step < config.steps:
            loss = train_step(training, config, pairs, device)
            bar.update()
            if training.step % config.checkpoint_steps == 0 or training.step == config.steps:
                training.seconds = time.monotonic() - started
                training.save(checkpoint)
                export(training.network, training.averaged, weights)
                entry = {"step": training.step, "l1": round(loss, 5), "seconds": round(training.seconds)}
                metrics.write(json.dumps(entry) + "\n")
                metrics.flush()
                bar.set_postfix(l1=f"{loss:.4f}")
    return weights


def train_step(training: Training, config: PretrainConfig, pairs: list, device: torch.device) -> float:
    """One step of L1 on a batch; returns the loss."""
    network, optimizer, step = training.network, training.optimizer, training.step
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    lr, hr = (t.to(device) for t in sample_batch(pairs, config, step))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast):
        sr = network(lr)
    loss = nn.functional.l1_loss(sr.float(), hr)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                training.averaged[key].lerp_(value, 1 - decay)
    training.step += 1
    return loss.item()
