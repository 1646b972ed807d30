"""Extract and ExtractIr: some blocks of a row as tensors of their own."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from clebsch.o3.irreps import Irrep, Irreps
from clebsch.ops.dispatch import require_dense

__all__ = ["Extract", "ExtractIr"]


class Extract(torch.nn.Module):
    """One tensor per entry of irreps_outs, each of the blocks of x that its instruction lists.

    Signature, attributes and numbers of ``e3nn.nn.Extract`` 0.6.

    Args:
        irreps_in: of x, in any form that `Irreps` reads.
        irreps_outs: irreps of each output.
        instructions: for each output, which block of irreps_in each of its blocks is. A block may be taken
            any number of times, and under another label of the same dimension.
        squeeze_out: whether a single output is returned as a tensor instead of a tuple of one.

    Raises:
        ValueError: numbers of instructions or blocks that differ, or a block of another dimension.
        IndexError: a block that irreps_in does not have.
    """

    def __init__(
        self,
        irreps_in: Any,
        irreps_outs: Iterable[Any],
        instructions: Sequence[Sequence[int]],
        squeeze_out: bool = False,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_outs = tuple(map(Irreps, irreps_outs))
        if not isinstance(instructions, Sequence):
            raise TypeError(
                f"{self._name}: instructions must be a list of one tuple per output, got {instructions!r}"
            )
        self.instructions = instructions
        if len(self.irreps_outs) != len(instructions):
            raise ValueError(
                f"{self._name}: instructions must have one entry per output, {len(self.irreps_outs)} in all, "
                f"got {len(instructions)}"
            )
        self._spans = [
            self._contiguous_spans(number, irreps, blocks)
            for number, (irreps, blocks) in enumerate(zip(self.irreps_outs, instructions, strict=True))
        ]
        self._is_squeezed = squeeze_out and len(self.irreps_outs) == 1
        self._dim_in = self.irreps_in.dim

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _contiguous_spans(
        self, number: int, irreps_out: Irreps, blocks: Sequence[int]
    ) -> list[tuple[int, int]]:
        """(start, length) within x of what output `number` is made of; neighbours are merged."""
        if len(irreps_out) != len(blocks):
            raise ValueError(
                f"{self._name}: instructions[{number}] must list one block per block of '{irreps_out}', "
                f"{len(irreps_out)} in all, got {len(blocks)}"
            )
        count, slices = len(self.irreps_in), self.irreps_in.slices()
        spans: list[tuple[int, int]] = []
        for block, wanted in zip(map(operator.index, blocks), irreps_out, strict=True):
            if not -count <= block < count:
                raise IndexError(
                    f"{self._name}: instructions[{number}] must list blocks of irreps_in = "
                    f"'{self.irreps_in}', {count} in all, got {block}"
                )
            given, where = self.irreps_in[block], slices[block]
            if given.dim != wanted.dim:
                raise ValueError(
                    f"{self._name}: instructions[{number}] takes '{given}', of dimension {given.dim}, "
                    f"where the output has '{wanted}', of dimension {wanted.dim}"
                )
            if spans and sum(spans[-1]) == where.start:
                spans[-1] = (spans[-1][0], spans[-1][1] + given.dim)
            else:
                spans.append((where.start, given.dim))
        return spans

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x (..., irreps_in.dim), of any dtype, to tensors (..., irreps_outs[i].dim), none of which shares
        memory with x.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"{self._name}: x must be a tensor, got {type(x).__name__}")
        require_dense(self._name, "x", x)
        if x.dim() == 0 or x.shape[-1] != self._dim_in:
            raise ValueError(f"{self._name}: x must have shape (..., {self._dim_in}), got {tuple(x.shape)}")
        outputs = tuple(_copy(x, spans) for spans in self._spans)
        return outputs[0] if self._is_squeezed else outputs


def _copy(x: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    if not spans:
        return x.new_zeros(*x.shape[:-1], 0)
    parts = [x.narrow(-1, start, length) for start, length in spans]
    if len(parts) > 1:
        return torch.cat(parts, dim=-1)
    return parts[0].clone(memory_format=torch.contiguous_format)


class ExtractIr(Extract):
    """All blocks of x with one irrep, as one tensor (..., irreps_out.dim).

    Signature, attributes and numbers of ``e3nn.nn.ExtractIr`` 0.6.

    Args:
        irreps_in: of x, in any form that `Irreps` reads.
        ir: the irrep, in any form that `Irrep` reads.
    """

    def __init__(self, irreps_in: Any, ir: Any) -> None:
        irreps_in, ir = Irreps(irreps_in), Irrep(ir)
        taken = tuple(i for i, block in enumerate(irreps_in) if block.ir == ir)
        irreps_out = Irreps([irreps_in[i] for i in taken])
        super().__init__(irreps_in, [irreps_out], [taken], squeeze_out=True)
        self.irreps_out = irreps_out
