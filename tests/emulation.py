"""Kernels for GPUs run on the emulator: with ``pytest --emulated`` they take the place of the CPU's.

All operator tests run so but those marked `not_emulated`, on problems as large as sizes.py allows:
kernels_reached.py.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from clebsch import ops  # noqa: F401  the operators are defined before they are replaced

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed

from benchmarks.cuda import budget  # noqa: E402

__all__ = [
    "MARK",
    "NAME",
    "ORDERS",
    "OTHER_TESTS",
    "enabled",
    "every_kernel",
    "launched",
    "load",
    "set_shared_limit",
    "set_workspace_bytes",
    "shared_bytes_since",
    "thread_orders",
]

MARK, NAME, OTHER_TESTS = "not_emulated", "kernels for GPUs", "test_cuda_budget.py"
LIBRARY = REPOSITORY / "build" / "develop" / "csrc" / "tests" / "_clebsch_emulated.so"
ORDERS = ("forward", "reverse", "random:1")

_library: ctypes.CDLL | None = None


def load() -> None:
    """Replace the CPU's operators."""
    global _library
    torch.ops.load_library(LIBRARY)
    _library = ctypes.CDLL(str(LIBRARY))
    _library.clebsch_set_thread_order.argtypes = [ctypes.c_char_p]
    _library.clebsch_set_workspace_bytes.argtypes = [ctypes.c_int64]
    _library.clebsch_set_shared_limit.argtypes = [ctypes.c_int64]
    _library.clebsch_shared_bytes_since.restype = ctypes.c_int64
    _library.clebsch_take_launch.restype = ctypes.c_void_p


def enabled() -> bool:
    """Whether operators run on the emulator."""
    return _library is not None


def thread_orders() -> Iterator[str]:
    """The orders in which emulated threads run between two barriers, each while it is in use."""
    try:
        for order in ORDERS:
            _library.clebsch_set_thread_order(order.encode())
            yield order
    finally:
        _library.clebsch_set_thread_order(ORDERS[0].encode())


def set_workspace_bytes(count: int) -> None:
    """What parts of sums may take at a time; 0 for the rule."""
    _library.clebsch_set_workspace_bytes(count)


def set_shared_limit(count: int) -> None:
    """The shared memory that a block may have, in bytes; 0 for that of a small device."""
    _library.clebsch_set_shared_limit(count)


def shared_bytes_since() -> int:
    """The most shared memory that a block was given since the last call."""
    return _library.clebsch_shared_bytes_since()


def launched() -> set[tuple[str, ...]]:
    """Names of the kernels that were launched since the last call."""
    return {(_names()[address],) for address in iter(_library.clebsch_take_launch, None)}


def every_kernel() -> set[tuple[str, ...]]:
    """Names of those that there are: what nvcc made of the same sources."""
    return {(name,) for name in json.loads(budget.BUDGET.read_text())["kernels"]}


@cache
def _names() -> dict[int, str]:
    """Functions of the library by their addresses in this process."""
    symbols = subprocess.run(
        ["nm", "-C", "--defined-only", LIBRARY], capture_output=True, text=True, check=True
    )
    found = {
        int(at, 16): name for at, _, name in (line.split(maxsplit=2) for line in symbols.stdout.splitlines())
    }
    (known,) = (at for at, name in found.items() if name == "clebsch_take_launch")
    moved = ctypes.cast(_library.clebsch_take_launch, ctypes.c_void_p).value - known
    return {moved + at: budget.short(name) for at, name in found.items()}
