"""The linear layer over rows as torch operators: checks, shapes without data, derivatives.

out = x W + bias, a matrix product for every path of a plan and component of its irreps. With

    grad_x(g, W) = g W^T          grad_weight(x, g) = x^T g

each of the three operators is linear in each of its arguments, and its derivatives are the other two, to any
order. With an index, a row goes through the matrices of the element that it names: `weight` holds those of
all elements, as a product with several scalars y has them, and only those that are named are read.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.algebra.plan import ProductPlan
from clebsch.ops.dispatch import asked_for, call, require_alike, require_one_device
from clebsch.ops.tensor_product import (
    PlanSizes,
    constant_plan_sizes,
    plan_sizes,
    refuse_tangents,
)

__all__ = ["linear"]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    plan: ProductPlan | str,
    biased: Sequence[int] = (),
    index: Tensor | None = None,
) -> Tensor:
    """Rows of x through the matrices in `weight`, by the compiled kernel; differentiable to any order.

    Args:
        x: (rows, irreps_in1.dim), float32 or float64.
        weight: (weight_numel,), of the dtype and device of x.
        bias: (bias_numel,) or (rows, bias_numel), of the dtype and device of x: what is added to the blocks
            `biased`, one block after the other; (0,) if there are none.
        plan: the `ProductPlan` of the layer or its canonical string: paths uvw with weights, and one scalar
            as y. The result is that of the product with y = 1.
        biased: numbers of blocks of irreps_out, all scalars, in the order of their biases.
        index: (rows,), int64, on the device of x: for each row a number in [0, Z). Then y of the plan is one
            block of Z scalars, and the result is that of the product with a y that is 1 at index[row] and
            else 0: a row goes through the matrices W[:, index[row], :]. Weights of elements that no row names
            are not read, and their gradient is zero.

    Returns:
        (rows, irreps_out.dim).

    Raises:
        ValueError: a shape or device that does not fit, a plan that is none or not of this kind, blocks in
            `biased` that do not exist, hold no scalars or are named twice, an index outside [0, Z).
        TypeError: not a tensor, or a dtype that does not fit; blocks that are not integers.
        NotImplementedError: an operand carries a forward-mode tangent.
    """
    try:
        blocks = tuple(operator.index(block) for block in biased)
    except TypeError:
        raise TypeError(f"linear: biased must be a sequence of integers, got {biased!r}") from None
    return mix_rows(x, weight, bias, constant_plan_sizes(plan), blocks, index)


def mix_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    sizes: PlanSizes,
    biased: tuple[int, ...],
    index: Tensor | None = None,
) -> Tensor:
    """`linear` for a caller that keeps the sizes of its plan."""
    if not (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and isinstance(bias, Tensor)
        and x.dim() == 2
        and x.shape[1] == sizes.in1
        and weight.dim() == 1
        and weight.shape[0] == sizes.weight
        and bias.dim() in (1, 2)
        and (bias.dim() == 1 or bias.shape[0] == x.shape[0])
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == weight.dtype == bias.dtype
        and x.device == weight.device == bias.device
    ):
        _explain(x, weight, bias, sizes)
    if index is not None:
        _check_index(index, x)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents("linear", x, weight, bias)
    if index is None:
        return call(torch.ops.clebsch.linear, x, weight, bias, sizes.plan, biased)
    return call(torch.ops.clebsch.linear, x, weight, bias, sizes.plan, biased, index)


def _explain(x: Any, weight: Any, bias: Any, sizes: PlanSizes) -> None:
    require_alike("linear", x=x, weight=weight, bias=bias)
    rows = x.shape[0] if x.dim() else 0
    for name, value, expected, fits in (
        ("x", x, f"(rows, {sizes.in1})", x.dim() == 2 and x.shape[1] == sizes.in1),
        ("weight", weight, f"({sizes.weight},)", tuple(weight.shape) == (sizes.weight,)),
        ("bias", bias, f"(bias_numel,) or (rows, bias_numel) with {rows} rows", False),
    ):
        if not fits:
            raise ValueError(f"linear: {name} must have shape {expected}, got {tuple(value.shape)}")


def _check_index(index: Any, x: Tensor) -> None:
    if not isinstance(index, Tensor):
        raise TypeError(f"linear: index must be a tensor, got {type(index).__name__}")
    if index.dtype != torch.int64:
        raise TypeError(f"linear: index must be int64, got {str(index.dtype).removeprefix('torch.')}")
    if index.dim() != 1 or index.shape[0] != x.shape[0]:
        raise ValueError(f"linear: index must have shape (rows,) = ({x.shape[0]},), got {tuple(index.shape)}")
    if index.device != x.device:
        raise ValueError(f"linear: index must be on the device of x, {x.device}, got {index.device}")


@torch.library.register_fake("clebsch::linear")
def _(x, weight, bias, plan, biased, index=None):
    require_one_device("linear", x=x, weight=weight, bias=bias, index=index)
    return x.new_empty((x.shape[0], plan_sizes(plan).out))


@torch.library.register_fake("clebsch::linear_grad_x")
def _(grad, weight, plan, index=None):
    require_one_device("linear", grad=grad, weight=weight, index=index)
    return grad.new_empty((grad.shape[0], plan_sizes(plan).in1))


@torch.library.register_fake("clebsch::linear_grad_weight")
def _(x, grad, plan, index=None):
    require_one_device("linear", x=x, grad=grad, index=index)
    return x.new_empty((plan_sizes(plan).weight,))


def _grad_x(grad: Tensor, weight: Tensor, plan: str, index: Tensor | None) -> Tensor:
    return call(torch.ops.clebsch.linear_grad_x, grad, weight, plan, index)


def _grad_weight(x: Tensor, grad: Tensor, plan: str, index: Tensor | None) -> Tensor:
    return call(torch.ops.clebsch.linear_grad_weight, x, grad, plan, index)


def _product(x: Tensor, weight: Tensor, plan: str, index: Tensor | None) -> Tensor:
    return call(torch.ops.clebsch.linear, x, weight, x.new_empty(0), plan, (), index)


@lru_cache(maxsize=1024)
def _spans(plan: str, biased: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(start, length) of the columns that have a bias."""
    slices = ProductPlan.parse(plan).irreps_out.slices()
    return tuple((slices[block].start, slices[block].stop - slices[block].start) for block in biased)


def _grad_bias(grad: Tensor, plan: str, biased: tuple[int, ...], per_row: bool) -> Tensor:
    parts = [grad.narrow(1, start, length) for start, length in _spans(plan, biased)]
    parts = parts if per_row else [part.sum(0) for part in parts]
    return torch.cat(parts, dim=-1) if parts else grad.new_empty((grad.shape[0], 0) if per_row else 0)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, ctx.plan, biased, index = inputs
    ctx.biased, ctx.per_row = tuple(biased), bias.dim() == 2
    ctx.save_for_backward(x, weight, index)


def _differentiate_linear(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, index = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = asked_for(ctx, 3)
    return (
        _grad_x(grad, weight, ctx.plan, index) if wants_x else None,
        _grad_weight(x, grad, ctx.plan, index) if wants_weight else None,
        _grad_bias(grad, ctx.plan, ctx.biased, ctx.per_row) if wants_bias else None,
        None,
        None,
        None,
    )


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *operands, ctx.plan, index = inputs
    ctx.save_for_backward(*operands, index)


def _differentiate_grad_x(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    grad, weight, index = ctx.saved_tensors
    wants_grad, wants_weight = asked_for(ctx, 2)
    return (
        _product(tangent, weight, ctx.plan, index) if wants_grad else None,
        _grad_weight(tangent, grad, ctx.plan, index) if wants_weight else None,
        None,
        None,
    )


def _differentiate_grad_weight(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    x, grad, index = ctx.saved_tensors
    wants_x, wants_grad = asked_for(ctx, 2)
    return (
        _grad_x(grad, tangent, ctx.plan, index) if wants_x else None,
        _product(x, tangent, ctx.plan, index) if wants_grad else None,
        None,
        None,
    )


for _name, _backward, _setup in (
    ("linear", _differentiate_linear, _save_linear),
    ("linear_grad_x", _differentiate_grad_x, _save_pair),
    ("linear_grad_weight", _differentiate_grad_weight, _save_pair),
):
    torch.library.register_autograd(f"clebsch::{_name}", _backward, setup_context=_setup)
