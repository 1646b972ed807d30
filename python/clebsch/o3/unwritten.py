"""Whether tensors are those that somebody looked at, and nothing was written to them since.

Buffers change without a word: DistributedDataParallel copies those of rank 0 into all others, averages of
models copy them, `functional_call` exchanges them for a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["COMPILES", "Seen", "have_numbers", "unobserved"]

# Whether torch's compiler can ask about a module while it traces: 2.10 cannot, 2.13 does.
COMPILES = torch.__version__ >= torch.torch_version.TorchVersion("2.13")


class Seen(NamedTuple):
    """Tensors as they were when somebody looked. versions: none where they count none (inference_mode)."""

    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...] | None

    @classmethod
    def now(cls, tensors: Iterable[Tensor]) -> Seen:
        """These, at this moment."""
        tensors = tuple(tensors)
        counted = not any(tensor.is_inference() for tensor in tensors)
        return cls(tensors, tuple(tensor._version for tensor in tensors) if counted else None)

    def still_holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the same tensors, as many as then, and certainly unwritten."""
        return (
            self.versions is not None
            and all(map(is_, self.tensors, tensors))
            and tuple([tensor._version for tensor in self.tensors]) == self.versions
        )


def have_numbers(tensors: Iterable[Tensor]) -> bool:
    """Whether these can be read: nothing traces with others in their place, and none is on meta."""
    return torch._C._functorch.peek_interpreter_stack() is None and all(
        type(tensor) is Tensor and not tensor.is_meta for tensor in tensors
    )


@contextmanager
def unobserved() -> Iterator[None]:
    """For a look at numbers that whatever records operations is not to see."""
    with _disable_current_modes(), torch.no_grad():
        yield
