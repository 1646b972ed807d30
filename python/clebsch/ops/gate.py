"""Gates as torch operators: checks, shapes without data, derivatives.

out = scalars beside gates * gated is linear in each of scalars and (gates, gated). With

    B(grad, gates, gated) = (sum over the components of grad * gated, gates * grad)

its derivatives, both operators are sums of each other's values with one operand replaced, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.ops.dispatch import asked_for, call, require_alike, require_one_device
from clebsch.ops.tensor_product import refuse_tangents

__all__ = ["Widths", "gate"]

# Multiplicity and number of components of each gated block.
Widths = tuple[tuple[int, ...], tuple[int, ...]]


def gate(scalars: Tensor, gates: Tensor, gated: Tensor, widths: Widths) -> Tensor:
    """Scalars, and behind them irreps multiplied by a gate each, in one pass; differentiable to any order.

    Args:
        scalars: (rows, any number), float32 or float64.
        gates: (rows, sum of muls), of the dtype and device of scalars.
        gated: (rows, sum of mul * components), alike; in layout mul_ir.
        widths: (muls, components) of the blocks of `gated`.

    Returns:
        (rows, scalars.shape[1] + gated.shape[1]).

    Raises:
        ValueError, TypeError: a shape, device or dtype that does not fit.
        NotImplementedError: an operand carries a forward-mode tangent.
    """
    operands = {"scalars": scalars, "gates": gates, "gated": gated}
    require_alike("gate", **operands)
    muls, components = widths
    rows = scalars.shape[0] if scalars.dim() else 0
    columns = {
        "scalars": scalars.shape[-1] if scalars.dim() else 0,
        "gates": sum(muls),
        "gated": sum(mul * width for mul, width in zip(muls, components, strict=True)),
    }
    for name, value in operands.items():
        if tuple(value.shape) != (rows, columns[name]):
            raise ValueError(
                f"gate: {name} must have shape ({rows}, {columns[name]}), got {tuple(value.shape)}"
            )
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents("gate", *operands.values())
    return call(torch.ops.clebsch.gate, scalars, gates, gated, muls, components)


@torch.library.register_fake("clebsch::gate")
def _(scalars, gates, gated, muls, widths):
    require_one_device("gate", scalars=scalars, gates=gates, gated=gated)
    return scalars.new_empty((scalars.shape[0], scalars.shape[1] + gated.shape[1]))


@torch.library.register_fake("clebsch::gate_backward")
def _(grad, gates, gated, muls, widths):
    require_one_device("gate", grad=grad, gates=gates, gated=gated)
    return gates.new_empty(gates.shape), gated.new_empty(gated.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first, gates, gated, *ctx.widths = inputs
    ctx.scalars = first.shape[1] if isinstance(output, Tensor) else first.shape[1] - gated.shape[1]
    ctx.save_for_backward(*(() if isinstance(output, Tensor) else (first,)), gates, gated)
    ctx.set_materialize_grads(False)


def _backward(grad: Tensor, gates: Tensor, gated: Tensor, widths: Any) -> tuple[Tensor, Tensor]:
    return call(torch.ops.clebsch.gate_backward, grad, gates, gated, *widths)


def _differentiate_gate(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    gates, gated = ctx.saved_tensors
    wants_scalars, wants_gates, wants_gated = asked_for(ctx, 3)
    grad_gates = grad_gated = None
    if wants_gates or wants_gated:
        grad_gates, grad_gated = _backward(grad, gates, gated, ctx.widths)
    return (
        grad.narrow(1, 0, ctx.scalars) if wants_scalars else None,
        grad_gates if wants_gates else None,
        grad_gated if wants_gated else None,
        None,
        None,
    )


def _differentiate_backward(ctx: Any, to_gates: Tensor | None, to_gated: Tensor | None) -> tuple[Any, ...]:
    """The gradient of <to_gates, grad_gates> + <to_gated, grad_gated>, which is that of
    <grad, to_gates * gated + gates * to_gated>.
    """
    grad, gates, gated = ctx.saved_tensors
    wants_grad, wants_gates, wants_gated = asked_for(ctx, 3)
    grad_grad = grad_gates = grad_gated = None
    if wants_grad and (to_gates is not None or to_gated is not None):
        none = grad.new_zeros((grad.shape[0], ctx.scalars))
        for a, x in ((to_gates, gated), (gates, to_gated)):
            if a is not None and x is not None:
                part = call(torch.ops.clebsch.gate, none, a, x, *ctx.widths)
                grad_grad = part if grad_grad is None else grad_grad + part
    if wants_gates and to_gated is not None:
        grad_gates, _ = _backward(grad, gates, to_gated, ctx.widths)
    if wants_gated and to_gates is not None:
        _, grad_gated = _backward(grad, to_gates, gated, ctx.widths)
    return grad_grad, grad_gates, grad_gated, None, None


torch.library.register_autograd("clebsch::gate", _differentiate_gate, setup_context=_save)
torch.library.register_autograd("clebsch::gate_backward", _differentiate_backward, setup_context=_save)
