"""The way from Python to an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["call", "require_one_device"]


def call(operator: Any, *arguments: Any) -> Any:
    """`operator(*arguments)`, past autograd where nothing is to be differentiated.

    Derivatives are registered in Python, and asking them whether they are wanted takes as long as a small
    product. Transforms of torch.func and compilers see the whole call.
    """
    recorded = torch.is_grad_enabled() and any(
        isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
    )
    if recorded or torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def require_one_device(noun: str, **operands: Tensor | None) -> None:
    """ValueError for operands of several devices: torch calls a fake kernel if one of them is "meta"."""
    (first, device), *others = (
        (name, operand.device) for name, operand in operands.items() if operand is not None
    )
    for name, other in others:
        if other != device:
            raise ValueError(f"{noun}: {name} must be on the device of {first}, {device}, got {other}")
