"""Products of edges with what their receivers have as a torch operator: checks, shapes, derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clebsch import backend
from clebsch.algebra.plan import ProductPlan
from clebsch.ops.convolution import parts_of, register_fakes, require_device
from clebsch.ops.dispatch import call, on_host
from clebsch.ops.multilinear import register_derivatives
from clebsch.ops.tensor_product import (
    PlanSizes,
    check_operands,
    constant_plan_sizes,
    multiply_rows,
)

if TYPE_CHECKING:
    from clebsch.graph import Graph

__all__ = ["edge_product"]


def edge_product(x: Tensor, y: Tensor, weight: Tensor, graph: Graph, plan: ProductPlan | str) -> Tensor:
    """For every edge e, the product of x[e] and y[receivers[e]].

    y is never gathered, nor its gradient scattered, outside of caches; for Triton's kernels alone it is.
    Differentiable to any order. Fastest where the edges of a receiver follow each other.

    Args:
        x: (num_edges, irreps_in1.dim), float32 or float64; on a GPU also float16 or bfloat16.
        y: (num_nodes, irreps_in2.dim), of the dtype and device of x.
        weight: (num_edges, weight_numel), or (weight_numel,) shared by all edges; (0,) if no path is
            weighted.
        graph: `clebsch.Graph`, of whose edges the receivers alone matter; its order is made once and kept in
            it.
        plan: a `ProductPlan` or its canonical string.

    Returns:
        (num_edges, irreps_out.dim).

    Raises:
        as `clebsch.ops.tensor_product`, with the same limits; TypeError also for another kind of graph.
    """
    return multiply_edges(x, y, weight, graph, constant_plan_sizes(plan))


def multiply_edges(x: Tensor, y: Tensor, weight: Tensor, graph: Graph, sizes: PlanSizes) -> Tensor:
    """`edge_product` for a caller that keeps the sizes of its plan."""
    nodes, edges, order = parts_of("edge_product", graph)
    rows, names = (edges, nodes, edges), ("num_edges", "num_nodes", "num_edges")
    check_operands("edge_product", x, y, weight, sizes, rows, names)
    require_device("edge_product", order, x)
    if not on_host(x) and backend.runs_triton():
        return multiply_rows(x, y.index_select(0, graph.receivers), weight, sizes)
    return call(torch.ops.clebsch.edge_product, x, y, weight, order, sizes.plan)


register_fakes("edge_product")
register_derivatives("edge_product")
