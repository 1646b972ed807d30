"""Allegro's layers as a whole, and what its network hands from module to module.

Between functions Allegro has matrix after matrix: of the lengths of edges, of the types of their ends, of the
scalar features that all later layers and the readout take. They are multiplied with each other; edges, which
are many, meet the products alone. While a network is at work its modules therefore hand on `Deferred`
features, in factors; what is left in the data at its end is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import Path, ProductPlan
from clebsch.convert.allegro import (
    MakeWeightedChannels,
    WeightedRows,
    decide_product,
    decide_weighter,
    plan_of_product,
    plan_of_sums,
    weight_of_paths,
    weights_by_degree,
)
from clebsch.convert.nequip import ScalarNet, factored, is_scalar_net
from clebsch.convert.radial import Deferred, RadialWeights, SideBySide, as_tensor, not_taken_apart
from clebsch.convert.swap import Accelerated, forward_of, original_class, package_of
from clebsch.e3nn.operands import is_recorded, note, refused
from clebsch.graph import Graph
from clebsch.ops.convolution import convolve
from clebsch.ops.edge_product import multiply_edges
from clebsch.ops.linear import mix_rows
from clebsch.ops.tensor_product import PlanSizes, plan_sizes

__all__ = ["NETWORK_RULES", "RULES", "Layers", "Network", "TypeEmbedding"]

# In the data while a network of ours is at work: its modules may leave features in factors there.
DEFERRED = "_clebsch_deferred"
# Keys of NequIP's.
NODE_FEATURES, EDGE_INDEX = "node_features", "edge_index"

# All that the forward of Allegro_Module refers to: another version's does something else.
NAMES = frozenset(
    "AtomicDataDict EDGE_INDEX_KEY NODE_FEATURES_KEY _env_weighter _n_scalar_outs append "
    "avg_num_neighbors_norm cat first_layer_env_embed_projection latents narrow num_layers num_nodes "
    "num_scalar_features reshape scalar_in_field scalar_out_field scatter shape size tensor_basis_in_field "
    "tensor_features_in_field torch tps view weight_numel zip".split()
)


class TypedFeatures(Deferred):
    """For each edge, its features times the matrix of its pair of types."""

    def __init__(self, features: Tensor, matrices: Tensor, pair: Tensor) -> None:
        super().__init__()
        self.features = features  # (num_edges, H)
        self.matrices = matrices  # (H, pairs, columns)
        self.pair = pair  # (num_edges,)

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.matrices.shape[2]

    def through(self, matrix: Tensor) -> TypedFeatures:
        """The rows of the tensor times a matrix (columns, any number)."""
        return TypedFeatures(self.features, self.matrices @ matrix, self.pair)

    def _make(self) -> Tensor:
        sizes = _plan_of_pairs(*self.matrices.shape)
        return mix_rows(
            self.features, self.matrices.reshape(-1), self.features.new_empty(0), sizes, (), self.pair
        )


@lru_cache(maxsize=256)
def _plan_of_pairs(inputs: int, pairs: int, outputs: int) -> PlanSizes:
    scalars = [Irreps([(count, (0, 1))]) for count in (inputs, pairs, outputs)]
    return plan_sizes(ProductPlan(*scalars, (Path(0, 0, 0, "uvw", True, 1.0),), "ir_mul"))


class Network(Accelerated):
    """A sequence of modules that has Allegro's layers in it."""

    does = "matrices meet each other before they meet edges, from one module to the next"

    def forward(self, data: Any) -> Any:
        """As NequIP's."""
        # Whoever listens to a part is to hear tensors.
        reason = _own_code(self, self.modules())
        if reason is None and not all(_hands_on_tensors(original_class(part)) for part in self.modules()):
            reason = "it holds a module of another package"
        note(self, reason)
        if reason is not None:
            return super().forward(data)
        data[DEFERRED] = True
        try:
            out = super().forward(data)
        finally:
            data.pop(DEFERRED, None)
        out.pop(DEFERRED, None)
        for name, value in out.items():
            if isinstance(value, Deferred):
                out[name] = value.whole()
        return out


class TypeEmbedding(Accelerated):
    """ProductTypeEmbedding: a matrix for every pair of types, where edges are many more than pairs."""

    does = "a matrix for every pair of types"

    def forward(self, data: Any) -> Any:
        """As Allegro's."""
        lengths = data[self.in_field]
        layer = self.basis_linear.mlp[0]
        reason = _own_code(self, (*self.children(), self.basis_linear.mlp, layer))
        if reason is None:
            operands = {"lengths": lengths, "weight": layer.weight, "types": self.center_embed.weight}
            reason = refused("linear", operands)
        note(self, reason)
        pairs = self.num_types**2
        # The matrices of pairs have so many rows in all.
        few = 2 * pairs * lengths.shape[1] <= lengths.shape[0] or pairs == 1
        if reason is not None or DEFERRED not in data or not few:
            return super().forward(data)
        data = _globals(self)["with_edge_type_"](data, edge_type_field=self.edge_type_field)
        centers, neighbors = self.center_embed.weight, self.neighbor_embed.weight
        count = self.num_types
        types = torch.cat([centers.repeat_interleave(count, 0), neighbors.repeat(count, 1)], 1)
        matrices = (layer.weight * layer.alpha).unsqueeze(1) * types
        if pairs == 1:
            data[self.out_field] = RadialWeights(lengths, matrices.squeeze(1))
        else:
            center, neighbor = data[self.edge_type_field]
            data[self.out_field] = TypedFeatures(lengths, matrices, center * count + neighbor)
        return data


class Layers(Accelerated):
    """Allegro_Module: sums over the edges of centers in one kernel; no arrays of edges are joined or cut."""

    does = "sums at centers in one kernel; features of edges are neither joined nor cut"

    def forward(self, data: Any) -> Any:
        """As Allegro's."""
        basis, features, given = (
            data[name]
            for name in (self.tensor_basis_in_field, self.tensor_features_in_field, self.scalar_in_field)
        )
        plans, reason = self._plans(basis, features, given)
        note(self, reason)
        if reason is not None:
            data[self.scalar_in_field] = as_tensor(given)
            return super().forward(data)
        centers, nodes = data[EDGE_INDEX][0], _globals(self)["AtomicDataDict"].num_nodes(data)
        graph, channels = Graph.of_call(centers, centers, nodes), self.num_tensor_features
        ones = basis.new_ones(nodes, channels)
        rows = features.mT.reshape(features.shape[0], channels * features.shape[2])
        out = _through(self.first_layer_env_embed_projection, given)
        scalars: list[Any] = []
        for latent, product, (sums_plan, product_plan) in zip(self.latents, self.tps, plans, strict=True):
            own, weights = _cut(out, self.num_scalar_features)
            scalars.append(own)
            weights = weights_by_degree(self._env_weighter, weights)
            data[NODE_FEATURES] = convolve(ones, basis, weights, graph, sums_plan)
            data = self.avg_num_neighbors_norm(data)
            sums = data[NODE_FEATURES]
            rows = multiply_edges(rows, sums, weight_of_paths(product), graph, product_plan)
            own = rows
            if rows.shape[1] > channels:
                rows, own = _WithHead.apply(rows, channels)
            out = _through(latent, SideBySide([*scalars, own]))
        data[NODE_FEATURES] = sums.view(nodes, -1, channels).mT.reshape(sums.shape)
        found = SideBySide([*scalars, out])
        data[self.scalar_out_field] = found if DEFERRED in data else found.whole()
        return data

    def _plans(self, basis: Tensor, features: Tensor, given: Any) -> tuple[list[tuple[Any, Any]], str | None]:
        """For each layer the plans of its sums and its product; or why Allegro's own code has to run."""
        reason = _own_code(self, (self._env_weighter, *self.tps))
        if reason is not None:
            return [], reason
        operands = {"features": features, "basis": basis, "weights": self.tps[0].weights}
        if isinstance(given, Tensor):
            operands["scalars"] = given
        reason = refused("convolution", operands) or refused("edge_product", operands)
        sums_plan = None
        if reason is None:
            sums_plan, reason = plan_of_sums(self._env_weighter)
        plans = []
        for product in self.tps:
            if reason is None:
                plan, reason = plan_of_product(product)
                plans.append((sums_plan, plan))
        return plans, reason


@cache
def _hands_on_tensors(cls: type) -> bool:
    """Whether its forward is of a package that computes by torch's functions alone: an autograd.Function of
    somebody else's would take features in factors for a constant, and lose their gradients.
    """
    provider = next(one for one in cls.__mro__ if "forward" in vars(one))
    return package_of(provider) in ("allegro", "e3nn", "nequip", "torch")


def _own_code(module: Any, parts: Iterable[torch.nn.Module]) -> str | None:
    """Why a module has to run as Allegro wrote it; None if its parts may be taken apart."""
    if is_recorded():
        return "torch's compiler is given Allegro's own code"
    return not_taken_apart(module, parts)


def _globals(module: Any) -> dict[str, Any]:
    """What the package's own forward sees; a model from a package has a NequIP of its own."""
    return module._clebsch_original.forward.__globals__


def _through(net: Any, x: Any) -> Any:
    """net(x), its last matrix not applied."""
    out = factored(net, x)
    return net(as_tensor(x)) if out is None else out


def _cut(out: Any, width: int) -> tuple[Any, Any]:
    """The first `width` columns and the others."""
    if not isinstance(out, RadialWeights):
        out = as_tensor(out)
        return out[:, :width], out[:, width:]
    return tuple(
        RadialWeights(out.hidden, matrix) for matrix in out.matrix.split([width, out.columns - width], dim=1)
    )


class _WithHead(torch.autograd.Function):
    """Rows, and their first columns apart: what comes back to both is added in one go."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.columns = rows.shape[1]
        return rows.view_as(rows), rows[:, :width].contiguous()

    @staticmethod
    def backward(ctx: Any, to_rows: Tensor | None, to_head: Tensor | None) -> tuple[Tensor | None, None]:
        if to_rows is None and to_head is not None:
            return torch.nn.functional.pad(to_head, (0, ctx.columns - to_head.shape[1])), None
        return to_rows if to_head is None else _AddToHead.apply(to_rows, to_head), None


class _AddToHead(torch.autograd.Function):
    """The transpose of `_WithHead`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, head: Tensor) -> Tensor:
        ctx.width = head.shape[1]
        out = rows.clone()
        out[:, : ctx.width] += head
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _WithHead.apply(grad, ctx.width)


def _layers(module: Any) -> Any:
    """All of its parts have to be those that are known here."""
    latents = [module.first_layer_env_embed_projection, *module.latents]
    if NAMES != set(original_class(module).forward.__code__.co_names):
        return {}  # of another version; its parts are accelerated on their own
    if not all(map(is_scalar_net, latents)) or set(module._n_scalar_outs) != {1}:
        return {}
    found = {module: Layers}
    for part in (module._env_weighter, *module.tps):
        rule = _decide(part)
        if not isinstance(rule, dict) or part not in rule:
            return {}
        found |= rule
    return found | dict.fromkeys(latents, ScalarNet)


def _decide(part: Any) -> Any:
    """The rule of a part whose forward is Allegro's own."""
    decide = {"Contracter": decide_product, "MakeWeightedChannels": decide_weighter}.get(forward_of(part))
    return {} if decide is None else decide(part)


def _network(network: Any) -> Any:
    """Known by Allegro's layers in it."""
    layers = [part for part in network.children() if forward_of(part) == "Allegro_Module"]
    if len(layers) != 1 or Layers not in _layers(layers[0]).values():
        return {}
    found = {network: Network, **_layers(layers[0])}
    for part in network.modules():
        kind = forward_of(part)
        if kind == "ProductTypeEmbedding" and _is_taken(part):
            found[part] = TypeEmbedding
        elif kind == "ScalarMLP" and is_scalar_net(part.mlp_module):
            found[part.mlp_module] = ScalarNet
        elif kind == "TwoBodySphericalHarmonicTensorEmbed" and is_scalar_net(part.env_embed_linear):
            found[part.env_embed_linear] = ScalarNet
            if _decide(part._edge_weighter) == {part._edge_weighter: MakeWeightedChannels}:
                found[part._edge_weighter] = WeightedRows
    return found


def _is_taken(module: Any) -> bool:
    """Whether it is of plain embeddings and one matrix."""
    net = module.basis_linear
    plain = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}
    embeddings = (module.center_embed, module.neighbor_embed)
    return (
        is_scalar_net(net)
        and len(list(net.mlp)) == 1
        and net.mlp[0].bias is None
        and all(
            type(one) is torch.nn.Embedding
            and all(getattr(one, name) == value for name, value in plain.items())
            for one in embeddings
        )
    )


RULES = {"Allegro_Module": _layers}
# A network is NequIP's.
NETWORK_RULES = {"SequentialGraphNetwork": _network}
