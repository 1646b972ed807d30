"""Tensor product over rows as one 4-linear form, and its derivatives.

A plan is written out as its terms: F(g, x, y, w) = sum over terms of value * g[out] x[in1] y[in2] w[weight],
with the indices counted along the last axes. The product is dF/dg, the first derivatives are dF/dx, dF/dy and
dF/dw, and a second derivative is a sum of such contractions with one operand replaced by its tangent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..algebra.irreps import Irreps
from ..algebra.plan import ProductPlan

Array = NDArray[np.float64]


class Terms(NamedTuple):
    """The terms of a plan: per term an index into each operand, and the value; then the lengths."""

    out: NDArray[np.int64]
    in1: NDArray[np.int64]
    in2: NDArray[np.int64]
    weight: NDArray[np.int64]  # weight_numel where the path is not weighted
    value: Array
    dims: tuple[int, int, int, int]


def tensor_product(plan: ProductPlan | Terms, x: ArrayLike, y: ArrayLike, weight: ArrayLike) -> Array:
    """The product of x (rows, in1) and y (rows, in2) with weight (rows, weight_numel), or (weight_numel,)
    shared
    by all rows: shape (rows, out)."""
    return _contract(plan, "out", x=x, y=y, weight=weight)


def tensor_product_backward(
    plan: ProductPlan | Terms, grad: ArrayLike, x: ArrayLike, y: ArrayLike, weight: ArrayLike
) -> tuple[Array, Array, Array]:
    """Gradients of <grad, tensor_product(x, y, weight)> with respect to x, y and weight."""
    grad_x = _contract(plan, "x", out=grad, y=y, weight=weight)
    grad_y = _contract(plan, "y", out=grad, x=x, weight=weight)
    grad_weight = _contract(plan, "weight", out=grad, x=x, y=y)
    return grad_x, grad_y, grad_weight if np.ndim(weight) == 2 else grad_weight.sum(axis=0)


def tensor_product_double_backward(
    plan: ProductPlan | Terms,
    ax: ArrayLike | None,
    ay: ArrayLike | None,
    aw: ArrayLike | None,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of <ax, grad_x> + <ay, grad_y> + <aw, grad_weight> with respect to grad, x, y and weight.

    grad_x, grad_y and grad_weight are what tensor_product_backward gives; an a... that is None counts as
    zero.
    """
    point = {"out": grad, "x": x, "y": y, "weight": weight}
    total = {name: np.zeros(np.shape(operand)) for name, operand in point.items()}
    for name, tangent in (("x", ax), ("y", ay), ("weight", aw)):
        if tangent is None:
            continue
        # the form is linear in this operand, so its derivative along the tangent is the form with it replaced
        moved = {**point, name: tangent}
        no_weight = 0.0 if name == "weight" else 1.0
        for target in total:
            if target != name:
                others = {key: moved[key] for key in moved if key != target}
                part = _contract(plan, target, no_weight, **others)
                total[target] += part if part.shape == total[target].shape else part.sum(axis=0)
    return total["out"], total["x"], total["y"], total["weight"]


def _contract(plan: ProductPlan | Terms, target: str, no_weight: float = 1.0, **operands: ArrayLike) -> Array:
    """Derivative of the form with respect to operand `target`, row by row, given the three others.

    no_weight: what stands for the weight in terms that have none: 1, or 0 where "weight" is a tangent.
    """
    form = plan if isinstance(plan, Terms) else terms(plan)
    index = {"out": form.out, "x": form.in1, "y": form.in2, "weight": form.weight}
    dims = dict(zip(index, form.dims, strict=True))
    rows = next(len(operand) for name, operand in operands.items() if name != "weight")
    arrays = {
        name: np.broadcast_to(np.asarray(operand, np.float64), (rows, dims[name]))
        for name, operand in operands.items()
    }
    if target != "weight":
        # terms without a weight point behind the last one
        arrays["weight"] = np.pad(arrays["weight"], ((0, 0), (0, 1)), constant_values=no_weight)
    result = np.zeros((rows, dims[target]))
    for row in range(rows):
        values = form.value.copy()
        for name, array in arrays.items():
            values *= array[row, index[name]]
        sums = np.bincount(index[target], weights=values, minlength=dims[target])
        result[row] = sums[: dims[target]]
    return result


@lru_cache(maxsize=256)
def terms(plan: ProductPlan) -> Terms:
    """All terms of `plan`, path by path."""
    dims = (plan.irreps_out.dim, plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel)
    columns: list[list[NDArray]] = [[], [], [], [], []]
    for path, located in zip(plan.paths, plan.weight_slices, strict=True):
        u, v, w = _copies(path.mode, *(block.mul for block in plan.blocks(path)))
        entries = plan.entries(path)
        m1, m2, m3 = (np.array([entry[slot] for entry in entries], dtype=np.int64) for slot in range(3))
        value = path.coefficient * np.array([entry.value for entry in entries])
        # every mode lists its copies in the C order of its weights
        weight = np.full(len(u), dims[3]) if located is None else located[0] + np.arange(len(u))
        for column, part in zip(
            columns,
            (
                _positions(plan.irreps_out, path.i_out, plan.layout, w, m3),
                _positions(plan.irreps_in1, path.i_in1, plan.layout, u, m1),
                _positions(plan.irreps_in2, path.i_in2, plan.layout, v, m2),
                np.repeat(weight, len(entries)),
                np.tile(value, len(u)),
            ),
            strict=True,
        ):
            column.append(part)
    out, in1, in2, weight = (np.concatenate([np.zeros(0, np.int64), *column]) for column in columns[:4])
    return Terms(out, in1, in2, weight, np.concatenate([np.zeros(0), *columns[4]]), dims)


def _copies(mode: str, mul1: int, mul2: int, mul3: int) -> tuple[NDArray, NDArray, NDArray]:
    """The (u, v, w) that a mode couples, in the order of its weights."""

    def grid(*sizes: int) -> NDArray[np.int64]:
        return np.indices(sizes).reshape(len(sizes), -1)

    if mode == "uvw":
        return tuple(grid(mul1, mul2, mul3))
    if mode == "uuw":
        u, w = grid(mul1, mul3)
        return u, u, w
    if mode == "uuu":
        (u,) = grid(mul1)
        return u, u, u
    first, second = np.triu_indices(mul1, 1)
    if mode == "uvu<v":
        return first, second, np.arange(len(first))
    if mode == "u<vw":
        pair, w = grid(len(first), mul3)
        return first[pair], second[pair], w
    u, v = grid(mul1, mul2)
    return u, v, {"uvu": u, "uvv": v, "uvuv": u * mul2 + v}[mode]


def _positions(irreps: Irreps, block: int, layout: str, copies: NDArray, components: NDArray) -> NDArray:
    """Where component m of copy u of a block lies in the last axis, for every u (slow) and m (fast)."""
    mul, ir = irreps[block]
    u, m = copies[:, None], components[None, :]
    within = u * ir.dim + m if layout == "mul_ir" else m * mul + u
    return (irreps.slices()[block].start + within).ravel()
