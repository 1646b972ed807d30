"""Operators on the emulated GPU: with ``pytest --emulated`` they take the place of the CPU's."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from clebsch import ops  # noqa: F401  the operators are defined before they are replaced

__all__ = [
    "ORDERS",
    "captured",
    "enabled",
    "load",
    "set_workspace_bytes",
    "shared_bytes_since",
    "thread_orders",
]

LIBRARY = Path(__file__).parents[1] / "build" / "develop" / "csrc" / "tests" / "_clebsch_emulated.so"
ORDERS = ("forward", "reverse", "random:1")

_library: ctypes.CDLL | None = None


def load() -> None:
    """Replace the CPU's operators."""
    global _library
    torch.ops.load_library(LIBRARY)
    _library = ctypes.CDLL(str(LIBRARY))
    _library.clebsch_set_thread_order.argtypes = [ctypes.c_char_p]
    _library.clebsch_set_workspace_bytes.argtypes = [ctypes.c_int64]
    _library.clebsch_set_captured.argtypes = [ctypes.c_bool]
    _library.clebsch_shared_bytes_since.restype = ctypes.c_int64


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


@contextmanager
def captured() -> Iterator[None]:
    """Where operators take the stream for one that is captured into a CUDA graph."""
    _library.clebsch_set_captured(True)
    try:
        yield
    finally:
        _library.clebsch_set_captured(False)


def shared_bytes_since() -> int:
    """The most shared memory that a block was given since the last call."""
    return _library.clebsch_shared_bytes_since()
