"""Products of edges with what their receivers have.

out[e] = tensor_product(x[e], y[receivers[e]], weight[e]), with x, weight and out (num_edges, ...), or one
weight (weight_numel,) shared by all edges, and y (num_nodes, ...).
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from ..algebra.plan import ProductPlan
from .convolution import gather, scatter
from .tensor_product import (
    Array,
    Terms,
    tensor_product,
    tensor_product_backward,
    tensor_product_double_backward,
)


def edge_product(
    plan: ProductPlan | Terms, x: ArrayLike, y: ArrayLike, weight: ArrayLike, receivers: ArrayLike
) -> Array:
    """A row for each edge: shape (num_edges, out)."""
    return tensor_product(plan, x, gather(y, receivers), weight)


def edge_product_backward(
    plan: ProductPlan | Terms,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    receivers: ArrayLike,
) -> tuple[Array, Array, Array]:
    """Gradients of <grad, edge_product(x, y, weight)> with respect to x, y and weight."""
    grad_x, grad_y, grad_weight = tensor_product_backward(plan, grad, x, gather(y, receivers), weight)
    return grad_x, scatter(grad_y, receivers, len(y)), grad_weight


def edge_product_double_backward(
    plan: ProductPlan | Terms,
    ax: ArrayLike | None,
    ay: ArrayLike | None,
    aw: ArrayLike | None,
    grad: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    receivers: ArrayLike,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of <ax, grad_x> + <ay, grad_y> + <aw, grad_weight> with respect to grad, x, y and weight."""
    ay = None if ay is None else gather(ay, receivers)
    grad_grad, grad_x, grad_y, grad_weight = tensor_product_double_backward(
        plan, ax, ay, aw, grad, x, gather(y, receivers), weight
    )
    return grad_grad, grad_x, scatter(grad_y, receivers, len(y)), grad_weight
