"""Gather - product - scatter over a graph: the tensor product along edges, summed at their receivers.

out[n] = sum over edges e with receivers[e] = n of tensor_product(x[senders[e]], y[e], weight[e]), with x and
out (num_nodes, ...), y and weight (num_edges, ...), or one weight (weight_numel,) shared by all edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..algebra.plan import ProductPlan
from .tensor_product import (
    Array,
    Terms,
    tensor_product,
    tensor_product_backward,
    tensor_product_double_backward,
)


def convolution(
    plan: ProductPlan | Terms,
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
) -> Array:
    """The sum over each node's incoming edges: shape (num_nodes, out)."""
    return scatter(tensor_product(plan, gather(x, senders), y, weight), receivers, len(x))


def convolution_backward(
    plan: ProductPlan | Terms,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
) -> tuple[Array, Array, Array]:
    """Gradients of <grad, convolution(x, y, weight)> with respect to x, y and weight."""
    grad_x, grad_y, grad_weight = tensor_product_backward(
        plan, gather(grad, receivers), gather(x, senders), y, weight
    )
    return scatter(grad_x, senders, len(x)), grad_y, grad_weight


def convolution_double_backward(
    plan: ProductPlan | Terms,
    ax: ArrayLike | None,
    ay: ArrayLike | None,
    aw: ArrayLike | None,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of <ax, grad_x> + <ay, grad_y> + <aw, grad_weight> with respect to grad, x, y and weight."""
    ax = None if ax is None else gather(ax, senders)
    grad_grad, grad_x, grad_y, grad_weight = tensor_product_double_backward(
        plan, ax, ay, aw, gather(grad, receivers), gather(x, senders), y, weight
    )
    return (
        scatter(grad_grad, receivers, len(grad)),
        scatter(grad_x, senders, len(x)),
        grad_y,
        grad_weight,
    )


def gather(nodes: ArrayLike, index: ArrayLike) -> Array:
    """A row of `nodes` for every edge."""
    return np.asarray(nodes, np.float64)[np.asarray(index, np.int64)]


def scatter(edges: Array, index: ArrayLike, num_nodes: int) -> Array:
    """For every node the sum of the rows of edges."""
    nodes = np.zeros((num_nodes, edges.shape[1]))
    np.add.at(nodes, np.asarray(index, np.int64), edges)
    return nodes
