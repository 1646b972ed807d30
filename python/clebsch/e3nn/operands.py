"""Which tensors our kernels take, and in which surroundings; anything else is for e3nn's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from clebsch.ops.dispatch import in_transform

__all__ = ["FLOATING", "is_recorded", "note", "refused"]

FLOATING = (torch.float32, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)


def is_recorded() -> bool:
    """Whether torch's compiler, or make_fx for it, records operations, to fuse what stands in a row."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def refused(operands: dict[str, Any]) -> str | None:
    """Why these operands, by name, do not go to a kernel here and now; None if they do."""
    if in_transform():
        return "a transform of torch.func is at work"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if not torch.compiler.is_compiling():
        if torch.jit.is_tracing():
            return "torch.jit.trace records e3nn's own code"
        for name, value in operands.items():
            if type(value) not in _PLAIN:
                return f"{name} is a {type(value).__name__}, not a plain tensor"
        if forward_ad._current_level >= 0:
            for name, value in operands.items():
                if forward_ad.unpack_dual(value).tangent is not None:
                    return f"{name} has a forward-mode tangent"
    first = next(iter(operands.values()))
    for name, value in operands.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            place = value.device if value.layout == torch.strided else value.layout
            return f"{name} is on {place}: kernels take strided tensors on the CPU"
        if value.dtype not in FLOATING or value.dtype != first.dtype:
            kinds = ", ".join(str(each.dtype).removeprefix("torch.") for each in operands.values())
            return f"dtypes are {kinds}: kernels take float32 or float64, the same for all"
    return None


def note(module: torch.nn.Module, reason: str | None) -> None:
    """Leave `reason` on the module, where `explain` finds it."""
    if not torch.compiler.is_compiling() and module.__dict__.get("_clebsch_reason", module) != reason:
        module.__dict__["_clebsch_reason"] = reason
