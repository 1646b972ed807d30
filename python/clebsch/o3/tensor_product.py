"""Tensor products as layers: e3nn 0.6's signatures, parameter names and numbers on compiled kernels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.o3.coupling_tables import (
    CouplingTables,
    Triple,
    flip,
    is_constant,
    relative_sign,
    stored_triple,
    table_name,
)
from clebsch.o3.irreps import Irreps, allowed_irreps
from clebsch.o3.tensor_product_right import check_right, right_matrices
from clebsch.o3.unwritten import COMPILES, unobserved
from clebsch.o3.wigner import wigner_3j
from clebsch.ops.dispatch import require_dense
from clebsch.ops.one_hot import choose_or_multiply
from clebsch.ops.tensor_product import PlanSizes, multiply_rows, plan_sizes

__all__ = [
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Instruction",
    "TensorProduct",
]


# Where e3nn keeps the code of forward and of right.
_CODES = "_compiled_main_left_right", "_compiled_main_right"


class Instruction(NamedTuple):
    """One path as e3nn lists it; path_weight is the normalised coefficient, path_shape the shape of its
    weights.
    """

    i_in1: int
    i_in2: int
    i_out: int
    connection_mode: str
    has_weight: bool
    path_weight: float
    path_shape: tuple[int, ...]


class TensorProduct(torch.nn.Module):
    """A sum of paths, each of them a Clebsch-Gordan product of a block of x with a block of y.

    Signature, attributes, state_dict and numbers are those of ``e3nn.o3.TensorProduct`` 0.6.

    Args:
        irreps_in1, irreps_in2, irreps_out: irreps of x, y and the output, in any form that `Irreps` reads.
        instructions: tuples (i_in1, i_in2, i_out, connection_mode, has_weight[, path_weight]); the modes are
            listed in `clebsch.algebra.plan`, the user's path_weight stands under the square root of the
            coefficient.
        in1_var, in2_var, out_var: variance of each block; 1 if None.
        irrep_normalization: "component" (default), "norm" or "none".
        path_normalization: "element" (default), "path" or "none".
        internal_weights: whether the weights are a parameter of this module. Defaults to `shared_weights`
            where any path is weighted.
        shared_weights: whether one weight serves all rows (default), or each row has its own.
        layout: "mul_ir" is e3nn's order of the components within a block, "ir_mul" the transposed one.
        compile_left_right, compile_right, normalization, _specialized_code, _optimize_einsums: accepted for
            e3nn's sake. Nothing is generated here, only the names in the state_dict depend on them;
            `normalization` is the old name of irrep_normalization.

    Raises:
        ValueError, IndexError: naming the instruction or argument that does not fit. Degrees above 100 are
            refused here, multiplicities above 1048576 where the product is called.

    e3nn's state_dict loads, its coupling coefficients included: these are compared with ours, and where a
    checkpoint carries the opposite sign of a triple (e3nn 0.4 does), the sign goes into the coefficients of
    its paths. Ours has the same names, and loads into e3nn's module. docs/checkpoints.md tells the rest.
    """

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any,
        instructions: Iterable[Sequence[Any]],
        in1_var: Iterable[float] | None = None,
        in2_var: Iterable[float] | None = None,
        out_var: Iterable[float] | None = None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        compile_left_right: bool = True,
        compile_right: bool = False,
        normalization: str | None = None,
        _specialized_code: bool | None = None,
        _optimize_einsums: bool | None = None,
        *,
        layout: str = "mul_ir",
    ) -> None:
        super().__init__()
        self._did_compile_right = compile_right  # what e3nn's is called: `explain` asks
        if normalization is not None:
            warnings.warn(
                "`normalization` is deprecated: use irrep_normalization", DeprecationWarning, stacklevel=2
            )
            irrep_normalization = normalization
        self.irreps_in1, self.irreps_in2, self.irreps_out = map(Irreps, (irreps_in1, irreps_in2, irreps_out))
        self._set_plan(
            ProductPlan.from_instructions(
                self.irreps_in1,
                self.irreps_in2,
                self.irreps_out,
                instructions,
                in1_var,
                in2_var,
                out_var,
                irrep_normalization,
                path_normalization,
                layout,
            )
        )
        self.instructions = [
            Instruction(
                path.i_in1, path.i_in2, path.i_out, path.mode, path.has_weight, path.coefficient, shape
            )
            for path, shape in zip(self.plan.paths, self.plan.path_shapes, strict=True)
        ]
        self.weight_numel = self.plan.weight_numel
        self._absorbed_signs: frozenset[Triple] = frozenset()
        self._set_weights(internal_weights, shared_weights)
        self.register_buffer("output_mask", self._make_output_mask())
        specialized = _specialized_code is not False
        for name, compiled in (("left_right", compile_left_right), ("right", compile_right)):
            tables = CouplingTables(self.plan, name == "right", specialized) if compiled else None
            if tables is not None and tables._buffers:
                tables.look()
                self.add_module(f"_compiled_main_{name}", tables)

    @property
    def plan(self) -> ProductPlan:
        """What is computed, with the signs of the tables."""
        self._follow_tables()
        return self._plan

    @property
    def _sizes(self) -> PlanSizes:
        self._follow_tables()
        return self._plan_sizes

    def _set_plan(self, plan: ProductPlan) -> None:
        self._plan, self._plan_sizes = plan, plan_sizes(plan)

    def _follow_tables(self) -> None:
        """Take the signs of tables that something wrote to."""
        if torch.compiler.is_compiling():
            if COMPILES:
                _take_signs(self)
            return
        for name in _CODES:
            tables = self._modules.get(name)
            if tables is not None and not tables.are_unwritten:
                return _take_signs(self)

    def _set_weights(self, internal_weights: bool | None, shared_weights: bool | None) -> None:
        if shared_weights is None:
            shared_weights = True
        if internal_weights is None:
            internal_weights = shared_weights and any(path.has_weight for path in self.plan.paths)
        if internal_weights and not shared_weights:
            raise ValueError(
                f"{self._name}: internal_weights=True needs shared_weights=True: weights that the module "
                "holds are the same for every row"
            )
        self.internal_weights, self.shared_weights = internal_weights, shared_weights
        if internal_weights and self.weight_numel > 0:
            self.weight = torch.nn.Parameter(torch.randn(self.weight_numel))
        else:
            self.register_buffer("weight", torch.empty(0))

    def _make_output_mask(self) -> Tensor:
        mask = numpy.zeros(self.irreps_out.dim)  # torch takes half a millisecond to get ready for its first
        slices = self.irreps_out.slices()
        for ins in self.instructions:
            if ins.path_weight != 0 and 0 not in ins.path_shape:
                mask[slices[ins.i_out]] = 1.0
        return torch.tensor(mask, dtype=torch.get_default_dtype())

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """The product of x (..., irreps_in1.dim) and y (..., irreps_in2.dim): (..., irreps_out.dim).

        weight: (weight_numel,) where weights are shared, else (..., weight_numel), or a list with one tensor
        per weighted path, of its path_shape, or flat, after any leading dimensions (all 1 where weights are
        shared); must be given if the module holds none. Leading dimensions broadcast. ValueError for other
        shapes and devices, TypeError for another dtype than that of x or no dense tensor.
        """
        weight = self._get_weight(weight, x)
        if (
            isinstance(x, Tensor)
            and isinstance(y, Tensor)
            and not (x.is_nested or y.is_nested)
            and x.layout is y.layout is torch.strided
            and x.dim() == 2
            and y.dim() == 2
            and x.shape[0] == y.shape[0]
            and (weight.dim() == 1 or (weight.dim() == 2 and weight.shape[0] == x.shape[0]))
        ):
            sizes = self._sizes
            multiply = choose_or_multiply if sizes.elements else multiply_rows
            return multiply(x, y, weight, sizes)
        return self._broadcast(x, y, weight, self._sizes)

    def right(self, y: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """The product with y (..., irreps_in2.dim) as matrices: (..., irreps_in1.dim, irreps_out.dim).

        ``torch.einsum("...ik,...i->...k", module.right(y), x)`` is ``module(x, y)``. weight: as in `forward`,
        whose errors this raises. Always available, whatever compile_right says.
        """
        weight = self._get_weight(weight, y)
        sizes = self._sizes
        check_right(self._name, y, weight, sizes.in2)
        return right_matrices(sizes.plan, y, weight)

    def _broadcast(self, x: Tensor, y: Tensor, weight: Tensor, sizes: PlanSizes) -> Tensor:
        operands = {"x": (x, sizes.in1), "y": (y, sizes.in2), "weight": (weight, sizes.weight)}
        for name, (value, width) in operands.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{self._name}: {name} must be a tensor, got {type(value).__name__}")
            require_dense(self._name, name, value)
            if value.dim() == 0 or value.shape[-1] != width:
                raise ValueError(
                    f"{self._name}: {name} must have shape (..., {width}), got {tuple(value.shape)}"
                )
        leading = [tuple(value.shape[:-1]) for value, _ in operands.values()]
        try:
            batch = torch.broadcast_shapes(*leading)
        except RuntimeError:
            raise ValueError(
                f"{self._name}: the leading dimensions of x, y and weight must broadcast, "
                f"got {', '.join(map(str, leading))}"
            ) from None
        rows = math.prod(batch)
        x, y = (value.expand(*batch, value.shape[-1]).reshape(rows, value.shape[-1]) for value in (x, y))
        if math.prod(leading[2]) == 1:
            weight = weight.reshape(sizes.weight)
        else:
            weight = weight.expand(*batch, sizes.weight).reshape(rows, sizes.weight)
        return multiply_rows(x, y, weight, sizes).reshape(*batch, sizes.out)

    def _get_weight(self, weight: Tensor | list[Tensor] | None, x: Tensor | None = None) -> Tensor:
        """The flat weight to use: the given one, checked, or the module's own."""
        if weight is None:
            weight = self.weight
            if self.weight_numel == 0:
                # No path is weighted: the empty weight may follow the input's dtype and device.
                follows = isinstance(x, Tensor) and x.dtype != weight.dtype
                return x.new_empty(0) if follows else weight
            if not self.internal_weights:
                raise ValueError(
                    f"{self._name}: weight must be given: the module has {self.weight_numel} weights and "
                    "internal_weights=False"
                )
            return weight
        if isinstance(weight, (list, tuple)):
            weight = self._flatten(weight)
        if not isinstance(weight, Tensor):
            raise TypeError(f"{self._name}: weight must be a tensor, got {type(weight).__name__}")
        require_dense(self._name, "weight", weight)
        if self.shared_weights:
            if weight.dim() != 1 or weight.shape[0] != self.weight_numel:
                raise ValueError(
                    f"{self._name}: weight must have shape ({self.weight_numel},) where weights are "
                    f"shared, got {tuple(weight.shape)}"
                )
        elif weight.dim() < 2 or weight.shape[-1] != self.weight_numel:
            raise ValueError(
                f"{self._name}: weight must have shape (..., {self.weight_numel}) with at least one "
                f"leading dimension, got {tuple(weight.shape)}"
            )
        return weight

    def _flatten(self, weights: Sequence[Tensor]) -> Tensor:
        """One flat weight from a list of weights per path."""
        shapes = [shape for shape in self.plan.weight_shapes if shape is not None]
        if len(weights) != len(shapes):
            raise ValueError(
                f"{self._name}: weight must be a list of {len(shapes)} tensors, one per weighted path, "
                f"got {len(weights)}"
            )
        flat = []
        for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
            if not isinstance(weight, Tensor):
                raise TypeError(f"{self._name}: weight[{i}] must be a tensor, got {type(weight).__name__}")
            leading, numel = weight.shape[: max(weight.dim() - len(shape), 0)], math.prod(shape)
            if tuple(weight.shape[len(leading) :]) != shape:
                leading = weight.shape[:-1]
            if weight.shape not in ((*leading, *shape), (*leading, numel)) or (
                self.shared_weights and math.prod(leading) != 1
            ):
                dots = "" if self.shared_weights else "..., "
                raise ValueError(
                    f"{self._name}: weight[{i}] must have shape ({dots}{', '.join(map(str, shape))}), "
                    f"got {tuple(weight.shape)}"
                )
            leading = () if self.shared_weights else leading or (1,)
            flat.append(weight.reshape(*leading, numel))
        return torch.cat(flat, dim=-1) if flat else self.weight

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """A view of the weights of one instruction: (..., *path_shape).

        ValueError if the instruction has no weights. Unlike e3nn 0.6, the offset is right where an unweighted
        instruction comes before.
        """
        located = self.plan.weight_slices[instruction]
        if located is None:
            raise ValueError(f"{self._name}: instruction {instruction} has no weights")
        offset, shape = located
        weight = self._get_weight(weight)
        return weight.narrow(-1, offset, math.prod(shape)).view(*weight.shape[:-1], *shape)

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False) -> Iterator[Any]:
        """Views of the weights of every weighted instruction, or (index, instruction, view) if asked for."""
        for i, ins in enumerate(self.instructions):
            if ins.has_weight:
                view = self.weight_view_for_instruction(i, weight)
                yield (i, ins, view) if yield_instruction else view

    def visualize(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the paths, as e3nn's ``TensorProduct.visualize`` does: its arguments and result. Needs e3nn
        (AttributeError where it is not installed) and matplotlib.
        """
        from clebsch.o3 import attribute_of_e3nn

        return attribute_of_e3nn("o3", "TensorProduct").visualize(self, *args, **kwargs)

    def __repr__(self) -> str:
        num_paths = sum(math.prod(ins.path_shape) for ins in self.instructions)
        return (
            f"{type(self).__name__}({self.irreps_in1.simplify()} x {self.irreps_in2.simplify()} "
            f"-> {self.irreps_out.simplify()} | {num_paths} paths | {self.weight_numel} weights)"
        )

    def _absorb(self, triples: frozenset[Triple]) -> None:
        """Use the opposite sign of exactly these couplings, whatever was absorbed before."""
        self._flip_to(triples)
        for tables in self._coupling_tables():
            tables.set_signs(triples)
            tables.look()

    def _flip_to(self, triples: frozenset[Triple]) -> None:
        self._set_plan(flip(self._plan, triples ^ self._absorbed_signs))
        self._absorbed_signs = triples

    def _coupling_tables(self) -> list[CouplingTables]:
        held = (self._modules.get(name) for name in _CODES)
        return [tables for tables in held if tables is not None]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # The weights mean nothing without the signs: those of couplings that have no table here travel too.
        tables = self._coupling_tables()
        for triple in sorted(self._absorbed_signs):
            if not any(triple in held for held in tables):
                key = f"{prefix}_compiled_main_left_right.{table_name(triple)}"
                destination[key] = -wigner_3j(*triple, dtype=torch.float64)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ours = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        signs: dict[Triple, int] = {}
        errors = len(error_msgs)
        for name, value in ours.items():
            local = name[len(prefix) :]
            if not is_constant(local):
                continue
            # The caller's dictionary is untouched: torch hands every module a copy of its part.
            del state_dict[name]
            triple = stored_triple(local)
            if triple is None:
                continue
            sign = relative_sign(value, triple)
            if sign == 0:
                error_msgs.append(
                    f"{name} is not +1 or -1 times the coupling coefficients of l = {triple}: "
                    "the checkpoint was written under another convention"
                )
            elif signs.setdefault(triple, sign) != sign:
                error_msgs.append(
                    f"{name} has the opposite sign of the other table of l = {triple}: "
                    "no product computes with both"
                )
        if len(error_msgs) > errors:
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # A whole file says all signs, by what it leaves out as well; a part of one (parameters alone, buffers
        # alone) those that it has.
        if ours and len(error_msgs) == errors:
            present = frozenset() if f"{prefix}output_mask" in ours else self._absorbed_signs
            given = {triple for triple, sign in signs.items() if sign < 0}
            self._absorb((present - signs.keys()) | given)


def _take_signs(product: TensorProduct) -> None:
    """Those of its tables, as somebody left them. RuntimeError that names one with which it cannot compute.

    Nothing where tensors without numbers stand in their place while something traces: the last signs hold.
    """
    held = product._coupling_tables()
    if all(tables.are_unwritten for tables in held) or not all(tables.have_numbers for tables in held):
        return
    with unobserved():
        if not all(tables.have_signs(product._absorbed_signs) for tables in held):
            signs = _signs_of(product)
            flipped = frozenset(triple for triple, sign in signs.items() if sign < 0)
            product._flip_to((product._absorbed_signs - signs.keys()) | flipped)
    for tables in held:
        tables.look()


def _signs_of(product: TensorProduct) -> dict[Triple, int]:
    """Of all its tables."""
    signs: dict[Triple, int] = {}
    for code in _CODES:
        tables = product._modules.get(code)
        for name, triple, sign in tables.signs() if tables is not None else ():
            if sign == 0 or signs.setdefault(triple, sign) != sign:
                raise RuntimeError(
                    f"{product._name}: something wrote to {code}.{name}: it is not +1 or -1 times the "
                    f"coupling coefficients of l = {triple}, or not with the sign of its other table"
                )
    return signs


# Torch's compiler calls it while it traces.
_take_signs._dynamo_marked_constant = True


class FullyConnectedTensorProduct(TensorProduct):
    """All paths that the selection rules allow, in mode uvw with weights; see `TensorProduct`."""

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        **kwargs: Any,
    ) -> None:
        irreps_in1, irreps_in2, irreps_out = map(Irreps, (irreps_in1, irreps_in2, irreps_out))
        instructions = [
            (i_in1, i_in2, i_out, "uvw", True)
            for i_in1, (_, ir1) in enumerate(irreps_in1)
            for i_in2, (_, ir2) in enumerate(irreps_in2)
            for i_out, (_, ir3) in enumerate(irreps_out)
            if ir3 in ir1 * ir2
        ]
        kwargs |= {"irrep_normalization": irrep_normalization, "path_normalization": path_normalization}
        super().__init__(irreps_in1, irreps_in2, irreps_out, instructions, **kwargs)


class FullTensorProduct(TensorProduct):
    """All products of a copy of x with a copy of y, reduced into irreps, without weights: mode uvuv.

    filter_ir_out: the irreps to keep in the output; all if None. irreps_out is derived, and sorted.
    """

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        filter_ir_out: Iterable[Any] | None = None,
        irrep_normalization: str | None = None,
        **kwargs: Any,
    ) -> None:
        irreps_in1, irreps_in2 = Irreps(irreps_in1).simplify(), Irreps(irreps_in2).simplify()
        kept = allowed_irreps("FullTensorProduct: filter_ir_out", filter_ir_out)
        paths = [
            (i_in1, i_in2, (mul1 * mul2, ir))
            for i_in1, (mul1, ir1) in enumerate(irreps_in1)
            for i_in2, (mul2, ir2) in enumerate(irreps_in2)
            for ir in ir1 * ir2
            if kept is None or ir in kept
        ]
        irreps_out, place, _ = Irreps([block for _, _, block in paths]).sort()
        instructions = [(i, j, place[k], "uvuv", False) for k, (i, j, _) in enumerate(paths)]
        super().__init__(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            irrep_normalization=irrep_normalization,
            **kwargs,
        )


class ElementwiseTensorProduct(TensorProduct):
    """The product of each copy of x with the copy of y at the same place, without weights: mode uuu.

    filter_ir_out: the irreps to keep in the output; all if None. irreps_out is derived. ValueError if x and y
    do not have the same number of copies.
    """

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        filter_ir_out: Iterable[Any] | None = None,
        irrep_normalization: str | None = None,
        **kwargs: Any,
    ) -> None:
        irreps_in1, irreps_in2 = _cut_alike(Irreps(irreps_in1).simplify(), Irreps(irreps_in2).simplify())
        kept = allowed_irreps("ElementwiseTensorProduct: filter_ir_out", filter_ir_out)
        paths = [
            (i, (mul, ir))
            for i, ((mul, ir1), (_, ir2)) in enumerate(zip(irreps_in1, irreps_in2, strict=True))
            for ir in ir1 * ir2
            if kept is None or ir in kept
        ]
        instructions = [(i, i, k, "uuu", False) for k, (i, _) in enumerate(paths)]
        irreps_out = Irreps([block for _, block in paths])
        super().__init__(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            irrep_normalization=irrep_normalization,
            **kwargs,
        )


def _cut_alike(irreps_in1: Irreps, irreps_in2: Irreps) -> tuple[Irreps, Irreps]:
    """The same irreps, with blocks divided so that both have the same multiplicities."""
    if irreps_in1.num_irreps != irreps_in2.num_irreps:
        raise ValueError(
            "ElementwiseTensorProduct: irreps_in1 and irreps_in2 must have the same number of irreps, "
            f"got {irreps_in1.num_irreps} and {irreps_in2.num_irreps}"
        )
    cuts = sorted(
        {sum(m for m, _ in irreps[:i]) for irreps in (irreps_in1, irreps_in2) for i in range(len(irreps) + 1)}
    )
    pieces = [slice(start, stop) for start, stop in pairwise(cuts)]
    return tuple(
        Irreps([term for piece in pieces for term in irreps.slice_by_mul[piece]])
        for irreps in (irreps_in1, irreps_in2)
    )
