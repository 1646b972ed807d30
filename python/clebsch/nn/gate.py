"""Gate: scalars through functions, higher irreps multiplied by scalars of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clebsch.nn.activation import Activation, Function, check_features, check_functions
from clebsch.o3.irreps import Irreps
from clebsch.o3.tensor_product import ElementwiseTensorProduct
from clebsch.ops.dispatch import suits_kernels
from clebsch.ops.gate import Widths, gate

__all__ = ["Gate", "Pieces", "gated_widths"]


class Gate(torch.nn.Module):
    """act_scalars(scalars) + act_gates(gates) * gated, with + the direct sum and one gate per gated irrep.

    Signature, attributes, state_dict and numbers of ``e3nn.nn.Gate`` 0.6: irreps_in is the sorted and
    simplified sum of the three, irreps_out the scalars followed by the gated irreps.

    Args:
        irreps_scalars, act_scalars: scalars and one function (or None) per block of them.
        irreps_gates, act_gates: as many scalars as there are gated irreps, and a function per block.
        irreps_gated: what is multiplied.

    Raises:
        ValueError: scalars or gates of degree > 0, a number of gates that is not that of the gated irreps,
            and what `Activation` raises.
    """

    def __init__(
        self,
        irreps_scalars: Any,
        act_scalars: Sequence[Function | None],
        irreps_gates: Any,
        act_gates: Sequence[Function | None],
        irreps_gated: Any,
    ) -> None:
        super().__init__()
        check_functions("Gate", "act_scalars", act_scalars)
        check_functions("Gate", "act_gates", act_gates)
        irreps_scalars, irreps_gates, irreps_gated = map(Irreps, (irreps_scalars, irreps_gates, irreps_gated))
        for name, irreps in (("irreps_scalars", irreps_scalars), ("irreps_gates", irreps_gates)):
            if any(ir.l > 0 for mul, ir in irreps if mul > 0):
                raise ValueError(f"Gate: {name} must be scalars, got '{irreps}'")
        if irreps_gates.num_irreps != irreps_gated.num_irreps:
            raise ValueError(
                "Gate: irreps_gates must have one scalar per irrep of irreps_gated, "
                f"{irreps_gated.num_irreps} in all, got {irreps_gates.num_irreps}"
            )
        parts = [irreps.simplify() for irreps in (irreps_scalars, irreps_gates, irreps_gated)]
        self.irreps_scalars, self.irreps_gates, self.irreps_gated = parts
        self.irreps_in, self._pieces = Pieces.of(parts)
        self.act_scalars = Activation(irreps_scalars, act_scalars)
        self.act_gates = Activation(irreps_gates, act_gates)
        self.mul = ElementwiseTensorProduct(irreps_gated, self.act_gates.irreps_out)
        self.irreps_out = self.act_scalars.irreps_out + self.mul.irreps_out
        self._dim_in = self.irreps_in.dim
        self._widths = gated_widths(self.irreps_gated)

    def forward(self, features: Tensor) -> Tensor:
        """features (..., irreps_in.dim) to (..., irreps_out.dim)."""
        check_features("Gate", "features", features, self._dim_in)
        scalars, gates, gated = self._pieces.cut(features)
        scalars = self.act_scalars(scalars)
        if gates.shape[-1] == 0:
            return scalars
        gates = self.act_gates(gates)
        if not suits_kernels("gate", features) or not scalars.dtype == gates.dtype == gated.dtype:
            return self._composed(scalars, gates, gated)
        if features.dim() == 2:
            return gate(scalars, gates, gated, self._widths)
        batch = features.shape[:-1]
        rows = [part.reshape(math.prod(batch), part.shape[-1]) for part in (scalars, gates, gated)]
        return gate(*rows, self._widths).reshape(*batch, scalars.shape[-1] + gated.shape[-1])

    def _composed(self, scalars: Tensor, gates: Tensor, gated: Tensor) -> Tensor:
        """By torch's operations: types and devices that have no kernel, autocast, transforms."""
        muls, widths = self._widths
        lengths = [mul * width for mul, width in zip(muls, widths, strict=True)]
        blocks = zip(gates.split(muls, dim=-1), gated.split(lengths, dim=-1), muls, widths, strict=True)
        products = [
            (x.unflatten(-1, (mul, width)) * a.unsqueeze(-1)).flatten(-2) for a, x, mul, width in blocks
        ]
        return torch.cat((scalars, *products), dim=-1)

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps_in} -> {self.irreps_out})"


def gated_widths(irreps_gated: Irreps) -> Widths:
    """Multiplicity and number of components of every block that has any."""
    blocks = [block for block in irreps_gated if block.mul > 0]
    return tuple(block.mul for block in blocks), tuple(block.ir.dim for block in blocks)


class Pieces(NamedTuple):
    """How a row of sorted irreps is cut into the parts that they were sorted from.

    Blocks that are neighbours there and follow each other in one part are one piece.

    lengths: of the pieces of a row. places: for every part, its pieces.
    """

    lengths: list[int]
    places: list[list[int]]

    @classmethod
    def of(cls, parts: Sequence[Irreps]) -> tuple[Irreps, Pieces]:
        """The sorted sum of `parts`, simplified, and how to cut it."""
        irreps, _, original = sum(parts, Irreps("")).sort()
        owner = [i for i, part in enumerate(parts) for _ in part]  # of each block before sorting
        lengths: list[int] = []
        piece_of = [0] * len(owner)
        before = None
        for block, own in zip(irreps, original, strict=True):
            if before is not None and own == before + 1 and owner[own] == owner[before]:
                lengths[-1] += block.dim
            else:
                lengths.append(block.dim)
            piece_of[own] = len(lengths) - 1
            before = own
        places: list[list[int]] = [[] for _ in parts]
        for part, piece in zip(owner, piece_of, strict=True):
            if piece not in places[part]:
                places[part].append(piece)
        return irreps.simplify(), cls(lengths, places)

    def cut(self, features: Tensor) -> tuple[Tensor, ...]:
        """features (..., sum of lengths) to one tensor for every part."""
        # One split: its gradient is written in one pass, where every narrowing would fill a whole row.
        pieces = features.split(self.lengths, dim=-1)
        return tuple(_join(features, [pieces[i] for i in places]) for places in self.places)


def _join(features: Tensor, pieces: list[Tensor]) -> Tensor:
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat(pieces, dim=-1) if pieces else features.narrow(-1, 0, 0)
