"""Symmetric contraction (MACE: Batatia et al., arXiv:2206.07697, eq. 10) and its first two derivatives.

    out[n, c, M] = sum_k W[z_n, k, c] sum_i U[M, i1, ..., inu, k] x[n, c, i1] ... x[n, c, inu]

summed over nu, for every target with arrays U of its own. `u_matrices` holds for each target the arrays for
nu = 1, 2, ..., (width, D, ..., D, paths); weights are (species, all paths in this order, channels). The
product of the x is one for every order of the indices, which the formulas for derivatives do not use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Matrices = Sequence[Sequence[ArrayLike]]


def symmetric_contraction(u_matrices: Matrices, x: ArrayLike, weight: ArrayLike, index: ArrayLike) -> Array:
    """x (nodes, channels, D), index (nodes,): for every target a block (channels, width) in each row."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    blocks = [np.zeros((*x.shape[:2], width)) for width in _widths(u_matrices)]
    for target, u, paths in _terms(u_matrices):
        w = weight[np.asarray(index), paths]
        blocks[target] += np.einsum("nckm,nkc->ncm", _polynomials(u, [x] * (u.ndim - 2)), w)
    return _rows(blocks)


def symmetric_contraction_backward(
    grad: ArrayLike, u_matrices: Matrices, x: ArrayLike, weight: ArrayLike, index: ArrayLike
) -> tuple[Array, Array]:
    """Gradients of <grad, symmetric_contraction(x, weight)> with respect to x and weight."""
    x, weight, index = np.asarray(x, np.float64), np.asarray(weight, np.float64), np.asarray(index)
    grad_x, grad_weight = np.zeros(x.shape), np.zeros(weight.shape)
    blocks = _blocks(grad, u_matrices, x.shape[1])
    for target, u, paths in _terms(u_matrices):
        nu, g, w = u.ndim - 2, blocks[target], weight[index, paths]
        for node, part in zip(index, np.einsum("nckm,ncm->nkc", _polynomials(u, [x] * nu), g), strict=True):
            grad_weight[node, paths] += part
        for slot in range(nu):
            grad_x += _cotangent(u, slot, [x] * (nu - 1), w, g)
    return grad_x, grad_weight


def symmetric_contraction_double_backward(
    ax: ArrayLike,
    aw: ArrayLike,
    grad: ArrayLike,
    u_matrices: Matrices,
    x: ArrayLike,
    weight: ArrayLike,
    index: ArrayLike,
) -> tuple[Array, Array, Array]:
    """Gradients of <ax, grad_x> + <aw, grad_weight> with respect to grad, x and weight."""
    ax, aw, x, weight = (np.asarray(operand, np.float64) for operand in (ax, aw, x, weight))
    index = np.asarray(index)
    out = [np.zeros((*x.shape[:2], width)) for width in _widths(u_matrices)]
    grad_x, grad_weight = np.zeros(x.shape), np.zeros(weight.shape)
    blocks = _blocks(grad, u_matrices, x.shape[1])
    for target, u, paths in _terms(u_matrices):
        nu, g, w, tangent_w = u.ndim - 2, blocks[target], weight[index, paths], aw[index, paths]
        out[target] += np.einsum("nckm,nkc->ncm", _polynomials(u, [x] * nu), tangent_w)
        for slot in range(nu):
            along = _polynomials(u, [ax if other == slot else x for other in range(nu)])
            out[target] += np.einsum("nckm,nkc->ncm", along, w)
            for node, part in zip(index, np.einsum("nckm,ncm->nkc", along, g), strict=True):
                grad_weight[node, paths] += part
            grad_x += _cotangent(u, slot, [x] * (nu - 1), tangent_w, g)
            for other in range(nu - 1):
                vectors = [ax if place == other else x for place in range(nu - 1)]
                grad_x += _cotangent(u, slot, vectors, w, g)
    return _rows(out), grad_x, grad_weight


def _polynomials(u: Array, vectors: Sequence[Array]) -> Array:
    """U (M, i1, ..., inu, k) with a vector for each i: (nodes, channels, k, M)."""
    letters = "hijl"[: len(vectors)]
    inputs = ",".join(f"nc{letter}" for letter in letters)
    return np.einsum(f"m{letters}k,{inputs}->nckm", u, *vectors, optimize=True)


def _cotangent(u: Array, slot: int, vectors: Sequence[Array], w: Array, g: Array) -> Array:
    """U with weights, a cotangent, and vectors for all indices but one: (nodes, channels, D)."""
    letters = "hijl"[: len(vectors)]
    inputs = "".join(f"nc{letter}," for letter in letters)
    moved = np.moveaxis(u, 1 + slot, 0)
    return np.einsum(f"dm{letters}k,{inputs}nkc,ncm->ncd", moved, *vectors, w, g, optimize=True)


def _widths(u_matrices: Matrices) -> list[int]:
    return [np.shape(target[0])[0] for target in u_matrices]


def _terms(u_matrices: Matrices) -> Iterator[tuple[int, Array, slice]]:
    """(target, U, its paths among all) of every target and nu."""
    start = 0
    for target, arrays in enumerate(u_matrices):
        for array in arrays:
            u = np.asarray(array, np.float64)
            yield target, u, slice(start, start + u.shape[-1])
            start += u.shape[-1]


def _blocks(rows: ArrayLike, u_matrices: Matrices, channels: int) -> list[Array]:
    rows = np.asarray(rows, np.float64)
    widths = _widths(u_matrices)
    ends = np.cumsum([channels * width for width in widths])
    parts = np.split(rows, ends[:-1], axis=1)
    return [part.reshape(len(rows), channels, width) for part, width in zip(parts, widths, strict=True)]


def _rows(blocks: Sequence[Array]) -> Array:
    return np.concatenate([block.reshape(len(block), -1) for block in blocks], axis=1)
