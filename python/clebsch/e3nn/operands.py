"""Which tensors our kernels take, and in which surroundings; anything else is for e3nn's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from clebsch import backend
from clebsch.ops.dispatch import in_transform, is_autocast, listed, takes

__all__ = ["is_recorded", "note", "refused"]

_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)


def is_recorded() -> bool:
    """Whether torch's compiler, or make_fx for it, records operations, to fuse what stands in a row."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def refused(noun: str, operands: dict[str, Any]) -> str | None:
    """Why these operands, by name, do not go to a kernel of a noun here and now; None if they do."""
    if in_transform():
        return "a transform of torch.func is at work"
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
    (label, first), *_ = operands.items()
    device, dtype, alike = first.device, first.dtype, True
    for name, value in operands.items():
        if value.layout != torch.strided:
            return f"{name} is {value.layout}: kernels take strided tensors"
        if value.device != device:
            return f"{label} is on {device} and {name} on {value.device}"
        alike = alike and value.dtype == dtype
    if alike and takes(noun, first) and not is_autocast(device.type):
        return None
    known = backend.dtypes_of(noun, device.type)
    if not known:
        return f"{label} is on {device}: {backend.no_kernels(noun, device.type)}"
    if is_autocast(device.type):
        return "autocast is on"
    kinds = ", ".join(str(value.dtype).removeprefix("torch.") for value in operands.values())
    return f"dtypes are {kinds}: kernels take {listed(known)}, the same for all"


def note(module: torch.nn.Module, reason: str | None) -> None:
    """Leave `reason` on the module, where `explain` finds it."""
    if not torch.compiler.is_compiling() and module.__dict__.get("_clebsch_reason", module) != reason:
        module.__dict__["_clebsch_reason"] = reason
