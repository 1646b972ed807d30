"""The way from Python to an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["call"]


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
