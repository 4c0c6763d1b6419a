"""What a device reaches at most, measured: in one large matrix product, and on the bus to the host."""

import time
from functools import cache

import torch

from championship_sr.extract.device import float32_products

SIDE, SIDE_ON_CPU, PRODUCTS = 8192, 1024, 10
COPIED_BYTES, COPIES = 2**28, 10
NO_BUS = "no bus to cross"


def now(device: torch.device) -> float:
    """The time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@cache
def peak_tflops(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> float:
    """The device's throughput in one large matrix product: its peak in practice."""
    side = SIDE_ON_CPU if device.type == "cpu" else SIDE
    with torch.no_grad(), float32_products(tf32=tf32):
        matrix = torch.randn(side, side, device=device).to(dtype)
        matrix @ matrix  # the first one is slow
        started = now(device)
        for _ in range(PRODUCTS):
            matrix @ matrix
        return 2 * side**3 * PRODUCTS / (now(device) - started) / 1e12


@cache
def bus_gbytes_per_second(device: torch.device) -> float | None:
    """The speed of copies from a CUDA device to pinned memory; None for devices in the host's own memory."""
    if device.type != "cuda":
        return None
    there = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    here = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    here.copy_(there, non_blocking=True)
    started = now(device)
    for _ in range(COPIES):
        here.copy_(there, non_blocking=True)
    return COPIED_BYTES * COPIES / (now(device) - started) / 1e9


def share_of_bus(bytes_per_second: float, device: torch.device) -> float | None:
    """The share of the bus's speed that these bytes take; None where there is no bus."""
    bus = bus_gbytes_per_second(device)
    return bytes_per_second / 1e9 / bus if bus else None


def bus_text(share: float | None) -> str:
    """A share of the bus in words."""
    return NO_BUS if share is None else f"{share:.3f} of the bus"
