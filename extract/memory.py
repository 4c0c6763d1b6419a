"""Peak memory of a block of code."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20
LINUX_RESET = Path("/proc/self/clear_refs")  # proc(5): writing 5 resets the peak of the resident set
LINUX_STATUS = Path("/proc/self/status")


@dataclass
class Peak:
    """Filled in when the block ends."""

    mib: float = 0.0

    @property
    def gib(self) -> float:
        return self.mib / 1024


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The peak of the process's memory within the block: the GPU's on CUDA, otherwise the resident set.

    If the system cannot reset its peak (other than on Linux), it is the peak since the process began.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not every system, and not every container, lets a process do that
            LINUX_RESET.write_text("5")
    yield peak
    peak.mib = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else _resident_peak() / MIB


def _resident_peak() -> int:
    if LINUX_STATUS.exists():
        line = next(line for line in LINUX_STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
