"""NequIP's convolutions, self-connections and radial nets; edge_dst holds the receivers of edges."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.convert.e3nn import TensorProduct, convolve_edges, is_convolved
from clebsch.convert.left import Left
from clebsch.convert.radial import (
    Deferred,
    activation,
    affine,
    as_tensor,
    is_plain,
    multiply,
    not_taken_apart,
)
from clebsch.convert.swap import Accelerated, forward_of
from clebsch.e3nn import tensor_product
from clebsch.e3nn.operands import is_recorded, note, refused
from clebsch.ops.dispatch import may_look, on_host, will_run
from clebsch.ops.linear import mix_rows
from clebsch.ops.tensor_product import PlanSizes, plan_sizes

__all__ = [
    "RULES",
    "Convolution",
    "InteractionBlock",
    "RadialMLP",
    "ScalarNet",
    "SelfConnection",
    "TypeEmbedding",
]

# NequIP's keys
ATOM_TYPES, NODE_ATTRS, EDGE_INDEX = "atom_types", "node_attrs", "edge_index"
POSITIONS, CELL = "pos", "cell"
CELL_SHIFT, VECTORS, BATCH, EDGE_CUTOFF = "edge_cell_shift", "edge_vectors", "batch", "edge_cutoff"

# The types of the atoms of the block that is at work, where its self-connection finds them; threads may run
# one model at the same time, each on other atoms.
TYPES: ContextVar[Tensor | None] = ContextVar("clebsch_atom_types", default=None)


class EdgeLengths(Accelerated):
    """EdgeLengthNormalizer: vectors across the faces of one cell by a product of matrices."""

    does = "shifts of edges by a product with the cell, not by sums over an array (edges, 3, 3)"

    def forward(self, data: Any) -> Any:
        """As NequIP's, which takes vectors that are there."""
        if not is_recorded() and _is_one_cell(data):
            senders, receivers = data[EDGE_INDEX]
            pos, shift, cell = data[POSITIONS], data[CELL_SHIFT], data[CELL].view(3, 3)
            between = pos.index_select(0, receivers) - pos.index_select(0, senders)
            data[VECTORS] = torch.addmm(between, shift, cell)
        return super().forward(data)


class BesselEncoding(Accelerated):
    """BesselEdgeLengthEncoding with a polynomial cutoff: a sine of every number, the rest once an edge."""

    does = "of each function of a length only the sine; what all share once for an edge"

    def forward(self, data: Any) -> Any:
        """As NequIP's."""
        x, frequencies = data[self.norm_length_field], self.bessel_weights
        reason = "torch's compiler fuses NequIP's own code"
        if not is_recorded():
            reason = not_taken_apart(self, (self.cutoff,))
            if reason is None and not on_host(x):
                reason = "on a GPU NequIP's own code runs: torch's operations alone were chosen for the CPU"
            reason = reason or refused("tensor_product", {"x": x, "weights": frequencies})
        if reason is None and x.dtype != torch.float64:
            reason = "lengths are not float64"
        note(self, reason)
        if reason is not None:
            return super().forward(data)
        p = self.cutoff.p
        a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
        cutoff = (1 - x**p * (a - x * (b - c * x))).masked_fill(x >= 1, 0)
        # sin(pi n x) / (pi x) at 0 is n: so small an x leaves it n, and cubes of it are numbers still.
        x = x.clamp(min=1e-60)
        waves, shared = torch.sin(x * (frequencies * math.pi)), cutoff / (x * math.pi)
        data[EDGE_CUTOFF] = cutoff.to(self._output_dtype)
        data[self.edge_invariant_field] = waves.to(self._output_dtype) * shared.to(self._output_dtype)
        return data


def _is_one_cell(data: Any) -> bool:
    if VECTORS in data or BATCH in data or not {CELL, CELL_SHIFT, POSITIONS, EDGE_INDEX} <= data.keys():
        return False
    tensors = {name: data[name] for name in (POSITIONS, CELL_SHIFT, CELL)}
    # On a GPU a product of matrices may round to 10 bits, if asked to, which NequIP's sums do not.
    on_cpu = on_host(data[POSITIONS]) and refused("tensor_product", tensors) is None
    return on_cpu and data[CELL].numel() == 9


class Convolution(Accelerated):
    """TensorProductScatter: gather - product - scatter in one kernel."""

    does = "gathers, multiplies and sums at receivers in one kernel"

    def forward(
        self, x: Tensor, edge_attr: Tensor, edge_weight: Any, edge_dst: Tensor, edge_src: Tensor
    ) -> Tensor:
        """x (num_nodes, ...) and edges to sums at receivers (num_nodes, ...)."""
        out = None
        if not torch.compiler.is_compiling() and is_plain(self.tp):
            out = convolve_edges(self.tp, x, edge_attr, edge_weight, edge_src, edge_dst, x.shape[0])
        if out is None:
            out = super().forward(x, edge_attr, as_tensor(edge_weight), edge_dst, edge_src)
        return out


class ScalarNet(Accelerated):
    """ScalarMLPFunction: what comes in factors goes out in factors, and nothing is joined in between."""

    does = "matrices that follow each other are multiplied before features meet them"

    def forward(self, x: Any) -> Any:
        """(rows, inputs), which may not be made yet, to (rows, outputs), made if the inputs were."""
        out = factored(self, x)
        if out is None:
            return super().forward(as_tensor(x))
        return out if isinstance(x, Deferred) else out.whole()


class RadialMLP(Accelerated):
    """ScalarMLPFunction whose last layer is not applied: a convolution takes its matrix."""

    does = "its last layer is applied by the convolution, a few edges at a time"

    def forward(self, x: Any) -> Any:
        """(num_edges, inputs) to the `RadialWeights` of the edges."""
        out = factored(self, x)
        return super().forward(as_tensor(x)) if out is None else out


def factored(net: Any, x: Any) -> Deferred | None:
    """net(x) without its last matrix product; None, and the reason on the net, if its own code has to run."""
    *inner, last = net.mlp if isinstance(net.mlp, torch.nn.Sequential) else [net.mlp]
    reason = not_taken_apart(net, (net.mlp, *inner, last))
    if reason is None and not _is_matrix(last):
        reason = "its last layer is no matrix"
    note(net, reason)
    if reason is not None:
        return None
    for layer in inner:
        if _is_matrix(layer):
            x = multiply(x, *_affine_map(layer))
        else:
            x = activation(layer, as_tensor(x))
    matrix, bias = _affine_map(last)
    if bias is None and isinstance(x, Deferred) and x.is_product and x.is_factored:
        return x.through(matrix)
    return affine(as_tensor(x), matrix, bias)


def _is_matrix(layer: Any) -> bool:
    return forward_of(layer) in ("ScalarLinearLayer", "DeepLinearMLP")


def _affine_map(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Matrix and bias of a ScalarLinearLayer, or of a DeepLinearMLP, which is one matrix, too."""
    if forward_of(layer) == "DeepLinearMLP":
        return torch.linalg.multi_dot(list(layer.weights)) * layer.alpha, None
    return layer.weight * layer.alpha, layer.bias


class TypeEmbedding(Accelerated):
    """An embedding of types whose attributes of atoms are not the tensor that is their first features.

    So that gradients, which pass attributes by where types share a matrix (`_FromTable`), are missing from
    them as a whole, and never in part.
    """

    does = "gives attributes and first features of atoms as two tensors"

    def forward(self, data: Any) -> Any:
        """As NequIP's."""
        data = super().forward(data)
        if not is_recorded():
            data[NODE_ATTRS] = data[NODE_ATTRS].view_as(data[NODE_ATTRS])
        return data


class InteractionBlock(Accelerated):
    """A block that lets its self-connection know the types of the atoms."""

    does = "tells its self-connection which atoms have the same attributes"

    def forward(self, data: Any) -> Any:
        """As NequIP's."""
        attributes = data[NODE_ATTRS]
        if torch.compiler.is_compiling() or attributes.retains_grad or attributes._backward_hooks:
            return super().forward(data)
        before = TYPES.set(data[ATOM_TYPES])
        try:
            return super().forward(data)
        finally:
            TYPES.reset(before)


class SelfConnection(TensorProduct):
    """A fully connected product with attributes that atoms of a type have in common.

    A matrix for every type, the sum over its attributes, takes the place of a sum over them for every atom.
    """

    does = "a matrix for every type that is there, where atoms are more than types"

    def forward(self, x: Tensor, y: Tensor, weight: Any = None) -> Tensor:
        """As e3nn's."""
        types = None if torch.compiler.is_compiling() else TYPES.get()
        out = None
        if types is not None and weight is None:
            out = _by_type(self, x, y, types.view(-1)[: x.shape[0]])
        return super().forward(x, y, weight) if out is None else out


def _by_type(product: Any, x: Tensor, y: Tensor, types: Tensor) -> Tensor | None:
    """None where rows of a type are not alike, where it is no gain, where numbers must not be seen."""
    weight = product.weight
    operands = {"x": x, "y": y, "weight": weight}
    if refused("linear", operands) is not None or not may_look(*operands.values(), types):
        return None
    sizes, _ = tensor_product.plan_of(product)
    if sizes is None or x.dim() != 2 or x.shape[1] != sizes.in1 or y.shape != (x.shape[0], sizes.in2):
        return None
    table = None
    if y.requires_grad:
        looked_up = _table_of(y)
        if looked_up is None:
            return None
        table, types = looked_up
    present, index = torch.unique(types, return_inverse=True)
    if 2 * present.shape[0] > x.shape[0]:
        return None
    if table is None:
        rows = index.new_empty(present.shape).scatter_(0, index, torch.arange(x.shape[0]))
        attributes = y.index_select(0, rows)
    else:
        attributes = _FromTable.apply(table.index_select(0, present), y)
    if not torch.equal(attributes.index_select(0, index), y):
        return None
    note(product, None)
    by_type, slices = _plan_of_types(sizes.plan, present.shape[0])
    # bmm reads the weights as they lie; matmul would copy them.
    weights = [
        torch.bmm(attributes.expand(shape[0], -1, -1), weight[start:end].view(shape)).view(-1)
        for start, end, shape in slices
    ]
    return mix_rows(x, torch.cat(weights), x.new_empty(0), by_type, (), index)


def _table_of(y: Tensor) -> tuple[Tensor, Tensor] | None:
    """The table that y, or what y is the first rows of, was looked up in, and where in it each row of y lies;
    None if it was not, or not as rows that have the whole of their gradient.
    """
    node = y.grad_fn
    while node is not None and (node.name() == "ViewBackward0" or _takes_first_rows(node)):
        node = node.next_functions[0][0]
    if node is None or node.name() != "EmbeddingBackward0":
        return None
    try:
        rows = node._saved_indices.view(-1)[: y.shape[0]]
    except RuntimeError:  # a graph that was differentiated before
        return None
    table = getattr(node.next_functions[0][0], "variable", None)  # of the node of a leaf
    if table is None or node._saved_sparse or node._saved_scale_grad_by_freq:
        return None
    if 0 <= node._saved_padding_idx < table.shape[0]:  # a row without gradient; none is -1, read as unsigned
        return None
    return table, rows


def _takes_first_rows(node: Any) -> bool:
    if node.name() != "SliceBackward0":
        return False
    return (node._saved_dim, node._saved_start, node._saved_step) == (0, 0, 1)


class _FromTable(torch.autograd.Function):
    """Rows of a table, which take the place of the rows of y that were looked up there.

    Gradients go to the table, not by way of y: there is none for each row of y. Where those alone are asked
    for, this is an error; where both are, y appears unused here: torch.autograd.grad's own error, if nothing
    else uses y.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, y: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_table, _ = ctx.next_functions
        if not will_run(of_table[0]):
            raise NotImplementedError(
                "accelerate: gradients with respect to node_attrs are there for the table that they come "
                "from alone, not for each atom; clebsch.restore(model) has them"
            )
        return grad, None


@lru_cache(maxsize=1024)
def _plan_of_types(text: str, types: int) -> tuple[PlanSizes, list[tuple[int, int, tuple[int, ...]]]]:
    """The plan for one-hot rows of types; where the weights of paths of the plan `text` begin and end, and
    their shapes.
    """
    plan = ProductPlan.parse(text)
    slices = [(offset, offset + math.prod(shape), shape) for offset, shape in plan.weight_slices]
    return plan_sizes(replace(plan, irreps_in2=Irreps([(types, plan.irreps_in2[0].ir)]))), slices


def _scatter(module: Any) -> Any:
    product = getattr(module, "tp", None)
    reason = is_convolved(product)
    return {module: Convolution, product: TensorProduct} if reason is None else Left(reason)


def _interaction(block: Any) -> Any:
    """The block's code stays; its net ends early where its convolution is ours."""
    convolution, net = getattr(block, "tp_scatter", None), getattr(block, "edge_mlp", None)
    if forward_of(convolution) != "TensorProductScatter":
        return {}
    found = _scatter(convolution)
    if isinstance(found, Left) or not is_plain(convolution):
        return {}
    if is_scalar_net(net):
        found[net] = RadialMLP
    if _has_attributes_of_types(getattr(block, "sc", None)):
        found |= {block: InteractionBlock, block.sc: SelfConnection}
    return found


def _has_attributes_of_types(product: Any) -> bool:
    """Whether it is a product of e3nn's with one block of scalars, all channels with all, weights its own."""
    if forward_of(product) != "TensorProduct" or not product.internal_weights:
        return False
    sizes, _ = tensor_product.plan_of(product)
    return sizes is not None and sizes.elements > 0


def is_scalar_net(net: Any) -> bool:
    """Whether it is a ScalarMLPFunction whose last layer is a matrix."""
    if forward_of(net) != "ScalarMLPFunction":
        return False
    return _is_matrix(net.mlp[-1] if isinstance(net.mlp, torch.nn.Sequential) and len(net.mlp) else net.mlp)


def _lengths(module: Any) -> Any:
    return {module: EdgeLengths}


def _bessel(module: Any) -> Any:
    """TorchScript says what it was."""
    cutoff = module.cutoff
    name = getattr(cutoff, "original_name", "") or forward_of(cutoff)
    return {module: BesselEncoding} if name == "PolynomialCutoff" else {}


def _embedding(module: Any) -> Any:
    return {module: TypeEmbedding}


RULES = {
    "NodeTypeEmbed": _embedding,
    "EdgeLengthNormalizer": _lengths,
    "BesselEdgeLengthEncoding": _bessel,
    "TensorProductScatter": _scatter,
    "InteractionBlock": _interaction,
}
