"""A convolution whose weights are hidden features times a matrix, made where they are used, as a torch
operator: checks, shapes without data, derivatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.algebra.plan import ProductPlan
from clebsch.ops.convolution import parts_of, require_device
from clebsch.ops.dispatch import call, require_alike, require_one_device
from clebsch.ops.multilinear import register_derivatives
from clebsch.ops.tensor_product import (
    PlanSizes,
    constant_plan_sizes,
    plan_sizes,
    refuse_tangents,
    wanted_like,
)

if TYPE_CHECKING:
    from clebsch.graph import Graph

__all__ = ["radial_convolution"]


def radial_convolution(
    x: Tensor, y: Tensor, hidden: Tensor, matrix: Tensor, graph: Graph, plan: ProductPlan | str
) -> Tensor:
    """`convolution` with the weights ``hidden @ matrix``, as a radial network without bias ends.

    The weights, weight_numel numbers an edge, exist for a few edges at a time in the processor's cache, and
    are made again by each derivative: memory grows with (num_edges, H) alone. Differentiable to any order.

    Args:
        x: (num_nodes, irreps_in1.dim), float32 or float64.
        y: (num_edges, irreps_in2.dim), of the dtype and device of x.
        hidden: (num_edges, H), any H.
        matrix: (H, weight_numel).
        graph: `clebsch.Graph`; its order is made once and kept in it.
        plan: a `ProductPlan` or its canonical string.

    Returns:
        (num_nodes, irreps_out.dim); zero for nodes that receive nothing.

    Raises:
        as `clebsch.ops.convolution`; ValueError also for an H or a weight_numel of 2^30 or more, or
        a matrix of 2^48 elements or more.
    """
    return convolve_radially(x, y, hidden, matrix, graph, constant_plan_sizes(plan))


def convolve_radially(
    x: Tensor, y: Tensor, hidden: Tensor, matrix: Tensor, graph: Graph, sizes: PlanSizes
) -> Tensor:
    """`radial_convolution` for a caller that keeps the sizes of its plan."""
    num_nodes, num_edges, order = parts_of("radial_convolution", graph)
    _check_operands(x, y, hidden, matrix, sizes, num_nodes, num_edges)
    require_device("radial_convolution", order, x)
    return call(torch.ops.clebsch.radial_convolution, x, y, hidden, matrix, order, sizes.plan)


def _check_operands(
    x: Any, y: Any, hidden: Any, matrix: Any, sizes: PlanSizes, num_nodes: int, num_edges: int
) -> None:
    """One pass over the conditions where all is well, as in `clebsch.ops.tensor_product`."""
    if not (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and isinstance(hidden, Tensor)
        and isinstance(matrix, Tensor)
        and x.dim() == y.dim() == hidden.dim() == matrix.dim() == 2
        and x.shape[0] == num_nodes
        and x.shape[1] == sizes.in1
        and y.shape[0] == num_edges
        and y.shape[1] == sizes.in2
        and hidden.shape[0] == num_edges
        and matrix.shape[0] == hidden.shape[1]
        and matrix.shape[1] == sizes.weight
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == y.dtype == hidden.dtype == matrix.dtype
        and x.device == y.device == hidden.device == matrix.device
    ):
        _explain(x, y, hidden, matrix, sizes, num_nodes, num_edges)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents("radial_convolution", x, y, hidden, matrix)


def _explain(x, y, hidden, matrix, sizes, num_nodes, num_edges) -> None:
    require_alike("radial_convolution", x=x, y=y, hidden=hidden, matrix=matrix)
    size = hidden.shape[-1] if hidden.dim() == 2 else "H"
    for name, value, label, expected in (
        ("x", x, f"(num_nodes, {sizes.in1})", (num_nodes, sizes.in1)),
        ("y", y, f"(num_edges, {sizes.in2})", (num_edges, sizes.in2)),
        ("hidden", hidden, "(num_edges, H)", (num_edges, size)),
        ("matrix", matrix, f"(H, {sizes.weight})", (size, sizes.weight)),
    ):
        shape = tuple(value.shape)
        if shape != expected:
            concrete = ", ".join(map(str, expected))
            raise ValueError(
                f"radial_convolution: {name} must have shape {label} = ({concrete}), got {shape}"
            )


@torch.library.register_fake("clebsch::radial_convolution")
def _(x, y, hidden, matrix, order, plan):
    require_one_device("radial_convolution", x=x, y=y, hidden=hidden, matrix=matrix, order=order)
    return x.new_empty((x.shape[0], plan_sizes(plan).out))


@torch.library.register_fake("clebsch::radial_convolution_backward")
def _(grad, x, y, hidden, matrix, order, plan, needs):
    require_one_device("radial_convolution", grad=grad, x=x, y=y, hidden=hidden, matrix=matrix, order=order)
    return wanted_like(needs, x, y, hidden, matrix)


@torch.library.register_fake("clebsch::radial_convolution_double_backward")
def _(ax, ay, ahidden, amatrix, grad, x, y, hidden, matrix, order, plan, needs):
    require_one_device(
        "radial_convolution",
        grad=grad,
        x=x,
        y=y,
        hidden=hidden,
        matrix=matrix,
        order=order,
        ax=ax,
        ay=ay,
        ahidden=ahidden,
        amatrix=amatrix,
    )
    return wanted_like(needs, grad, x, y, hidden, matrix)


register_derivatives("radial_convolution", operands=4)
