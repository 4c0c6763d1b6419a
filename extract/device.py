"""Which device runs the networks, and how exactly it multiplies."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from championship_sr.store.errors import ConfigError


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a name; `auto` takes CUDA, then MPS, then the CPU.

    A CUDA device becomes the process's current one, so that no other GPU is touched.

    local_rank  this process among those of its machine; it takes the GPU of that number if the name has none
    raises      ConfigError if the name is invalid or the device does not exist
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            return _cuda_device(name, device.index, local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"device={name}: expected auto, cpu, cuda, cuda:N or mps ({reason})") from None
    return device


def _cuda_device(name: str, index: int | None, local_rank: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ConfigError(f"device={name}: this machine has no CUDA device")
    index = local_rank % count if index is None else index
    if index >= count:
        raise ConfigError(f"device={name}: this machine's last CUDA device is cuda:{count - 1}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def bench_px(device: torch.device) -> int:
    """Side of the tiles to measure with, LR pixels: small ones leave a GPU idle between kernels."""
    return 64 if device.type == "cpu" else 256


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device computes in bfloat16 itself; older ones only emulate it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def check_tf32(precision: str, device: torch.device) -> None:
    """raises  ConfigError if TF32 is requested on a device without it"""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32: only NVIDIA GPUs compute in TF32, but the device is {device}; set fp32")


@contextmanager
def float32_products(*, tf32: bool = False, fixed_shapes: bool = False) -> Iterator[None]:
    """The block in which CUDA multiplies float32 exactly, or with `tf32` by ten bits of mantissa; restored at its end.

    fixed_shapes  cuDNN tries its algorithms on the first tensors of each shape and keeps the fastest: for work on few
                  shapes only
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    cudnn.benchmark = fixed_shapes
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
