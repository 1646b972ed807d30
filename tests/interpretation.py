"""Triton's kernels run by its interpreter: with ``pytest --interpreted`` they take the place of the CPU's."""

from __future__ import annotations

import os

__all__ = ["enabled", "load"]

_library = None


def load() -> None:
    """Replace the CPU's operators. Before Triton is imported: kernels are interpreted or not for good."""
    global _library
    os.environ["TRITON_INTERPRET"] = "1"
    from clebsch import ops  # noqa: F401  the operators are defined before they are replaced
    from clebsch.triton.operators import register

    _library = register("CPU")


def enabled() -> bool:
    """Whether operators run in the interpreter."""
    return _library is not None
