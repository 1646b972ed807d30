"""Where numbers come from: versions, processor, instruction set, threads; what the machine does at best."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

import clebsch
from clebsch import backend

__all__ = ["Limits", "describe", "measure", "processor"]

BUFFER = 1 << 25  # floats: 128 MiB, beyond the caches that most processors have
SIDE = 1024
SECONDS = 0.1  # for each of four measurements


@dataclass(frozen=True)
class Limits:
    """Of all of torch's threads together: reading memory, bytes/s; a matrix product in `dtype`, flop/s."""

    bytes_per_second: float
    flops_per_second: float
    dtype: str


def describe() -> dict[str, str]:
    """Versions and the hardware in use, in a few words each."""
    return {
        "clebsch": clebsch.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instruction set": backend.instruction_set(),
        "threads": str(torch.get_num_threads()),
    }


def processor() -> str:
    """Its name as the system gives it, perhaps empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0] == "model name")
    return next(names, platform.processor())


def measure(dtype: torch.dtype = torch.float32) -> Limits:
    """The limits of this machine, measured at the first call for a dtype and number of threads: a fraction of
    a second. Numbers of a busy machine are those of a busy machine."""
    threads = torch.get_num_threads()
    return Limits(_read_rate(threads), _product_rate(threads, dtype), str(dtype).removeprefix("torch."))


@lru_cache(maxsize=16)
def _read_rate(threads: int) -> float:
    """The quickest of three plain reductions: no one of them is on every machine."""
    buffer = torch.ones(BUFFER, dtype=torch.float32)
    readers: tuple[Callable[[], object], ...] = (
        lambda: torch.sum(buffer),
        lambda: torch.dot(buffer, buffer),
        lambda: torch.max(buffer),
    )
    with torch.no_grad():
        return 4 * BUFFER / min(_quickest(reader) for reader in readers)


@lru_cache(maxsize=16)
def _product_rate(threads: int, dtype: torch.dtype) -> float:
    a, b = (torch.full((SIDE, SIDE), 0.5, dtype=dtype) for _ in range(2))
    with torch.no_grad():
        return 2 * SIDE**3 / _quickest(lambda: torch.mm(a, b))


def _quickest(call: Callable[[], object]) -> float:
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
