"""The kernels of GPUs in the place of the CPU's, for operator tests: with ``pytest --emulated`` on the
emulator, with ``pytest --on-gpu`` on a GPU, to which operands are copied and from which results come back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from clebsch import backend, ops  # noqa: F401  the operators are defined before they are replaced

__all__ = [
    "ORDERS",
    "captured",
    "enabled",
    "load",
    "load_gpu",
    "on_gpu",
    "set_workspace_bytes",
    "shared_bytes_since",
    "there",
    "thread_orders",
]

LIBRARY = Path(__file__).parents[1] / "build" / "develop" / "csrc" / "tests" / "_clebsch_emulated.so"
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
    _library.clebsch_shared_bytes_since.restype = ctypes.c_int64


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


def set_workspace_bytes(count: int) -> None:
    """What parts of sums may take at a time; 0 for the rule. Of a GPU's kernels where none are emulated."""
    (_library or _library_of_gpu()).clebsch_set_workspace_bytes(ctypes.c_int64(count))


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
