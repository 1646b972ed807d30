"""Derivatives of a product that is linear in each of its operands, for the operators of any noun.

With a cotangent `grad` of the output, F = <grad, f(x, y, ...)> is linear in each of its arguments: grad, x, y
and what the weights are, one operand `weight` or several of which weights are made. Three operators are
enough for every order; with one weight

    f(x, y, weight)                               dF/dgrad
    B(grad, x, y, weight)                         dF/dx, dF/dy, dF/dweight
    H(ax, ay, aw, grad, x, y, weight)             the gradient with respect to grad, x, y and weight of
                                                  F(grad, ax, y, weight) + F(grad, x, ay, weight)
                                                  + F(grad, x, y, aw)

B differentiates f, H differentiates B, and H itself is a sum of values of F in each of which one operand is
replaced by its tangent, so B and H differentiate H. docs/derivatives.md says why it is registered this way.

Paths without weights do not depend on weight: where aw stands in its place they are left out, by H on its
own, and here by calling B and H with the weighted part of the plan. The same holds for each of the operands
that weights are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.ops.dispatch import asked_for, call

__all__ = ["bits", "chosen", "register_derivatives"]


def register_derivatives(noun: str, operands: int = 3) -> None:
    """Register the reverse mode, to any order, of ``clebsch::noun``, ``noun_backward`` and
    ``noun_double_backward``.

    operands: how many f has: x, y and those that are weights or that weights are made of. The arguments of
    the operators are those of the three functions above, followed by what does not vary, the plan last of it;
    the two derivatives end with `needs`, whose bits say which of their outputs are wanted. An output that is
    not wanted is an empty tensor.
    """
    operators = _Operators(noun, operands)
    for name, backward, setup in (
        (noun, operators.differentiate_forward, operators.save_forward),
        (f"{noun}_backward", operators.differentiate_backward, operators.save_backward),
        (f"{noun}_double_backward", operators.differentiate_double_backward, operators.save_double_backward),
    ):
        torch.library.register_autograd(f"clebsch::{name}", backward, setup_context=setup)


def bits(wanted: Sequence[bool]) -> int:
    """`needs` of an operator: a bit for every output."""
    return sum(1 << i for i, is_wanted in enumerate(wanted) if is_wanted)


def chosen(outputs: Sequence[Tensor | None], needs: int) -> list[Tensor | None]:
    """The outputs whose bit is set; None for the others, whatever stands in their place."""
    return [output if needs >> i & 1 else None for i, output in enumerate(outputs)]


@lru_cache(maxsize=1024)
def _weighted_part(plan: str) -> str:
    """The plan without its unweighted paths; weights keep their places."""
    whole = ProductPlan.parse(plan)
    return str(replace(whole, paths=tuple(path for path in whole.paths if path.has_weight)))


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _save(ctx: Any, operands: Sequence[Tensor | None], fixed: Sequence[Any]) -> None:
    """Keep operands and constants; a constant tensor (the order) goes with the operands, as autograd asks."""
    tensors = [value for value in fixed if isinstance(value, Tensor)]
    ctx.save_for_backward(*operands, *tensors)
    ctx.fixed = [value for value in fixed if not isinstance(value, Tensor)]


def _saved(ctx: Any, count: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    tensors = ctx.saved_tensors
    return tensors[:count], (*tensors[count:], *ctx.fixed)


class _Operators:
    """The derivative formulas of one noun, whose product has `count` operands."""

    def __init__(self, noun: str, count: int) -> None:
        self.noun = noun
        self.count = count

    def save_forward(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs[: self.count], inputs[self.count :])

    def save_backward(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self._save_derivative(ctx, inputs, self.count + 1)

    def save_double_backward(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self._save_derivative(ctx, inputs, 2 * self.count + 1)

    def _save_derivative(self, ctx: Any, inputs: tuple[Any, ...], count: int) -> None:
        ctx.set_materialize_grads(False)
        _save(ctx, inputs[:count], inputs[count:-1])
        ctx.needs = inputs[-1]

    def backward(self, operands: Sequence[Tensor], fixed: Sequence[Any], needs: int) -> list[Tensor | None]:
        operator = getattr(torch.ops.clebsch, f"{self.noun}_backward")
        return chosen(call(operator, *operands, *fixed, needs), needs)

    def double_backward(
        self, tangents: Sequence[Tensor | None], operands: Sequence[Tensor], fixed: Sequence[Any], needs: int
    ) -> list[Tensor | None]:
        operator = getattr(torch.ops.clebsch, f"{self.noun}_double_backward")
        return chosen(call(operator, *tangents, *operands, *fixed, needs), needs)

    def differentiate_forward(self, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        operands, fixed = _saved(ctx, self.count)
        needs = bits(asked_for(ctx, self.count))
        return (*self.backward((grad, *operands), fixed, needs), *[None] * len(fixed))

    def differentiate_backward(self, ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        count = self.count + 1
        operands, fixed = _saved(ctx, count)
        tangents = chosen(tangents, ctx.needs)
        needs = bits(asked_for(ctx, count))
        grads = [None] * count
        if any(tangent is not None for tangent in tangents):
            grads = self.double_backward(tangents, operands, fixed, needs)
        return (*grads, *[None] * (len(fixed) + 1))

    def differentiate_double_backward(self, ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """The gradient of <cg, H_grad> + <cx, H_x> + <cy, H_y> + <cw, H_weight>.

        Of its terms those with ax are F(cg, ax, y, w) + F(g, ax, cy, w) + F(g, ax, y, cw), whose gradients
        are those of one B at (cg, ax, y, w) and one H at (g, ax, y, w) along (-, cy, cw); ay and aw alike.
        """
        n = self.count
        saved, fixed = _saved(ctx, 2 * n + 1)
        substitutes, grad, operands = saved[:n], saved[n], saved[n + 1 :]
        cotangent, *directions = chosen(cotangents, ctx.needs)
        wanted = asked_for(ctx, 2 * n + 1, saved)
        grads: list[Tensor | None] = [None] * (2 * n + 1)
        for i, substitute in enumerate(substitutes):
            if substitute is None:
                continue
            # Position i of the operands holds the substitute: its gradient goes there, and nothing varies
            # along it (the term is linear in it once).
            targets = [i if j == i else n + 1 + j for j in range(n)]
            at = [substitute if j == i else operand for j, operand in enumerate(operands)]
            along = [None if j == i else direction for j, direction in enumerate(directions)]
            constants = fixed if i < 2 else (*fixed[:-1], _weighted_part(fixed[-1]))
            needs = bits([wanted[target] for target in targets])
            if cotangent is not None and needs:
                for target, value in zip(
                    targets, self.backward((cotangent, *at), constants, needs), strict=True
                ):
                    grads[target] = _plus(grads[target], value)
            needs = bits([wanted[target] for target in (n, *targets)])
            if needs and any(direction is not None for direction in along):
                values = self.double_backward(along, (grad, *at), constants, needs)
                for target, value in zip((n, *targets), values, strict=True):
                    grads[target] = _plus(grads[target], value)
        return (*grads, *[None] * (len(fixed) + 1))
