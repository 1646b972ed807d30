"""Gather - product - scatter over a graph as a torch operator: checks, shapes without data, derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.ops.dispatch import call, require_one_device
from clebsch.ops.multilinear import register_derivatives
from clebsch.ops.tensor_product import PlanSizes, check_operands, constant_plan_sizes, plan_sizes, wanted_like

if TYPE_CHECKING:
    from clebsch.graph import Graph

__all__ = ["convolution"]


def convolution(x: Tensor, y: Tensor, weight: Tensor, graph: Graph, plan: ProductPlan | str) -> Tensor:
    """For every node, the sum over the edges e it receives of the product of x[senders[e]] and y[e].

    Nothing of the size of the gathered rows or of the messages is ever stored. Differentiable to any order.

    Args:
        x: (num_nodes, irreps_in1.dim), float32 or float64; on a GPU also float16 or bfloat16.
        y: (num_edges, irreps_in2.dim), of the dtype and device of x.
        weight: (num_edges, weight_numel), or (weight_numel,) shared by all edges; (0,) if no path is
            weighted.
        graph: `clebsch.Graph`; its order is made once and kept in it.
        plan: a `ProductPlan` or its canonical string.

    Returns:
        (num_nodes, irreps_out.dim); zero for nodes that receive nothing.

    Raises:
        as `clebsch.ops.tensor_product`, with the same limits; TypeError also for another kind of graph.
    """
    return convolve(x, y, weight, graph, constant_plan_sizes(plan))


def convolve(x: Tensor, y: Tensor, weight: Tensor, graph: Graph, sizes: PlanSizes) -> Tensor:
    """`convolution` for a caller that keeps the sizes of its plan."""
    nodes, edges, order = parts_of("convolution", graph)
    rows, names = (nodes, edges, edges), ("num_nodes", "num_edges", "num_edges")
    check_operands("convolution", x, y, weight, sizes, rows, names)
    require_device("convolution", order, x)
    return call(torch.ops.clebsch.convolution, x, y, weight, order, sizes.plan)


def parts_of(noun: str, graph: Graph) -> tuple[int, int, Tensor]:
    """Number of nodes, number of edges, order; TypeError if it is no graph."""
    try:
        return graph.num_nodes, graph.num_edges, graph.order
    except AttributeError:
        raise TypeError(f"{noun}: graph must be a clebsch.Graph, got {type(graph).__name__}") from None


def require_device(noun: str, order: Tensor, x: Tensor) -> None:
    """ValueError unless the order of a graph is where x is."""
    if order.device != x.device:
        raise ValueError(f"{noun}: graph must be on the device of x, {x.device}, got {order.device}")


@torch.library.register_fake("clebsch::graph_order")
def _(senders, receivers, num_nodes):
    require_one_device("graph_order", senders=senders, receivers=receivers)
    return senders.new_empty((6 * senders.shape[0] + 3 * num_nodes + 5,), dtype=torch.int64)


def register_fakes(noun: str) -> None:
    """Shapes without data of a product over a graph and its derivatives: a row of out for each of x."""

    @torch.library.register_fake(f"clebsch::{noun}")
    def _(x, y, weight, order, plan):
        require_one_device(noun, x=x, y=y, weight=weight, order=order)
        return x.new_empty((x.shape[0], plan_sizes(plan).out))

    @torch.library.register_fake(f"clebsch::{noun}_backward")
    def _(grad, x, y, weight, order, plan, needs):
        require_one_device(noun, grad=grad, x=x, y=y, weight=weight, order=order)
        return wanted_like(needs, x, y, weight)

    @torch.library.register_fake(f"clebsch::{noun}_double_backward")
    def _(ax, ay, aw, grad, x, y, weight, order, plan, needs):
        require_one_device(noun, grad=grad, x=x, y=y, weight=weight, order=order, ax=ax, ay=ay, aw=aw)
        return wanted_like(needs, grad, x, y, weight)


register_fakes("convolution")
register_derivatives("convolution")
