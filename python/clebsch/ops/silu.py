"""silu(x) = x / (1 + exp(-x)) as torch operators: checks, shapes without data, derivatives.

Torch's own has a kernel for its first derivative; a second one, as training on forces takes, it puts together
from a dozen passes over arrays. Here each derivative is one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.ops.dispatch import asked_for, call, require_alike, require_one_device
from clebsch.ops.tensor_product import refuse_tangents

__all__ = ["silu"]


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), number by number, in one pass; differentiable to any order, up to the second in one
    pass each.

    Args:
        x: of any shape, float32 or float64.

    Returns:
        Of the shape of x, contiguous.

    Raises:
        TypeError: not a tensor, or of another dtype.
        NotImplementedError: x carries a forward-mode tangent.
    """
    require_alike("silu", x=x)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents("silu", x)
    return call(torch.ops.clebsch.silu, x)


@torch.library.register_fake("clebsch::silu")
def _(x):
    return x.new_empty(x.shape)


@torch.library.register_fake("clebsch::silu_backward")
def _(grad, x):
    require_one_device("silu", grad=grad, x=x)
    return x.new_empty(x.shape)


@torch.library.register_fake("clebsch::silu_double_backward")
def _(grad_grad_x, grad, x):
    require_one_device("silu", grad_grad_x=grad_grad_x, grad=grad, x=x)
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _differentiate_silu(ctx: Any, grad: Tensor | None) -> Tensor | None:
    (x,) = ctx.saved_tensors
    return None if grad is None else call(torch.ops.clebsch.silu_backward, grad, x)


def _differentiate_backward(ctx: Any, to_grad_x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if to_grad_x is None:
        return None, None
    grad, x = ctx.saved_tensors
    wants_grad, wants_x = asked_for(ctx, 2)
    if wants_grad and not wants_x:
        return call(torch.ops.clebsch.silu_backward, to_grad_x, x), None
    return call(torch.ops.clebsch.silu_double_backward, to_grad_x, grad, x)


def _differentiate_double_backward(ctx: Any, to_grad: Tensor | None, to_x: Tensor | None) -> tuple[Any, ...]:
    """Of <to_grad, a f'(x)> + <to_x, a grad f''(x)>, by torch's operations."""
    a, grad, x = ctx.saved_tensors
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    first, second = s + x * slope, slope * (2 + x * (1 - 2 * s))
    third = slope * (3 - 6 * s + x * (1 - 6 * slope))
    none = torch.zeros_like(x)
    to_grad, to_x = (none if cotangent is None else cotangent for cotangent in (to_grad, to_x))
    return (
        to_grad * first + to_x * grad * second,
        to_x * a * second,
        to_grad * a * second + to_x * a * grad * third,
    )


torch.library.register_autograd("clebsch::silu", _differentiate_silu, setup_context=_save)
torch.library.register_autograd("clebsch::silu_backward", _differentiate_backward, setup_context=_save)
torch.library.register_autograd(
    "clebsch::silu_double_backward", _differentiate_double_backward, setup_context=_save
)
