"""Devices that are not there: what is decided for tensors of a GPU, and what then runs, without one."""

from __future__ import annotations

import torch

from clebsch import backend
from clebsch.ops import dispatch

__all__ = ["WAITS", "count_waits", "pretend_built", "take_cpu_for_gpu", "what_runs"]

# What makes Python wait for a GPU, or needs its answer before it goes on.
WAITS = {
    *("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero", "aten::nonzero"),
    *("aten::_unique2", "aten::masked_select", "clebsch::one_hot_index"),
}


def pretend_built(monkeypatch) -> None:
    """The compiled kernels for GPUs count as there; nothing can run."""
    monkeypatch.setattr(backend, "_load_cuda", lambda: "")


def take_cpu_for_gpu(monkeypatch) -> None:
    """Tensors of the CPU are handled as those of a GPU: layers choose what they would choose there, with the
    kernels that count as there, and nobody looks at numbers. What runs are the kernels of csrc/cuda with
    ``pytest --emulated``, else the CPU's.
    """
    for name in ("backend_of", "dtypes_of", "no_kernels"):
        own = getattr(backend, name)
        as_there = lambda noun, device, own=own: own(noun, "cuda" if device == "cpu" else device)  # noqa: E731
        monkeypatch.setattr(backend, name, as_there)
    monkeypatch.setattr(dispatch, "HOST", "elsewhere")


def what_runs(function) -> set[str]:
    """Names of the operators that run in a call, ours and torch's."""
    return set(_events(function))


def count_waits(function) -> int:
    """How often a call would wait for a GPU."""
    return sum(name in WAITS for name in _events(function))


def _events(function) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return [event.name for event in profile.events() if event.name.startswith(("clebsch::", "aten::"))]
