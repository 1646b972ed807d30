"""The tensor product over rows as a torch operator: checks, shapes without data, derivatives."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch import backend
from clebsch.algebra.plan import ProductPlan
from clebsch.ops.dispatch import call, require_alike, require_one_device
from clebsch.ops.multilinear import register_derivatives

__all__ = ["PlanSizes", "plan_sizes", "tensor_product"]


class PlanSizes(NamedTuple):
    """A plan as operators see it: its canonical string, and the length of a row of each operand.

    elements: of y, where y is one block of scalars and every path takes x through a matrix for each of them
    (the plan of a linear layer with an index); else 0.
    """

    plan: str
    in1: int
    in2: int
    out: int
    weight: int
    elements: int

    def __reduce__(self):
        # The kernels of another process must learn the couplings of this plan, too.
        return plan_sizes, (self.plan,)


@lru_cache(maxsize=1024)
def plan_sizes(plan: ProductPlan | str) -> PlanSizes:
    """Row lengths of `plan`; ValueError or TypeError if it is no plan.

    Whatever runs a plan comes by here once, so the kernels learn the couplings that they were not compiled
    with.
    """
    if not isinstance(plan, ProductPlan):
        plan = ProductPlan.parse(plan)
    backend.register_couplings(plan)
    sizes = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.irreps_out.dim, plan.weight_numel
    return PlanSizes(str(plan), *sizes, _elements(plan))


def _elements(plan: ProductPlan) -> int:
    blocks = [(mul, ir.l) for mul, ir in plan.irreps_in2 if mul > 0]
    if len(blocks) != 1 or blocks[0][1] > 0 or not plan.paths:
        return 0
    return blocks[0][0] if all(path.mode == "uvw" and path.has_weight for path in plan.paths) else 0


def constant_plan_sizes(plan: ProductPlan | str) -> PlanSizes:
    """`plan_sizes` where torch.compile may be tracing: it looks into caches, and a plan is a constant."""
    return plan_sizes(plan)


# What torch.compiler.assume_constant_result does, without its import of the whole compiler (seconds).
constant_plan_sizes._dynamo_marked_constant = True


def tensor_product(x: Tensor, y: Tensor, weight: Tensor, plan: ProductPlan | str) -> Tensor:
    """Rows of the product that `plan` describes, by the compiled kernel; differentiable to any order.

    Args:
        x: (rows, irreps_in1.dim), float32 or float64; on a GPU also float16 or bfloat16.
        y: (rows, irreps_in2.dim), of the dtype and device of x.
        weight: (rows, weight_numel), or (weight_numel,) shared by all rows; shape (0,) if no path is
            weighted.
        plan: a `ProductPlan` or its canonical string (under torch.compile before torch 2.11, the string).

    Returns:
        (rows, irreps_out.dim).

    Raises:
        ValueError: a shape or device that does not fit, a string that is no plan, a degree above 100 or a
            multiplicity above 1048576.
        TypeError: not a tensor, or a dtype that does not fit.
        NotImplementedError: an operand carries a forward-mode tangent.
    """
    return multiply_rows(x, y, weight, constant_plan_sizes(plan))


def multiply_rows(x: Tensor, y: Tensor, weight: Tensor, sizes: PlanSizes) -> Tensor:
    """`tensor_product` for a caller that keeps the sizes of its plan."""
    rows = x.shape[0] if isinstance(x, Tensor) and x.dim() else 0
    check_operands("tensor_product", x, y, weight, sizes, (rows, rows, rows), ("rows", "rows", "rows"))
    return call(torch.ops.clebsch.tensor_product, x, y, weight, sizes.plan)


def check_operands(
    noun: str,
    x: Any,
    y: Any,
    weight: Any,
    sizes: PlanSizes,
    rows: tuple[int, int, int],
    row_names: tuple[str, str, str],
) -> None:
    """Raise what `tensor_product` documents unless x, y and weight have as many rows as `rows` says.

    One pass over the conditions where all is well: this runs at every call.
    """
    if not (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and isinstance(weight, Tensor)
        and x.dim() == 2
        and y.dim() == 2
        and x.shape[0] == rows[0]
        and x.shape[1] == sizes.in1
        and y.shape[0] == rows[1]
        and y.shape[1] == sizes.in2
        and weight.dim() in (1, 2)
        and weight.shape[-1] == sizes.weight
        and (weight.dim() == 1 or weight.shape[0] == rows[2])
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == y.dtype == weight.dtype
        and x.device == y.device == weight.device
    ):
        _explain(noun, x, y, weight, sizes, rows, row_names)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents(noun, x, y, weight)


def _explain(noun, x, y, weight, sizes, rows, row_names) -> None:
    require_alike(noun, x=x, y=y, weight=weight)
    columns = sizes.in1, sizes.in2, sizes.weight
    for name, value, label, *expected in zip(
        ("x", "y", "weight"), (x, y, weight), row_names, rows, columns, strict=True
    ):
        shape, expected = tuple(value.shape), tuple(expected)
        if shape == expected or (name == "weight" and shape == expected[1:]):
            continue
        shared = f" or ({expected[1]},)" if name == "weight" and len(shape) == 1 else ""
        concrete = "" if name == "x" and row_names[0] == "rows" else f" = {expected}"
        raise ValueError(
            f"{noun}: {name} must have shape ({label}, {expected[1]}){concrete}{shared}, got {shape}"
        )


def refuse_tangents(noun: str, *operands: Tensor) -> None:
    """NotImplementedError if an operand carries a forward-mode tangent."""
    # torch.library.register_autograd has no forward mode and would drop the tangents without a word.
    if any(forward_ad.unpack_dual(operand).tangent is not None for operand in operands):
        raise NotImplementedError(
            f"{noun}: forward-mode derivatives (torch.func.jvp, jacfwd, forward_ad) are not available yet; "
            "use reverse mode (torch.autograd.grad), or reverse over reverse for a Hessian"
        )


def wanted_like(needs: int, *operands: Tensor) -> tuple[Tensor, ...]:
    """What a derivative operator returns, without data: like each operand whose bit is set, else empty."""
    return tuple(
        operand.new_empty(operand.shape if needs >> i & 1 else (0,)) for i, operand in enumerate(operands)
    )


@torch.library.register_fake("clebsch::tensor_product")
def _(x, y, weight, plan):
    require_one_device("tensor_product", x=x, y=y, weight=weight)
    return x.new_empty((x.shape[0], plan_sizes(plan).out))


@torch.library.register_fake("clebsch::tensor_product_backward")
def _(grad, x, y, weight, plan, needs):
    require_one_device("tensor_product", grad=grad, x=x, y=y, weight=weight)
    return wanted_like(needs, x, y, weight)


@torch.library.register_fake("clebsch::tensor_product_double_backward")
def _(ax, ay, aw, grad, x, y, weight, plan, needs):
    require_one_device("tensor_product", grad=grad, x=x, y=y, weight=weight, ax=ax, ay=ay, aw=aw)
    return wanted_like(needs, grad, x, y, weight)


register_derivatives("tensor_product")
