"""Symmetric contraction as torch operators: checks, shapes without data, derivatives.

out[n, c, M] = sum_k W[z_n, k, c] p_kM(x[n, c]) with polynomials p of degree 4 or less, which the table holds.
With F = <grad, out> three operators give values and derivatives to second order:

    f(x, weight)                              dF/dgrad
    B(grad, x, weight)                        dF/dx, dF/dweight
    H(ax, aw, grad, x, weight)                the gradient of <ax, dF/dx> + <aw, dF/dweight> with respect to
                                              grad, x and weight

B differentiates f and H differentiates B. Third derivatives are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.ops.dispatch import asked_for, call, require_alike, require_one_device
from clebsch.ops.multilinear import bits, chosen
from clebsch.ops.tensor_product import refuse_tangents, wanted_like

__all__ = ["symmetric_contraction"]


def symmetric_contraction(
    x: Tensor, weight: Tensor, index: Tensor, table: Tensor, widths: Sequence[int]
) -> Tensor:
    """Polynomials of every channel's components, mixed by the weights of the node's species.

    Args:
        x: (nodes, channels, components), float32 or float64; on a GPU also float16 or bfloat16.
        weight: (species, paths, channels), of the dtype and device of x.
        index: (nodes,), int64: the species of each node. Weights of its own for every node are weight with
            species = nodes and index = arange(nodes).
        table: the ``tensor`` of a `clebsch.nn.ContractionTable`, on the CPU whatever the device of x.
        widths: its ``widths``, the number of components of every target.

    Returns:
        (nodes, channels * sum of widths): for every target a block in which the components of a channel are
        side by side. Differentiable twice in x and weight.

    Raises:
        ValueError: a shape or device that does not fit, a table that is none, an index that is no species.
        TypeError: not a tensor, or a dtype that does not fit.
        NotImplementedError: an operand carries a forward-mode tangent; and, where they are asked for, third
            derivatives.
    """
    if not (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and isinstance(index, Tensor)
        and x.dim() == 3
        and weight.dim() == 3
        and weight.shape[2] == x.shape[1]
        and index.dim() == 1
        and index.shape[0] == x.shape[0]
        and index.dtype == torch.int64
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == weight.dtype
        and x.device == weight.device == index.device
        and table.device.type == "cpu"
    ):
        _explain(x, weight, index, table)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents("symmetric_contraction", x, weight)
    return call(torch.ops.clebsch.symmetric_contraction, x, weight, index, table, tuple(widths))


def _explain(x: Any, weight: Any, index: Any, table: Tensor) -> None:
    require_alike("symmetric_contraction", x=x, weight=weight)
    if not isinstance(index, Tensor):
        raise TypeError(f"symmetric_contraction: index must be a tensor, got {type(index).__name__}")
    if index.dtype != torch.int64:
        dtype = str(index.dtype).removeprefix("torch.")
        raise TypeError(f"symmetric_contraction: index must be int64, got {dtype}")
    nodes, channels = (*x.shape, 0, 0)[:2]
    for name, value, expected, fits in (
        ("x", x, "(nodes, channels, components)", x.dim() == 3),
        (
            "weight",
            weight,
            f"(species, paths, {channels})",
            weight.dim() == 3 and weight.shape[2] == channels,
        ),
        ("index", index, f"({nodes},)", tuple(index.shape) == (nodes,)),
    ):
        if not fits:
            raise ValueError(
                f"symmetric_contraction: {name} must have shape {expected}, got {tuple(value.shape)}"
            )
    require_one_device("symmetric_contraction", x=x, index=index)
    raise ValueError(f"symmetric_contraction: table must be on the CPU, got {table.device}")


@torch.library.register_fake("clebsch::symmetric_contraction")
def _(x, weight, index, table, widths):
    require_one_device("symmetric_contraction", x=x, weight=weight, index=index)
    return x.new_empty((x.shape[0], x.shape[1] * sum(widths)))


@torch.library.register_fake("clebsch::symmetric_contraction_backward")
def _(grad, x, weight, index, table, widths, needs):
    require_one_device("symmetric_contraction", grad=grad, x=x, weight=weight, index=index)
    return wanted_like(needs, x, weight)


@torch.library.register_fake("clebsch::symmetric_contraction_double_backward")
def _(ax, aw, grad, x, weight, index, table, widths, needs):
    require_one_device("symmetric_contraction", grad=grad, x=x, weight=weight, index=index, ax=ax, aw=aw)
    return wanted_like(needs, grad, x, weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.widths = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = bits(asked_for(ctx, 2))
    operator = torch.ops.clebsch.symmetric_contraction_backward
    grads = call(operator, grad, *ctx.saved_tensors, ctx.widths, needs)
    return (*chosen(grads, needs), None, None, None)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    *tensors, ctx.widths, ctx.needs = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
    tangents = tuple(chosen(tangents, ctx.needs))
    needs = bits(asked_for(ctx, 3))
    grads: list[Tensor | None] = [None] * 3
    if any(tangent is not None for tangent in tangents):
        operator = torch.ops.clebsch.symmetric_contraction_double_backward
        grads = chosen(call(operator, *tangents, *ctx.saved_tensors, ctx.widths, needs), needs)
    return (*grads, None, None, None, None)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)


def _refuse_third_derivatives(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    if all(cotangent is None for cotangent in cotangents):
        return (None,) * 9
    raise NotImplementedError(
        "symmetric_contraction: derivatives are there to second order, got a request for third ones"
    )


for _name, _backward, _setup in (
    ("symmetric_contraction", _differentiate, _save),
    ("symmetric_contraction_backward", _differentiate_backward, _save_backward),
    ("symmetric_contraction_double_backward", _refuse_third_derivatives, _save_nothing),
):
    torch.library.register_autograd(f"clebsch::{_name}", _backward, setup_context=_setup)
