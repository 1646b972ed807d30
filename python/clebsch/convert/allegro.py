"""Allegro's products of the features of edges with those of their centers."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.convert.left import Left
from clebsch.convert.radial import RadialWeights, as_tensor
from clebsch.convert.swap import Accelerated
from clebsch.e3nn.operands import note, refused
from clebsch.o3.coupling_tables import relative_sign
from clebsch.o3.irreps import Irreps
from clebsch.o3.unwritten import unobserved
from clebsch.ops.tensor_product import PlanSizes, multiply_rows, plan_sizes

__all__ = [
    "RULES",
    "Contracter",
    "MakeWeightedChannels",
    "WeightedRows",
    "decide_product",
    "decide_weighter",
    "plan_of_product",
    "plan_of_sums",
    "weight_of_paths",
    "weights_by_degree",
]


class Contracter(Accelerated):
    """A product whose channels meet one by one, with weights for every path, or every path and channel.

    Allegro's arrays are (rows, channels, components); the kernel's lanes are channels, so they are taken the
    other way round. What comes out is the transpose of such an array: the next product takes it as it lies.
    Allegro's own code for weights of paths alone, which may come next, wants it contiguous.
    """

    does = "couples channels on our kernel; no arrays of all pairs of components"

    def forward(self, x1: Tensor, x2: Tensor, idxs: Tensor) -> Tensor:
        """x1 (edges, channels, in1), x2 (nodes, channels, in2), idxs (edges,) to (edges, channels, out)."""
        reason, sizes = "torch's compiler is given Allegro's own code", None
        if not torch.compiler.is_compiling():
            reason = refused("tensor_product", {"x1": x1, "x2": x2, "weights": self.weights})
        if reason is None:
            sizes, reason = plan_of_product(self)
        note(self, reason)
        if sizes is None:
            return super().forward(x1.contiguous(), x2, idxs)
        x1 = _components_first(x1, self.mul, self.base_dim1)
        x2 = _components_first(x2, self.mul, self.base_dim2).index_select(0, idxs)
        out = (
            multiply_rows(x1, x2, weight_of_paths(self), sizes)
            .view(-1, self.base_dim_out, self.mul)
            .transpose(1, 2)
        )
        return out if self.path_channel_coupling else out.contiguous()


class MakeWeightedChannels(Accelerated):
    """Harmonics times a weight for every channel and degree."""

    does = "harmonics of all channels on our kernel; no product with a matrix of zeros and ones"

    def forward(self, edge_attr: Tensor, weights: Any) -> Tensor:
        """edge_attr (edges, in), weights (edges, channels * irreps) to (edges, channels, in)."""
        out = self._as_rows(edge_attr, weights)
        return super().forward(edge_attr, as_tensor(weights)) if out is None else out.contiguous()

    def _as_rows(self, edge_attr: Tensor, weights: Any) -> Tensor | None:
        """As the kernel leaves it, a transposed view of (edges, in * channels); None if it takes none."""
        reason, sizes = "torch's compiler is given Allegro's own code", None
        if not torch.compiler.is_compiling():
            weights = weights_by_degree(self, weights)
            reason = refused("tensor_product", {"edge_attr": edge_attr, "weights": weights})
        if reason is None:
            sizes, reason = _kept(self, self._rtoi, _find_harmonics)
        note(self, reason)
        if sizes is None:
            return None
        out = multiply_rows(weights, edge_attr, weights.new_empty(0), sizes)
        return out.view(-1, sizes.in2, self.multiplicity_out).transpose(1, 2)


class WeightedRows(MakeWeightedChannels):
    """Harmonics times weights, for layers that take them as the kernel leaves them."""

    def forward(self, edge_attr: Tensor, weights: Any) -> Tensor:
        """As that of all."""
        out = self._as_rows(edge_attr, weights)
        return super().forward(edge_attr, weights) if out is None else out


def weights_by_degree(module: Any, weights: Any) -> Tensor:
    """(edges, channels * irreps) to (edges, irreps * channels)."""
    channels, irreps = module.multiplicity_out, module._num_irreps
    if isinstance(weights, RadialWeights) and weights.is_factored:
        return weights.hidden @ _components_first(weights.matrix, channels, irreps)
    return _components_first(as_tensor(weights), channels, irreps)


def _components_first(x: Tensor, channels: int, components: int) -> Tensor:
    """(rows, channels, components) to rows of components of all channels."""
    shape = (x.shape[0], channels, components)
    return x.reshape(shape).transpose(1, 2).reshape(x.shape[0], components * channels)


def weight_of_paths(module: Any) -> Tensor:
    """(paths * channels,), in the order of the plan."""
    shape = (-1, module.num_paths) if module.path_channel_coupling else (1, module.num_paths)
    return module.weights.reshape(shape).t().expand(module.num_paths, module.mul).reshape(-1)


def _kept(module: Any, table: Tensor, find: Any) -> tuple[PlanSizes | None, str | None]:
    """(plan, None) of a module with its table as it is now, or (None, why there is none)."""
    kept = vars(module).get("_clebsch_sizes")
    if type(table) is not Tensor:
        # Something records calls, with tensors without numbers in the place of buffers: the last plan holds.
        return kept[1:3] if kept is not None else (None, "its table is not a plain tensor")
    mark = (id(table), 0 if table.is_inference() else table._version)
    if kept is None or kept[0] != mark:
        with unobserved():
            found = find(module)
        sizes, reason = (None, found) if isinstance(found, str) else (plan_sizes(found), None)
        # The table is kept, so that no other tensor gets its id.
        kept = vars(module)["_clebsch_sizes"] = (mark, sizes, reason, table)
    return kept[1], kept[2]


def plan_of_product(module: Any) -> tuple[PlanSizes | None, str | None]:
    """(plan, None) of a Contracter as it is now, or (None, why there is none)."""
    return _kept(module, module.w3j, _find_plan)


def plan_of_sums(module: Any) -> tuple[PlanSizes | None, str | None]:
    """(plan, None) of what sums weighted harmonics over edges: ones for every channel of the nodes, harmonics
    and weights of edges, a channel and degree each; or (None, why there is none).
    """
    sizes, reason = _kept(module, module._rtoi, _find_harmonics)
    return (None, reason) if sizes is None else (_sums(sizes.plan), None)


@lru_cache(maxsize=256)
def _sums(text: str) -> PlanSizes:
    plan = ProductPlan.parse(text)
    paths = tuple(replace(path, i_in1=0, has_weight=True) for path in plan.paths)
    return plan_sizes(replace(plan, irreps_in1=Irreps([plan.irreps_in1[0]]), paths=paths))


def _find_harmonics(module: Any) -> ProductPlan | str:
    """The degrees are not stored: a row of the table is alpha at the components of a degree, and else 0."""
    reason = "its table does not give every component a degree"
    table = module._rtoi.detach().to("cpu", torch.float64)
    widths = [int(count) for count in table.ne(0).sum(-1)]
    if table.dim() != 2 or sum(widths) != table.shape[1] or any(width % 2 == 0 for width in widths):
        return reason
    irreps = Irreps([(1, (width // 2, 1)) for width in widths])
    expected = torch.zeros_like(table)
    for row, place in zip(expected, irreps.slices(), strict=True):
        row[place] = table[0, 0]
    if not torch.equal(table, expected):
        return reason
    alpha, mul = float(table[0, 0]), module.multiplicity_out
    paths = [Path(i, i, i, "uvu", False, alpha * math.sqrt(2 * ir.l + 1)) for i, (_, ir) in enumerate(irreps)]
    weights = Irreps([(mul, (0, 1))] * len(irreps))
    return ProductPlan(weights, irreps, Irreps([(mul, ir) for _, ir in irreps]), tuple(paths), "ir_mul")


def _find_plan(module: Any) -> ProductPlan | str:
    irreps = [Irreps(str(getattr(module, name))) for name in ("irreps_in1", "irreps_in2", "irreps_out")]
    slices = [one.slices() for one in irreps]
    table = _dense(module)
    if tuple(table.shape[1:]) != tuple(one.dim for one in irreps):
        return "the shape of its table is not that of its irreps"
    paths = []
    for place, blocks in enumerate(_instructions(module, irreps)):
        degrees = tuple(one[i].ir.l for one, i in zip(irreps, blocks, strict=True))
        norm = math.sqrt(2 * degrees[2] + 1) if module.irrep_normalization == "component" else 1.0
        block = tuple(one[i] for one, i in zip(slices, blocks, strict=True))
        sign = relative_sign(table[place][block] / norm, degrees)
        if sign == 0:
            return f"path {place} of w3j is not +1 or -1 times the coupling coefficients of l = {degrees}"
        table[place][block] = 0
        paths.append(Path(*blocks, "uuu", True, sign * norm))
    if len(paths) != table.shape[0] or table.any():
        return "its table holds more than its paths"
    channels = [Irreps([(module.mul, ir) for _, ir in one]) for one in irreps]
    return ProductPlan(*channels, tuple(paths), "ir_mul")


def _dense(module: Any) -> Tensor:
    """A copy of the table, (paths, in1, in2, out); the diagonal of in1 and in2 may be all that is stored."""
    table = module.w3j.detach().to("cpu", torch.float64, copy=True)
    if module.num_paths == 1:
        table = table.unsqueeze(0)
    return torch.diag_embed(table.mT, dim1=1, dim2=2) if module.w3j_is_ij_diagonal else table


def _instructions(module: Any, irreps: list[Irreps]) -> list[tuple[int, int, int]]:
    if module.instructions is not None:
        return [tuple(one) for one in module.instructions]
    in1, in2, out = irreps
    return [
        (i, j, k)
        for k, (_, ir) in enumerate(out)
        for i, (_, ir1) in enumerate(in1)
        for j, (_, ir2) in enumerate(in2)
        if ir in ir1 * ir2
    ]


def decide_product(module: Any) -> Any:
    """The rule of a live Contracter."""
    base = next(cls for cls in type(module).__mro__ if cls.__name__ == "Contracter")
    if type(module)._contract_conv is not base._contract_conv:
        return Left("its class has a product of its own")
    if list(inspect.signature(base.forward).parameters) != ["self", "x1", "x2", "idxs"]:
        return Left("this version of Allegro hands other arguments to it")
    try:
        _, reason = plan_of_product(module)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        reason = f"it is not a Contracter that is known here: {error}"
    return {module: Contracter} if reason is None else Left(reason)


def decide_weighter(module: Any) -> Any:
    """The rule of a live MakeWeightedChannels."""
    if not module.weight_individual_irreps:
        return {}  # one product of broadcast arrays: nothing to gain
    try:
        _, reason = _kept(module, module._rtoi, _find_harmonics)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        reason = f"it is not a MakeWeightedChannels that is known here: {error}"
    return {module: MakeWeightedChannels} if reason is None else Left(reason)


RULES = {"Contracter": decide_product, "MakeWeightedChannels": decide_weighter}
