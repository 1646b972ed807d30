"""A convolution whose weights are hidden @ matrix, hidden (num_edges, H) and matrix (H, weight_numel)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..algebra.plan import ProductPlan
from .convolution import convolution, convolution_backward, convolution_double_backward
from .tensor_product import Array, Terms


def radial_convolution(
    plan: ProductPlan | Terms,
    x: ArrayLike,
    y: ArrayLike,
    hidden: ArrayLike,
    matrix: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
) -> Array:
    """convolution(x, y, hidden @ matrix): shape (num_nodes, out)."""
    return convolution(plan, x, y, _multiply(hidden, matrix), senders, receivers)


def radial_convolution_backward(
    plan: ProductPlan | Terms,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    hidden: ArrayLike,
    matrix: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of <grad, radial_convolution(x, y, hidden, matrix)> with respect to x, y, hidden, matrix."""
    weight = _multiply(hidden, matrix)
    grad_x, grad_y, grad_weight = convolution_backward(plan, grad, x, y, weight, senders, receivers)
    return grad_x, grad_y, *_of_factors(grad_weight, hidden, matrix)


def radial_convolution_double_backward(
    plan: ProductPlan | Terms,
    ax: ArrayLike | None,
    ay: ArrayLike | None,
    ahidden: ArrayLike | None,
    amatrix: ArrayLike | None,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    hidden: ArrayLike,
    matrix: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of <ax, grad_x> + <ay, grad_y> + <ahidden, grad_hidden> + <amatrix, grad_matrix> with respect
    to grad, x, y, hidden and matrix; an a... that is None counts as zero.
    """
    weight = _multiply(hidden, matrix)
    no_hidden, no_matrix = np.zeros(np.shape(hidden)), np.zeros(np.shape(matrix))
    ahidden = no_hidden if ahidden is None else ahidden
    amatrix = no_matrix if amatrix is None else amatrix
    # the form moves along a change of the weights, which is that of a product
    aw = _multiply(ahidden, matrix) + _multiply(hidden, amatrix)
    *others, second = convolution_double_backward(plan, ax, ay, aw, grad, x, y, weight, senders, receivers)
    first = convolution_backward(plan, grad, x, y, weight, senders, receivers)[2]
    grad_hidden, grad_matrix = _of_factors(second, hidden, matrix)
    moved_hidden, moved_matrix = _of_factors(first, ahidden, amatrix)
    return *others, grad_hidden + moved_hidden, grad_matrix + moved_matrix


def _multiply(hidden: ArrayLike, matrix: ArrayLike) -> Array:
    return np.asarray(hidden, np.float64) @ np.asarray(matrix, np.float64)


def _of_factors(grad_weight: Array, hidden: ArrayLike, matrix: ArrayLike) -> tuple[Array, Array]:
    """Gradients of <grad_weight, hidden @ matrix> with respect to hidden and matrix."""
    hidden, matrix = np.asarray(hidden, np.float64), np.asarray(matrix, np.float64)
    return grad_weight @ matrix.T, hidden.T @ grad_weight
