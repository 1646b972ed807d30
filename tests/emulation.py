"""Kernels for GPUs in the place of the CPU's, for operator tests: with ``pytest --emulated`` on the emulator,
with ``pytest --on-gpu`` on a GPU, to which operands are copied and from which results come back.

All operator tests run so but those marked `about_the_cpu` or `not_emulated`, on problems as large as sizes.py
allows: kernels_reached.py.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from clebsch import backend, ops  # noqa: F401  the operators are defined before they are replaced

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed

from benchmarks.cuda import budget  # noqa: E402

__all__ = [
    "MARK",
    "NAME",
    "ORDERS",
    "OTHER_TESTS",
    "captured",
    "enabled",
    "every_kernel",
    "launched",
    "load",
    "load_gpu",
    "on_gpu",
    "shared_bytes_since",
    "shared_limit",
    "there",
    "thread_orders",
    "workspace",
]

MARK, NAME, OTHER_TESTS = "not_emulated", "kernels for GPUs", "test_cuda_budget.py"
LIBRARY = REPOSITORY / "build" / "develop" / "csrc" / "tests" / "_clebsch_emulated.so"
ORDERS = ("forward", "reverse", "random:1")

_library: ctypes.CDLL | None = None
_copying: torch.library.Library | None = None


def load() -> None:
    """Replace the CPU's operators by those of the emulator."""
    global _library
    torch.ops.load_library(LIBRARY)
    _library = ctypes.CDLL(str(LIBRARY))
    _library.clebsch_set_thread_order.argtypes = [ctypes.c_char_p]
    _library.clebsch_set_captured.argtypes = [ctypes.c_bool]
    _library.clebsch_set_shared_limit.argtypes = [ctypes.c_int64]
    _library.clebsch_shared_bytes_since.restype = ctypes.c_int64
    _library.clebsch_take_launch.restype = ctypes.c_void_p


def load_gpu(device: str = "cuda") -> None:
    """Replace the CPU's operators by those of a GPU. device "cpu": by those of the emulator, loaded before,
    on copies of operands, to try these lines where there is no GPU.
    """
    global _library, _copying
    if device == "cuda":
        state = backend.backends()["cuda"]
        if "devices:" not in state:
            raise pytest.UsageError(f"--on-gpu needs an NVIDIA GPU; cuda is {state}")
        _library = _library_of_gpu()
    _copying = torch.library.Library("clebsch", "IMPL")
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("clebsch::") and schema.name.count("::") == 1:
            name = schema.name.removeprefix("clebsch::")
            _copying.impl(name, _on_copies(name, device), "CPU", allow_override=True)


def _library_of_gpu() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(backend.__file__).parent / "_clebsch_cuda.so"))


def _on_copies(name: str, device: str) -> Any:
    operator = getattr(torch.ops.clebsch, name).default
    names = [argument.name for argument in operator._schema.arguments]
    kernel = torch.library.get_kernel(operator, "CPU") if device == "cpu" else None

    def run(*given: Any) -> Any:
        # the table of a contraction is read by the host
        moved = [
            there(each, device) if isinstance(each, torch.Tensor) and argument != "table" else each
            for argument, each in zip(names, given, strict=False)
        ]
        found = operator(*moved) if kernel is None else kernel.call_boxed(_CPU, *moved)
        return tuple(each.cpu() for each in found) if isinstance(found, tuple | list) else found.cpu()

    return run


_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def there(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A copy on the device that lies in memory as the tensor does: strides, offset, what is around it."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).to(device, copy=True)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return torch.empty(0, dtype=tensor.dtype, device=device).set_(whole.untyped_storage(), *place)


def enabled() -> bool:
    """Whether operators of the CPU run the kernels of GPUs."""
    return _library is not None


def on_gpu() -> bool:
    """Whether they run on a GPU."""
    return _copying is not None


def thread_orders() -> Iterator[str]:
    """The orders in which emulated threads run between two barriers, each while it is in use; on a GPU,
    one."""
    if on_gpu():
        yield "on a GPU"
        return
    try:
        for order in ORDERS:
            _library.clebsch_set_thread_order(order.encode())
            yield order
    finally:
        _library.clebsch_set_thread_order(ORDERS[0].encode())


@contextmanager
def _while_set(setting: Any, value: Any) -> Iterator[None]:
    """Of the library; nought is what it is without a test."""
    setting(value)
    try:
        yield
    finally:
        setting(type(value)())


def workspace(count: int) -> AbstractContextManager[None]:
    """Where parts of sums may take so many bytes at a time. Of a GPU's kernels where none are emulated."""
    library = _library or _library_of_gpu()
    return _while_set(lambda bytes_: library.clebsch_set_workspace_bytes(ctypes.c_int64(bytes_)), count)


def captured() -> AbstractContextManager[None]:
    """Where operators take the stream for one that is captured into a CUDA graph."""
    return _while_set(_library.clebsch_set_captured, True)


def shared_limit(count: int) -> AbstractContextManager[None]:
    """Where a block may have so many bytes of shared memory."""
    return _while_set(_library.clebsch_set_shared_limit, count)


def shared_bytes_since() -> int:
    """The most shared memory that a block was given since the last call."""
    return _library.clebsch_shared_bytes_since()


def launched() -> set[tuple[str, ...]]:
    """Names of the kernels that were launched since the last call; a GPU's are not noted."""
    if not hasattr(_library, "clebsch_take_launch"):
        return set()
    return {(_names()[address],) for address in iter(_library.clebsch_take_launch, None)}


def every_kernel() -> set[tuple[str, ...]]:
    """Names of those that there are: what nvcc made of the same sources. On a GPU none, as none is noted."""
    if on_gpu():
        return set()
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
