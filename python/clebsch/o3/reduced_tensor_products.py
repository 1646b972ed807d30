"""Products of several inputs, reduced into irreps under a symmetry of their indices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.o3.index_symmetry import IndexSymmetry
from clebsch.o3.irreps import Irrep, Irreps, allowed_irreps
from clebsch.o3.reduced_basis import BasisIrrep, CoupledProduct, ReducedBasis
from clebsch.o3.reduced_constants import make_constants
from clebsch.o3.unwritten import COMPILES, Seen, have_numbers, unobserved
from clebsch.ops.dispatch import require_dense
from clebsch.ops.tensor_product import PlanSizes, multiply_rows, plan_sizes

__all__ = ["ReducedTensorProducts"]


class ReducedTensorProducts(torch.nn.Module):
    """The product of one input per index, reduced into the irreps that a symmetry of the indices allows.

    Signature, attributes and numbers are those of ``e3nn.o3.ReducedTensorProducts`` 0.6, the order and signs
    of the output among them; see `o3.reduced_basis`. Where a symmetry or filter leaves nothing, the output is
    empty; e3nn fails.

    Args:
        formula: permutations of the indices, joined by ``=``, with a sign where the tensor changes it:
            "ij=-ji", "ijk=jik=ikj"; "ij" has no symmetry.
        filter_ir_out: the irreps to keep in the output; all if None.
        filter_ir_mid: the irreps that intermediate products, and the output, may have; all if None.
        eps: below it a number counts as zero where the basis is made.
        irreps: for each index its irreps, ``i="1o"``. Indices that are permuted have the same, so one of
            them is enough.

    Attributes:
        irreps_in: list of the irreps of each index; irreps_out: of the output.
        change_of_basis: (irreps_out.dim, irreps_in[0].dim, irreps_in[1].dim, ...), float64 rounded to the
            default dtype: the output is its contraction with all inputs.

    Raises:
        ValueError: a formula that is none, irreps that are missing or differ between permuted indices.
        TypeError: a keyword that is no index of the formula.

    e3nn's state_dict loads where its change_of_basis is ours up to a sign of each irrep, which is absorbed:
    e3nn 0.4 has other signs.
    """

    _seen: Seen | None = None

    def __init__(
        self,
        formula: str,
        filter_ir_out: Iterable[Any] | None = None,
        filter_ir_mid: Iterable[Any] | None = None,
        eps: float = 1e-9,
        **irreps: Any,
    ) -> None:
        super().__init__()
        try:
            symmetry = IndexSymmetry.parse(formula)
        except (TypeError, ValueError) as error:
            raise type(error)(f"ReducedTensorProducts: {error}") from None
        self.indices = symmetry.indices
        self.irreps_in = _irreps_of_indices(symmetry, irreps)
        self._widths = tuple(irreps.dim for irreps in self.irreps_in)  # torch.compile does not read irreps
        basis = ReducedBasis(
            symmetry,
            self.irreps_in,
            allowed_irreps("ReducedTensorProducts: filter_ir_mid", filter_ir_mid),
            allowed_irreps("ReducedTensorProducts: filter_ir_out", filter_ir_out),
            eps,
        )
        self.irreps_out = Irreps([(1, vector.ir) for vector in basis.vectors]).simplify()
        # Ours, with which checkpoints are compared: the buffer may hold other signs, or nothing yet.
        self._own_plans, self._own_basis = _plans(self.irreps_in, basis.vectors), basis.tensor()
        self._set_plans(self._own_plans)
        self.register_buffer(
            "change_of_basis", torch.tensor(self._own_basis, dtype=torch.get_default_dtype())
        )
        self._seen = Seen.now((self.change_of_basis,))
        self.add_module("main", make_constants(basis.vectors, basis.copies))

    @property
    def plans(self) -> tuple[ProductPlan, ...]:
        """One product after another, with the signs of change_of_basis."""
        self._follow_basis()
        return self._plans

    @property
    def _sizes(self) -> tuple[PlanSizes, ...]:
        self._follow_basis()
        return self._plan_sizes

    def _set_plans(self, plans: Sequence[ProductPlan]) -> None:
        self._plans = tuple(plans)
        self._plan_sizes = tuple(map(plan_sizes, self._plans))

    def _follow_basis(self) -> None:
        """Take the signs of a basis that something wrote to."""
        if torch.compiler.is_compiling():
            if COMPILES:
                _take_signs(self)
        elif not self._has_signs_of_basis():
            _take_signs(self)

    def _has_signs_of_basis(self) -> bool:
        return self._seen is not None and self._seen.still_holds((self._buffers["change_of_basis"],))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}

    def forward(self, *xs: Tensor) -> Tensor:
        """The product of one x (..., irreps_in[k].dim) per index: (..., irreps_out.dim).

        Leading dimensions broadcast. ValueError for other shapes, TypeError for another number of inputs, no
        tensor, or dtypes that are not alike, float32 or float64.
        """
        rows, batch = self._rows(xs)
        out, *others = rows
        if not others:  # one index: its product with the number 1
            others = [out.new_ones((out.shape[0], 1))]
        no_weight = out.new_empty(0)
        for x, sizes in zip(others, self._sizes, strict=True):
            out = multiply_rows(out, x, no_weight, sizes)
        return out if len(batch) == 1 else out.reshape(*batch, out.shape[-1])

    def _rows(self, xs: Sequence[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
        """Every input as (rows, dim), and the leading dimensions that the rows stand for."""
        if len(xs) != len(self.indices):
            raise TypeError(
                f"ReducedTensorProducts: expected {len(self.indices)} inputs, one for each of the indices "
                f"{self.indices!r}, got {len(xs)}"
            )
        for index, x, width in zip(self.indices, xs, self._widths, strict=True):
            label = f"ReducedTensorProducts: the input of index {index!r} must"
            if not isinstance(x, Tensor):
                raise TypeError(f"{label} be a tensor, got {type(x).__name__}")
            require_dense("ReducedTensorProducts", f"the input of index {index!r}", x)
            if x.dim() == 0 or x.shape[-1] != width:
                raise ValueError(f"{label} have shape (..., {width}), got {tuple(x.shape)}")
            if x.dtype != xs[0].dtype or x.dtype not in (torch.float32, torch.float64):
                wanted, got = (str(t.dtype).removeprefix("torch.") for t in (xs[0], x))
                needed = "be float32 or float64" if x is xs[0] else f"have the dtype of the first, {wanted}"
                raise TypeError(f"{label} {needed}, got {got}")
            if x.device != xs[0].device:
                raise ValueError(f"{label} be on the device of the first, {xs[0].device}, got {x.device}")
        leading = [tuple(x.shape[:-1]) for x in xs]
        try:
            batch = tuple(torch.broadcast_shapes(*leading))
        except RuntimeError:
            raise ValueError(
                "ReducedTensorProducts: the leading dimensions of the inputs must broadcast, "
                f"got {', '.join(map(str, leading))}"
            ) from None
        rows = math.prod(batch)
        return [x.expand(*batch, x.shape[-1]).reshape(rows, x.shape[-1]) for x in xs], batch

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(\n"
            f"    in: {' times '.join(map(repr, self.irreps_in))}\n"
            f"    out: {self.irreps_out}\n"
            ")"
        )

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
        key, signs = f"{prefix}change_of_basis", None
        stored = state_dict.get(key)
        if (
            isinstance(stored, Tensor)
            and stored.is_floating_point()
            and stored.shape == self.change_of_basis.shape
        ):
            signs = self._signs_of(stored)
            if signs is None:
                error_msgs.append(
                    f"{key} is not that of {self.indices!r} up to a sign of each irrep: the checkpoint was "
                    "written for another formula, filter or convention"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if signs is not None:
            self._use_signs(signs)

    def _use_signs(self, signs: Sequence[float]) -> None:
        """Those of the basis as it is, for each irrep of the output."""
        *first, last = self._own_plans
        paths = (replace(path, coefficient=signs[path.i_out] * path.coefficient) for path in last.paths)
        self._set_plans([*first, replace(last, paths=tuple(paths))])
        self._seen = Seen.now((self.change_of_basis,))

    def _signs_of(self, stored: Tensor) -> list[float] | None:
        """For each irrep of the output the sign of `stored` relative to our basis; None if they differ in
        more.
        """
        ours = self._own_basis.reshape(len(self._own_basis), math.prod(self._own_basis.shape[1:]))
        theirs = stored.detach().to("cpu", torch.float64).flatten(1).numpy()
        dims = [ir.dim for mul, ir in self.irreps_out for _ in range(mul)]
        starts = numpy.cumsum([0, *dims])[:-1]
        overlaps = numpy.add.reduceat((ours * theirs).sum(1), starts) if dims else numpy.zeros(0)
        signs = numpy.where(overlaps < 0, -1.0, 1.0)
        # a few roundings of either type, and not less than the 1e-7 of e3nn's older coupling coefficients
        eps = torch.finfo(stored.dtype).eps
        error = abs(numpy.repeat(signs, dims)[:, None] * theirs - ours).max(initial=0.0)
        return signs.tolist() if error <= max(4 * eps, 1e-6) else None


def _take_signs(module: ReducedTensorProducts) -> None:
    """Those of its basis, as somebody left it. RuntimeError if it is another one.

    Nothing where a tensor without numbers stands in its place while something traces: the last signs hold.
    """
    if module._has_signs_of_basis() or not have_numbers((module.change_of_basis,)):
        return
    with unobserved():
        signs = module._signs_of(module.change_of_basis)
    if signs is None:
        raise RuntimeError(
            "ReducedTensorProducts: something wrote to change_of_basis: it is not that of "
            f"{module.indices!r} up to a sign of each irrep"
        )
    module._use_signs(signs)


# Torch's compiler calls it while it traces.
_take_signs._dynamo_marked_constant = True


def _irreps_of_indices(symmetry: IndexSymmetry, given: dict[str, Any]) -> list[Irreps]:
    """The irreps of every index, from those that are given."""
    for name in given:
        if name not in symmetry.indices or len(name) != 1:
            raise TypeError(
                f"ReducedTensorProducts: got an unexpected keyword argument {name!r}: the indices of the "
                f"formula are {symmetry.indices!r}"
            )
    read = {name: Irreps(irreps) for name, irreps in given.items()}
    found = []
    for i, index in enumerate(symmetry.indices):
        alike = [symmetry.indices[j] for j in sorted(symmetry.related(i))]
        known = [(name, read[name]) for name in alike if name in read]
        if not known:
            raise ValueError(f"ReducedTensorProducts: the irreps of index {index!r} must be given")
        (first, irreps), *others = known
        for name, other in others:
            if other != irreps:
                raise ValueError(
                    f"ReducedTensorProducts: the irreps of {name!r} must be those of {first!r}, with which "
                    f"the formula permutes it, '{irreps}', got '{other}'"
                )
        found.append(irreps)
    return found


def _plans(irreps_in: Sequence[Irreps], vectors: Sequence[BasisIrrep]) -> list[ProductPlan]:
    """One product per input after the first: all coupled products that are needed, each computed once; the
    last one adds them up.
    """
    copies = [[(1, ir) for mul, ir in irreps for _ in range(mul)] for irreps in irreps_in]
    if len(copies) == 1:
        copies.append([(1, Irrep(0, 1))])
        vectors = [
            BasisIrrep(ir, tuple((c, product.extended(0, ir)) for c, product in terms))
            for ir, terms in vectors
        ]
    plans = []
    # the blocks of the left factor: coupled products of the first k inputs
    reached = {CoupledProduct((c,), (ir,)): c for c, (_, ir) in enumerate(copies[0])}
    in1 = Irreps(copies[0])
    for k in range(1, len(copies)):
        in2, last = Irreps(copies[k]), k == len(copies) - 1
        place: dict[CoupledProduct, int] = {}
        paths, blocks = [], []
        for row, (_, terms) in enumerate(vectors):
            for coefficient, product in terms:
                left, step = product.first(k), product.first(k + 1)
                if last:
                    i_out, scale = row, coefficient
                elif step in place:
                    continue
                else:
                    place[step] = i_out = len(blocks)
                    blocks.append((1, step.irreps[-1]))
                    scale = 1.0
                scale *= step.irreps[-1].dim ** 0.5
                paths.append(Path(reached[left], step.copies[-1], i_out, "uuu", False, scale))
        irreps_out = Irreps([(1, ir) for ir, _ in vectors] if last else blocks)
        plans.append(ProductPlan(in1, in2, irreps_out, tuple(paths)))
        reached, in1 = place, irreps_out
    return plans
