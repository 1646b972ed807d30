"""MACE's blocks. Their code stays: it asks whether a block fuses its convolution, and calls the product with
the edges then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.convert.e3nn import TensorProduct, is_convolved, sum_edges
from clebsch.convert.left import Left
from clebsch.convert.radial import FullyConnectedNet, biased, is_plain, not_taken_apart
from clebsch.convert.swap import Accelerated
from clebsch.e3nn.operands import note, refused
from clebsch.nn.symmetric_contraction import contract
from clebsch.nn.symmetric_contraction_table import contraction_table
from clebsch.ops.dispatch import is_autocast

__all__ = ["RULES", "Convolution", "InteractionBlock", "RadialMLP", "SymmetricContraction"]


class InteractionBlock(Accelerated):
    """A block that hands x of all nodes and the edges to `conv_tp`, not the gathered rows."""

    does = "hands features of nodes and edges to its convolution: rows are not gathered"

    @property
    def conv_fusion(self) -> str:
        """What MACE's code looks for, as long as its product is ours and nobody listens to it."""
        is_ours = type(self.conv_tp).__dict__.get("_clebsch_rule") is Convolution and is_plain(self.conv_tp)
        if is_ours and not is_autocast():
            return "clebsch"
        raise AttributeError("conv_fusion")


class Convolution(TensorProduct):
    """Gather - product - scatter; row 0 of edge_index holds the senders."""

    does = "gathers, multiplies and sums at receivers in one kernel"

    def forward(self, x: Tensor, y: Tensor, weight: Any = None, edge_index: Tensor | None = None) -> Tensor:
        """With edge_index, x (num_nodes, ...) to sums at receivers (num_nodes, ...); without, as e3nn's."""
        if edge_index is None:
            return super().forward(x, y, weight)
        return sum_edges(self, x, y, weight, edge_index[0], edge_index[1])


class RadialMLP(Accelerated):
    """Linear layers with norms between them; the last is not applied: a convolution takes its matrix."""

    does = "its last layer is applied by the convolution, a few edges at a time"

    def forward(self, inputs: Tensor) -> Any:
        """(num_edges, inputs) to the `RadialWeights` of the edges."""
        layers = list(self.net)
        reason = not_taken_apart(self, (self.net, *layers))
        if reason is None and type(layers[-1]) is not torch.nn.Linear:
            reason = "its last layer is not a torch.nn.Linear"
        note(self, reason)
        if reason is not None:
            return super().forward(inputs)
        *inner, last = layers
        for layer in inner:
            inputs = layer(inputs)
        return biased(inputs, last)


class SymmetricContraction(Accelerated):
    """Powers of features coupled to irreps, with the weights of each node's species."""

    does = "powers of features coupled to irreps in one kernel; no arrays of all nodes and couplings"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (nodes, channels, components), y (nodes, species) to (nodes, irreps_out.dim)."""
        weights = [
            weight for one in self.contractions for weight in (*reversed(list(one.weights)), one.weights_max)
        ]
        reason = refused("symmetric_contraction", {"x": x, "y": y, "weight": weights[0]})
        if reason is None and not all(map(is_plain, self.contractions)):
            reason = "somebody listens to the calls of its contractions, or stands in for one"
        note(self, reason)
        if reason is not None:
            return super().forward(x, y)
        table, widths = _table(self)
        return contract(x, y, weights, table, widths)


def _table(module: Any) -> tuple[Tensor, tuple[int, ...]]:
    """The table of a contraction's arrays U, made anew where they were replaced or written."""
    arrays = [[one.U_tensors(nu) for nu in range(1, one.correlation + 1)] for one in module.contractions]
    if any(u.is_inference() for one in arrays for u in one):
        raise ValueError("built in torch.inference_mode, writing to its arrays would leave no trace")
    marks = [(id(u), u._version) for one in arrays for u in one]
    kept = module.__dict__.get("_clebsch_table")
    if kept is None or kept[0] != marks:
        found = contraction_table(arrays)
        # The arrays are kept, so that no other tensor gets the id of one of them.
        module.__dict__["_clebsch_table"] = kept = (marks, found.tensor, found.widths, arrays)
    return kept[1], kept[2]


def _contraction(module: Any) -> Any:
    try:
        if not all(one.weights_max.dim() == 3 for one in module.contractions):
            return Left("its weights come from outside")
        _table(module)
    except (AttributeError, TypeError, ValueError) as error:
        return Left(f"it is not a symmetric contraction that is known here: {error}")
    return {module: SymmetricContraction}


def _interaction(block: Any) -> Any:
    if not _fuses_convolution(type(block)):
        return Left("this version of mace-torch does not let a block fuse its convolution")
    if hasattr(block, "conv_fusion"):
        return Left("its convolution is fused by somebody else")
    product, net = getattr(block, "conv_tp", None), getattr(block, "conv_tp_weights", None)
    reason = is_convolved(product)
    if reason is not None:
        return Left(reason)
    found = {block: InteractionBlock, product: Convolution}
    net_rule = {"FullyConnectedNet": FullyConnectedNet, "RadialMLP": RadialMLP}.get(type(net).__name__)
    if net_rule is not None and "forward" not in vars(net):
        found[net] = net_rule
    return found


def _fuses_convolution(cls: type) -> bool:
    """Whether the code of a block asks for `conv_fusion`, as of mace-torch 0.3.11 and later."""
    return "conv_fusion" in getattr(cls.forward, "__code__", _fuses_convolution.__code__).co_consts


RULES = {
    name: _interaction
    for name in (
        "RealAgnosticInteractionBlock",
        "RealAgnosticResidualInteractionBlock",
        "RealAgnosticDensityInteractionBlock",
        "RealAgnosticDensityResidualInteractionBlock",
        "RealAgnosticAttResidualInteractionBlock",
        "RealAgnosticResidualNonLinearInteractionBlock",
    )
}
RULES["SymmetricContraction"] = _contraction
