"""A plan as generators of source see it: where the blocks of a path lie in the rows of operands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from clebsch.algebra.plan import Path, ProductPlan

from .source import require_short_rows

__all__ = ["Block", "Operands"]


@dataclass(frozen=True)
class Block:
    """A block of an operand: its number, where it lies in a row, its copies and components."""

    number: int
    offset: int
    mul: int
    dim: int
    layout: str

    def place(self, component: int, copy: str) -> str:
        """The offset of a component of `copy` within a row, as source."""
        if self.layout == "ir_mul":
            return f"{self.offset + component * self.mul} + {copy}"
        return (
            f"{self.offset + component} + {copy} * {self.dim}" if self.dim > 1 else f"{self.offset} + {copy}"
        )

    def in_work_space(self) -> Block:
        """The block with its copies innermost, so that neighbours in the lanes are neighbours in memory."""
        return replace(self, layout="ir_mul")

    def names(self, operand: str) -> list[str]:
        """Of the components in an operand, one each."""
        return [f"{operand}{self.number}_{i}" for i in range(self.dim)]


class Operands:
    """The paths of a plan that have something to add up, and their blocks and weights.

    NotImplementedError if its rows are too long for a kernel."""

    def __init__(self, plan: ProductPlan) -> None:
        operands = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
        require_short_rows("tensor_product", max(plan.weight_numel, *(irreps.dim for irreps in operands)))
        self.plan = plan
        self._numbers = {id(path): i for i, path in enumerate(plan.paths)}

    @cached_property
    def paths(self) -> list[Path]:
        """Those with copies to couple."""
        shapes = zip(self.plan.paths, self.plan.path_shapes, strict=True)
        return [
            path
            for path, shape in shapes
            if prod(shape) > 0 and all(block.mul > 0 for block in self.plan.blocks(path))
        ]

    def blocks_of_x(self) -> list[Block]:
        """All blocks of x, those that no path couples too."""
        return [self._block(self.plan.irreps_in1, i) for i in range(len(self.plan.irreps_in1))]

    def _block(self, irreps, index: int) -> Block:
        offset = sum(mul * ir.dim for mul, ir in irreps[:index])
        return Block(index, offset, irreps[index].mul, irreps[index].ir.dim, self.plan.layout)

    def x(self, path: Path) -> Block:
        """The block of x that `path` couples."""
        return self._block(self.plan.irreps_in1, path.i_in1)

    def y(self, path: Path) -> Block:
        """Of y."""
        return self._block(self.plan.irreps_in2, path.i_in2)

    def out(self, path: Path) -> Block:
        """Of the output."""
        return self._block(self.plan.irreps_out, path.i_out)

    def number(self, path: Path) -> int:
        """The place of `path` in the plan."""
        return self._numbers[id(path)]

    def weight(self, path: Path) -> int | None:
        """Where the weights of `path` begin in a row, or None."""
        located = self.plan.weight_slices[self.number(path)]
        return None if located is None else located[0]

    def entries(self, path: Path) -> list[tuple[int, int, int, float]]:
        """(m1, m2, m3, coefficient of the path times that of the coupling)."""
        if path.coefficient == 0.0:
            return []
        return [(e.m1, e.m2, e.m3, path.coefficient * e.value) for e in self.plan.entries(path)]

    def title(self, path: Path) -> str:
        """The path for people."""
        x, y, out = self.plan.blocks(path)
        return f"path {self.number(path)}: {x} * {y} -> {out}, {path.mode}"

    def comment(self) -> list[str]:
        """The plan for people, in two lines."""
        return self.plan.algebra().splitlines()[:2]
