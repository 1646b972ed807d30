"""The product of x with itself: each pair of copies once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from clebsch.o3.irreps import Irrep, Irreps, allowed_irreps
from clebsch.o3.tensor_product import TensorProduct

__all__ = ["TensorSquare"]


class _Coupling(NamedTuple):
    """Two blocks of x into one irrep; mode is "uvuv" for two blocks, "uvu<v" for the pairs of different
    copies within a block, "uuu" for each copy with itself.
    """

    i_in1: int
    i_in2: int
    ir: Irrep
    i_out: int | None  # the block of irreps_out that takes it, where these are given
    mode: str
    alpha: float  # stands under the root of the path's coefficient


class TensorSquare(TensorProduct):
    """The product of x with itself, x_u (x) x_v for u <= v, reduced into irreps.

    Signature, attributes, state_dict and numbers are those of ``e3nn.o3.TensorSquare`` 0.6.

    Args:
        irreps_in: irreps of x; neighbours of the same irrep are merged.
        irreps_out: where given, every allowed path into these irreps (merged alike) is taken, with weights:
            modes uvw, u<vw and uuw. Otherwise there are no weights, every product of two copies has its own
            place in the output (modes uvuv, uvu<v and uuu), and irreps_out is derived and sorted.
        filter_ir_out: the irreps to keep in a derived output; all if None.
        irrep_normalization: "component" (default), "norm" or "none". What a copy gives with itself is
            normalised as such: its components are not independent.
        kwargs: further arguments of `TensorProduct`.

    Raises:
        ValueError: irreps_out and filter_ir_out are both given, or an argument that `TensorProduct` refuses.
    """

    def __init__(
        self,
        irreps_in: Any,
        irreps_out: Any = None,
        filter_ir_out: Iterable[Any] | None = None,
        irrep_normalization: str | None = None,
        **kwargs: Any,
    ) -> None:
        if irrep_normalization not in (None, "component", "norm", "none"):
            raise ValueError(
                "TensorSquare: irrep_normalization must be one of 'component', 'norm', 'none', "
                f"got {irrep_normalization!r}"
            )
        if irreps_out is not None and filter_ir_out is not None:
            raise ValueError(
                "TensorSquare: give only one of irreps_out and filter_ir_out, "
                f"got {irreps_out!r} and {filter_ir_out!r}"
            )
        irreps_in = Irreps(irreps_in).simplify()
        if irreps_out is not None:
            irreps_out = Irreps(irreps_out).simplify()
        couplings = _couplings(irreps_in, irreps_out, irrep_normalization or "component")
        if irreps_out is None:
            kept = allowed_irreps("TensorSquare: filter_ir_out", filter_ir_out)
            irreps_out, instructions = _separate(
                irreps_in, [c for c in couplings if kept is None or c.ir in kept]
            )
        else:
            weighted = {"uvuv": "uvw", "uvu<v": "u<vw", "uuu": "uuw"}
            instructions = [(c.i_in1, c.i_in2, c.i_out, weighted[c.mode], True, c.alpha) for c in couplings]
        super().__init__(irreps_in, irreps_in, irreps_out, instructions, irrep_normalization="none", **kwargs)
        self.irreps_in = irreps_in

    def forward(self, x: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """The square of x (..., irreps_in.dim): (..., irreps_out.dim).

        weight: as in `TensorProduct.forward`, whose errors this raises.
        """
        return super().forward(x, x, weight)

    def __repr__(self) -> str:
        head, _, tail = super().__repr__().partition(" -> ")
        return f"{self._name}({self.irreps_in} -> {tail}" if head else tail


def _couplings(irreps: Irreps, irreps_out: Irreps | None, irrep_normalization: str) -> Iterator[_Coupling]:
    """All pairs of blocks i <= j, into every irrep or, where irreps_out is given, into its blocks: in e3nn's
    order, which is that of the weights.
    """
    for i, (mul, ir1) in enumerate(irreps):
        for j, (_, ir2) in enumerate(irreps[i:], start=i):
            products = list(ir1 * ir2)
            if irreps_out is None:
                targets = [(ir, None) for ir in products]
            else:
                targets = [(ir, k) for k, (_, ir) in enumerate(irreps_out) if ir in products]
            for ir, i_out in targets:
                alpha = {"component": ir.dim, "norm": ir1.dim * ir2.dim, "none": 1}[irrep_normalization]
                if i < j:
                    yield _Coupling(i, j, ir, i_out, "uvuv", alpha)
                    continue
                if mul > 1:
                    yield _Coupling(i, i, ir, i_out, "uvu<v", alpha)
                # odd degrees are antisymmetric: they vanish where a copy meets itself
                if ir.l % 2 == 0:
                    own = _own_alpha(ir1, ir, irrep_normalization)
                    yield _Coupling(i, i, ir, i_out, "uuu", own)


def _own_alpha(ir_in: Irrep, ir_out: Irrep, irrep_normalization: str) -> float:
    """alpha of a copy's product with itself.

    Components of x are independent normal numbers for "component", x lies on the unit sphere for "norm":
    the second moment of a quadratic form is then 2 tr(C^2) + tr(C)^2, where for independent factors it is
    |C|^2; only degree 0 has a trace.
    """
    if irrep_normalization == "component":
        return ir_out.dim / (ir_in.dim + 2) if ir_out.l == 0 else ir_out.dim / 2
    if irrep_normalization == "norm":
        return ir_out.dim * ir_in.dim if ir_out.l == 0 else ir_in.dim * (ir_in.dim + 2) / 2
    return 1


def _separate(irreps: Irreps, couplings: list[_Coupling]) -> tuple[Irreps, list[tuple[Any, ...]]]:
    """A block of the output for every coupling, sorted, and the instructions."""

    def multiplicity(c: _Coupling) -> int:
        mul1, mul2 = irreps[c.i_in1].mul, irreps[c.i_in2].mul
        return {"uvuv": mul1 * mul2, "uvu<v": mul1 * (mul1 - 1) // 2, "uuu": mul1}[c.mode]

    irreps_out, place, _ = Irreps([(multiplicity(c), c.ir) for c in couplings]).sort()
    instructions = [(c.i_in1, c.i_in2, place[k], c.mode, False, c.alpha) for k, c in enumerate(couplings)]
    return irreps_out, instructions
