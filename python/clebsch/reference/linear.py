"""Linear layer over rows as matrix products, one for every path, and its gradients.

The plan is that of a product with one scalar y = 1 and paths uvw. The coupling of degree l with a scalar is
the identity over sqrt(2l+1), so that path p, from block i to block k with coefficient c_p and weights W_p, is

    out_k[w, m] += c_p / sqrt(2l+1) sum_u W_p[u, w] x_i[u, m]

and out_k[w] += b_k[w] for the scalar blocks k that have a bias. With an index, y of the plan is one block of
several scalars, and row r takes the product with a y that is 1 at index[r] and else 0: it goes through
W_p[:, index[r], :]. Without the bias, <grad, out> is linear in
each of grad, x and weight: `linear`, `linear_grad_x` and `linear_grad_weight` are its derivatives with
respect to the operand that they are not given, and the derivatives of each of them are the other two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..algebra.irreps import Irreps
from ..algebra.plan import Path, ProductPlan

Array = NDArray[np.float64]


class Matrices(NamedTuple):
    """A plan, and for every path what multiplies its weights."""

    plan: ProductPlan
    value: Array


def matrices(plan: ProductPlan) -> Matrices:
    """c_p / sqrt(2l+1) of every path of `plan`."""
    scales = [path.coefficient / np.sqrt(plan.irreps_in1[path.i_in1].ir.dim) for path in plan.paths]
    return Matrices(plan, np.array(scales, np.float64))


def linear(
    plan: ProductPlan | Matrices,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike = (),
    biased: Sequence[int] = (),
    index: ArrayLike | None = None,
) -> Array:
    """x (rows, in1) through the matrices in weight (weight_numel,): shape (rows, out).

    bias: (bias_numel,), or (rows, bias_numel), added to the blocks `biased` of the output, one after the
    other. index: (rows,) integers, the element of y that is 1 in each row; 0 if None.
    """
    form = _form(plan)
    x, weight, bias = (np.asarray(operand, np.float64) for operand in (x, weight, bias))
    out = np.zeros((len(x), form.plan.irreps_out.dim))
    for path, where, rows, value in _paths(form, len(x), index):
        block = _block(out, form.plan.irreps_out, path.i_out, form.plan.layout)
        source = _block(x, form.plan.irreps_in1, path.i_in1, form.plan.layout)
        block[rows] += value * (source[rows] @ weight[where])
    start = 0
    for columns in _columns(form, biased):
        end = start + columns.stop - columns.start
        out[:, columns] += bias[..., start:end]
        start = end
    return out


def linear_grad_x(
    plan: ProductPlan | Matrices, grad: ArrayLike, weight: ArrayLike, index: ArrayLike | None = None
) -> Array:
    """Gradient of <grad, linear(x, weight)> with respect to x: shape (rows, in1)."""
    form = _form(plan)
    grad, weight = np.asarray(grad, np.float64), np.asarray(weight, np.float64)
    grad_x = np.zeros((len(grad), form.plan.irreps_in1.dim))
    for path, where, rows, value in _paths(form, len(grad), index):
        block = _block(grad_x, form.plan.irreps_in1, path.i_in1, form.plan.layout)
        target = _block(grad, form.plan.irreps_out, path.i_out, form.plan.layout)
        block[rows] += value * (target[rows] @ weight[where].T)
    return grad_x


def linear_grad_weight(
    plan: ProductPlan | Matrices, x: ArrayLike, grad: ArrayLike, index: ArrayLike | None = None
) -> Array:
    """Gradient of <grad, linear(x, weight)> with respect to weight: shape (weight_numel,)."""
    form = _form(plan)
    x, grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    grad_weight = np.zeros(form.plan.weight_numel)
    for path, where, rows, value in _paths(form, len(x), index):
        source = _block(x, form.plan.irreps_in1, path.i_in1, form.plan.layout)
        target = _block(grad, form.plan.irreps_out, path.i_out, form.plan.layout)
        grad_weight[where] = value * np.tensordot(source[rows], target[rows], axes=((0, 1), (0, 1)))
    return grad_weight


def linear_grad_bias(
    plan: ProductPlan | Matrices, grad: ArrayLike, biased: Sequence[int], per_row: bool = False
) -> Array:
    """Gradient of <grad, linear(x, weight, bias)> with respect to bias: (bias_numel,), or a row for each."""
    grad = np.asarray(grad, np.float64)
    parts = [grad[:, columns] for columns in _columns(_form(plan), biased)]
    rows = np.concatenate([np.zeros((len(grad), 0)), *parts], axis=1)
    return rows if per_row else rows.sum(axis=0)


def _form(plan: ProductPlan | Matrices) -> Matrices:
    return plan if isinstance(plan, Matrices) else matrices(plan)


def _paths(
    form: Matrices, count: int, index: ArrayLike | None
) -> Iterator[tuple[Path, NDArray[np.int64], NDArray[np.int64], float]]:
    """Every path and element of y with where its weights W[u, w] lie, the rows of the element, and the factor
    of the path."""
    index = np.zeros(count, np.int64) if index is None else np.asarray(index)
    for path, (start, (mul_in, elements, mul_out)), value in zip(
        form.plan.paths, form.plan.weight_slices, form.value, strict=True
    ):
        where = start + np.arange(mul_in * elements * mul_out).reshape(mul_in, elements, mul_out)
        for element in range(elements):
            yield path, where[:, element], np.flatnonzero(index == element), value


def _block(rows: Array, irreps: Irreps, block: int, layout: str) -> Array:
    """A block as (rows, 2l+1, mul), a view."""
    mul, ir = irreps[block]
    part = rows[:, irreps.slices()[block]]
    if layout == "ir_mul":
        return part.reshape(len(rows), ir.dim, mul)
    return part.reshape(len(rows), mul, ir.dim).swapaxes(1, 2)


def _columns(form: Matrices, biased: Sequence[int]) -> list[slice]:
    """The columns of the output that have a bias."""
    return [form.plan.irreps_out.slices()[block] for block in biased]
