"""TensorProductConv: gather - product - scatter over a graph as one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from clebsch.graph import Graph
from clebsch.o3.tensor_product import TensorProduct
from clebsch.ops.convolution import convolve

__all__ = ["TensorProductConv"]


class TensorProductConv(TensorProduct):
    """out[i] = sum over the edges e that i receives of TensorProduct(x[senders[e]], y[e], weight[e]).

    The same as an `o3.TensorProduct` on gathered rows followed by index_add, with the same arguments,
    parameters and state_dict, but in one kernel that stores neither the gathered rows nor the messages.

    Args:
        irreps_in1, irreps_in2, irreps_out: irreps of node features, edge features and the output.
        instructions and the other arguments: those of `o3.TensorProduct`, except that `shared_weights` is
            False by default: one row of weights per edge.

    Raises:
        ValueError, IndexError: as `o3.TensorProduct`, within whose limits degrees and multiplicities must
            lie too.
    """

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any,
        instructions: Iterable[Sequence[Any]],
        *,
        in1_var: Iterable[float] | None = None,
        in2_var: Iterable[float] | None = None,
        out_var: Iterable[float] | None = None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool = False,
        layout: str = "mul_ir",
    ) -> None:
        super().__init__(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            in1_var,
            in2_var,
            out_var,
            irrep_normalization,
            path_normalization,
            internal_weights,
            shared_weights,
            layout=layout,
        )

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | list[Tensor] | None, graph: Graph) -> Tensor:
        """x (num_nodes, irreps_in1.dim), y (num_edges, irreps_in2.dim) to (num_nodes, irreps_out.dim).

        weight: (num_edges, weight_numel), or (weight_numel,) where weights are shared, or a list with one
        tensor per weighted path; None where the module holds its own. graph: a `Graph` of num_nodes nodes and
        num_edges edges. Raises what `clebsch.ops.convolution` raises.
        """
        return convolve(x, y, self._get_weight(weight, x), graph, self._sizes)
