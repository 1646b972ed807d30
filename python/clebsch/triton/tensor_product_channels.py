"""Kernels for plans whose paths are all "uvu" with one copy of y: the products of message passing.

Lanes are channels, a program is a node (or a row) and a tile of channels. For an edge, M = C y and N = C ay
are the coupling coefficients summed with y and with ay, numbers that all lanes share. With
p = weight ax + aw x, and without tangents p = weight x,

                 without tangents            with tangents
    out         += M p                       M p + N (weight x)
    grad_x      += weight (M g)              weight (N g) + aw (M g)
    grad_weight  = x . (M g)                 ax . (M g) + x . (N g)
    grad_y       = sum over lanes of C p g   the same

Forward, the receiver keeps its sums in registers while its edges pass by, and x is gathered once per edge and
tile for all paths of a kernel. Backward, the receiver keeps g; grad_x of an edge goes to a row of work
space, which `sums` adds up for its sender; grad_weight and grad_y belong to their edge. Blocks of one
multiplicity share a kernel until its numbers fill the registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from clebsch.algebra.plan import Path, ProductPlan

from .operands import Block, Operands
from .source import MOST_COEFFICIENTS, Source, Writer, product, total

__all__ = ["Tangents", "backward", "forward", "serves"]

MOST_VALUES = 110
"""Numbers of 32 bits that a lane may keep at a time before paths go to another kernel."""

Tangents = tuple[bool, bool, bool]
"""Which of ax, ay and aw are given."""


def serves(plan: ProductPlan) -> bool:
    """Whether these kernels compute this plan."""
    whole = Operands(plan)
    return all(
        path.mode == "uvu" and whole.y(path).mul == 1 and len(whole.entries(path)) <= MOST_COEFFICIENTS
        for path in whole.paths
    )


def forward(plan: ProductPlan, dtype: str, *, graph: bool, tangents: Tangents | None = None) -> list[Source]:
    """Kernels that fill the blocks of `out` which some path reaches; with tangents, the derivative along
    them."""
    whole = Operands(plan)
    has_ax = tangents is not None and tangents[0]

    def cost(paths: Sequence[Path]) -> int:
        x = _size(map(whole.x, paths)) * (1 + has_ax)
        return _size(map(whole.out, paths)) + x + max(whole.x(path).dim for path in paths) + 4

    groups = _groups(whole, whole.out, cost, dtype)
    return [_Kernel(whole, group, dtype, graph, tangents).forward(i) for i, group in enumerate(groups)]


def backward(
    plan: ProductPlan,
    dtype: str,
    *,
    graph: bool,
    needs: Sequence[bool],
    tangents: Tangents | None = None,
) -> list[Source]:
    """Kernels for gx, gy and gw, those that are needed: the gradients of F(grad, x, y, weight), or with
    tangents of the sum of F in which one operand is replaced by its tangent.

    Each kernel and tile writes a piece of gy, from piece `piece` on, to be summed; gx of an edge at
    `position` goes to row position - first.
    """
    whole = Operands(plan)
    gx, gy, _ = needs
    has_ax = tangents is not None and tangents[0]

    def cost(paths: Sequence[Path]) -> int:
        x, largest = _size(map(whole.x, paths)), max(whole.x(path).dim for path in paths)
        kept = _size(map(whole.out, paths)) + x * (1 + has_ax) + gx * largest
        return kept + gy * _size(map(whole.y, paths)) + 2 * largest + 4

    groups = _groups(whole, whole.x, cost, dtype)
    return [
        _Kernel(whole, group, dtype, graph, tangents).backward(i, needs) for i, group in enumerate(groups)
    ]


@dataclass(frozen=True)
class _Group:
    """The paths of one kernel, whether it adds to what earlier ones wrote, and how much a lane keeps."""

    paths: tuple[Path, ...]
    adds: bool
    values: int


def _groups(
    whole: Operands, owned: Callable[[Path], Block], cost: Callable[[Sequence[Path]], int], dtype: str
) -> list[_Group]:
    """Kernels that each own the blocks `owned` by their paths: of one multiplicity together while they fit;
    a block whose paths do not fit in several kernels, of which all but the first add."""
    words = 2 if dtype == "float64" else 1

    def fits(paths: Sequence[Path]) -> bool:
        coefficients = sum(len(whole.entries(path)) for path in paths)
        return cost(paths) * words <= MOST_VALUES and coefficients <= MOST_COEFFICIENTS

    groups: list[_Group] = []
    for unit in _by_block(whole, owned):
        parts: list[list[Path]] = [[]]
        for path in unit:
            if parts[-1] and not fits([*parts[-1], path]):
                parts.append([])
            parts[-1].append(path)
        if len(parts) == 1 and groups and not groups[-1].adds:
            together = (*groups[-1].paths, *unit)
            if whole.x(together[0]).mul == whole.x(unit[0]).mul and fits(together):
                groups[-1] = _Group(together, False, cost(together) * words)
                continue
        groups += [_Group(tuple(part), i > 0, cost(part) * words) for i, part in enumerate(parts)]
    return groups


def _by_block(whole: Operands, owned: Callable[[Path], Block]) -> list[list[Path]]:
    """The paths of each block, ordered by what they load; blocks of one multiplicity after another."""
    units: dict[Block, list[Path]] = {}
    for path in whole.paths:
        units.setdefault(owned(path), []).append(path)
    ordered = sorted(units.values(), key=lambda unit: (-whole.x(unit[0]).mul, unit[0].i_in1, unit[0].i_out))
    return [sorted(unit, key=lambda path: (path.i_in1, path.i_in2)) for unit in ordered]


def _size(blocks: Iterator[Block]) -> int:
    return sum(block.dim for block in set(blocks))


class _Kernel:
    """The source of one group of paths."""

    def __init__(
        self, whole: Operands, group: _Group, dtype: str, graph: bool, tangents: Tangents | None
    ) -> None:
        self.whole, self.group, self.graph, self.paths = whole, group, graph, group.paths
        self.along = tangents is not None
        self.has_ax, self.has_ay, self.has_aw = tangents or (False, False, False)
        self.write = Writer(dtype)
        self.lanes = "lanes" if graph else "there"
        self.cells = 0  # of the largest matrix
        self.edge, self.sender = ("edge", "sender") if graph else ("owner", "owner")
        self.write.line("owner = tl.program_id(0).to(tl.int64)")
        self.write.tile(whole.x(self.paths[0]).mul)

    def forward(self, number: int) -> Source:
        write, whole = self.write, self.whole
        outs = list(dict.fromkeys(map(whole.out, self.paths)))
        for out in outs:
            if self.group.adds:
                self.load("out", out, "owner", "there")
            else:
                write.zeros(out.names("out"))
        with self.edges():
            seen = set()
            for path in self.paths:
                write.line(f"# {whole.title(path)}")
                if whole.x(path) not in seen:
                    self.load_x(whole.x(path))
                    seen.add(whole.x(path))
                self.add_forward(path)
        for out in outs:
            for i, name in enumerate(out.names("out")):
                write.store(f"{write.row('out', 'owner')} + {out.place(i, 'lane')}", name, "there")
        # A row stores as much as it loads: blocks of vectors in mul_ir then take one lane a thread.
        wide = self.graph or self.whole.plan.layout == "ir_mul" or all(out.dim == 1 for out in outs)
        return self.finish("tangent" if self.along else "forward", number, reduces=False, wide=wide)

    def backward(self, number: int, needs: Sequence[bool]) -> Source:
        write, whole = self.write, self.whole
        gx, gy, _ = needs
        with self.edges(windows=True):
            used = {column for path in self.paths for column in self.columns(path)}
            if gy:
                write.zeros(f"gy_{column}" for column in sorted(used))
            for x in dict.fromkeys(map(whole.x, self.paths)):
                self.load_x(x)
                if gx:
                    write.zeros(x.names("gx"))
                for path in self.paths:
                    if whole.x(path) == x:
                        write.line(f"# {whole.title(path)}")
                        self.add_backward(path, needs)
                if gx:
                    self.store_gx(x)
            if gy:
                self.store_gy(used)
        return self.finish("double_backward" if self.along else "backward", number, reduces=gy, wide=True)

    # What both have in common

    @contextmanager
    def edges(self, windows: bool = False) -> Iterator[None]:
        """The edges of a receiver, or a row, with y and who is good; `windows`: those in [first, last), with
        the gradient of the receiver."""
        write = self.write
        head = None
        received = "there"
        if self.graph:
            head = write.edges("receiver")
        if self.graph and windows:
            write.line(f"begin = tl.maximum(begin, {write.argument('first')})")
            write.line(f"end = tl.minimum(end, {write.argument('last')})")
            self.among("received", "begin < end")
            received = "received"
        if windows:
            for out in dict.fromkeys(map(self.whole.out, self.paths)):
                self.load("grad", out, "owner", received)
        with write.block(head):
            if self.graph:
                write.edge()
                self.among("lanes", "good")
            self.load_y()
            yield

    def among(self, mask: str, condition: str) -> None:
        """The lanes that are there if a condition on scalars holds."""
        self.write.line(f"{mask} = lane < tl.where({condition}, {self.whole.x(self.paths[0]).mul}, 0)")

    def columns(self, path: Path) -> range:
        """Of y, that a path reads."""
        y = self.whole.y(path)
        return range(y.offset, y.offset + y.dim)

    def load_y(self) -> None:
        """What paths use of y and ay; NaN for an edge that is out of range, so that it shows."""
        used = sorted({column for path in self.paths for column in self.columns(path)})
        nan = ("good", 'float("nan")') if self.graph else ()
        for operand in ("y", "ay") if self.has_ay else ("y",):
            row = self.write.row(operand, self.edge)
            for column in used:
                self.write.load(f"{operand}_{column}", f"{row} + {column}", *nan)

    def load(self, operand: str, block: Block, row: str, mask: str) -> None:
        begin = self.write.row(operand, row)
        for i, name in enumerate(block.names(operand)):
            self.write.load(name, f"{begin} + {block.place(i, 'lane')}", mask)

    def load_x(self, x: Block) -> None:
        for operand in ("x", "ax") if self.has_ax else ("x",):
            self.load(operand, x, self.sender, self.lanes)

    def weight(self, path: Path, operand: str = "weight") -> str:
        """Loads the weights of a path and names them; "" where it has none."""
        at = self.whole.weight(path)
        if at is None:
            return ""
        self.write.load(f"{operand}_u", f"{self.write.row(operand, self.edge)} + {at} + lane", self.lanes)
        return f"{operand}_u * "

    def matrix(self, path: Path, operand: str, name: str) -> list[tuple[int, int]]:
        """M from y, or N from ay; where it is not zero, (m1, m3)."""
        offset = self.whole.y(path).offset
        cells: dict[tuple[int, int], list[str]] = {}
        for m1, m2, m3, value in self.whole.entries(path):
            cells.setdefault((m1, m3), []).append(product(value, f"{operand}_{offset + m2}"))
        for (m1, m3), terms in cells.items():
            self.write.line(f"{name}_{m1}_{m3} = {total(terms)}")
        self.cells = max(self.cells, len(cells))
        return list(cells)

    def combine(self, path: Path, weight: str, aw: str) -> bool:
        """p of the head of this file; False if it is zero."""
        x = self.whole.x(path)
        for i in range(x.dim):
            terms = []
            if self.has_ax or not self.along:
                terms.append(f"{weight}{x.names('ax' if self.along else 'x')[i]}")
            if aw:
                terms.append(f"{aw}{x.names('x')[i]}")
            if not terms:
                return False
            self.write.line(f"p_{i} = {total(terms)}")
        return True

    def weights(self, path: Path) -> tuple[str, str]:
        """What multiplies: the weights of a path, and their tangents; "" where there are none."""
        return self.weight(path), self.weight(path, "aw") if self.has_aw else ""

    # A path

    def add_forward(self, path: Path) -> None:
        weight, aw = self.weights(path)
        terms: dict[int, list[str]] = {}
        if self.combine(path, weight, aw):
            for m1, m3 in self.matrix(path, "y", "m"):
                terms.setdefault(m3, []).append(f"m_{m1}_{m3} * p_{m1}")
        if self.has_ay:
            for i, name in enumerate(self.whole.x(path).names("x")):
                self.write.line(f"r_{i} = {weight}{name}")
            for m1, m3 in self.matrix(path, "ay", "n"):
                terms.setdefault(m3, []).append(f"n_{m1}_{m3} * r_{m1}")
        names = self.whole.out(path).names("out")
        for m3, parts in sorted(terms.items()):
            self.write.line(f"{names[m3]} += {total(parts)}")

    def add_backward(self, path: Path, needs: Sequence[bool]) -> None:
        gx, gy, gw = needs
        weight, aw = self.weights(path)
        gw = gw and self.whole.weight(path) is not None
        h = self.contract(path, "y", "m") if gx or gw else {}
        k = self.contract(path, "ay", "n") if self.has_ay and (gx or gw) else {}
        if gx:
            self.add_gx(path, weight, aw, h, k)
        if gw:
            self.store_gw(path, h, k)
        if gy and self.combine(path, weight, aw):
            self.add_gy(path)

    def contract(self, path: Path, operand: str, matrix: str) -> dict[int, str]:
        """M g or N g: the names of its components that are not zero."""
        grad = self.whole.out(path).names("grad")
        terms: dict[int, list[str]] = {}
        for m1, m3 in self.matrix(path, operand, matrix):
            terms.setdefault(m1, []).append(f"{matrix}_{m1}_{m3} * {grad[m3]}")
        for m1, parts in terms.items():
            self.write.line(f"{matrix}g_{m1} = {total(parts)}")
        return {m1: f"{matrix}g_{m1}" for m1 in terms}

    def add_gx(self, path: Path, weight: str, aw: str, h: dict[int, str], k: dict[int, str]) -> None:
        for i, name in enumerate(self.whole.x(path).names("gx")):
            terms = []
            if i in h and not self.along:
                terms.append(f"{weight}{h[i]}")
            if i in k:
                terms.append(f"{weight}{k[i]}")
            if i in h and aw:
                terms.append(f"{aw}{h[i]}")
            if terms:
                self.write.line(f"{name} += {total(terms)}")

    def store_gw(self, path: Path, h: dict[int, str], k: dict[int, str]) -> None:
        x = self.whole.x(path)
        terms = []
        if self.has_ax or not self.along:
            names = x.names("ax" if self.along else "x")
            terms += [f"{names[i]} * {name}" for i, name in h.items()]
        terms += [f"{x.names('x')[i]} * {name}" for i, name in k.items()]
        row = self.write.row("gw", self.edge)
        value = total(terms) if terms else f"tl.zeros((BLOCK,), {self.write.number})"
        self.write.store(f"{row} + {self.whole.weight(path)} + lane", value, self.lanes)

    def add_gy(self, path: Path) -> None:
        """p g where M is not zero, then C times that."""
        offset, grad = self.whole.y(path).offset, self.whole.out(path).names("grad")
        cells, terms = [], {}
        for m1, m2, m3, value in self.whole.entries(path):
            cells.append((m1, m3))
            terms.setdefault(m2, []).append(product(value, f"pg_{m1}_{m3}"))
        for m1, m3 in dict.fromkeys(cells):
            self.write.line(f"pg_{m1}_{m3} = p_{m1} * {grad[m3]}")
        for m2, parts in sorted(terms.items()):
            self.write.line(f"gy_{offset + m2} += {total(parts)}")

    # Results of an edge

    def store_gx(self, x: Block) -> None:
        write = self.write
        row = write.row("gx", f"(position - {write.argument('first')})" if self.graph else "owner")
        placed = x.in_work_space() if self.graph else x
        for i, name in enumerate(x.names("gx")):
            place = f"{row} + {placed.place(i, 'lane')}"
            if self.group.adds:
                write.load("earlier", place, "there")
                write.line(f"{name} += earlier")
            write.store(place, name, "there")

    def store_gy(self, used: set[int]) -> None:
        write = self.write
        piece = f"({write.argument('piece')} + tl.program_id(1)).to(tl.int64) * {write.argument('gy_piece')}"
        row = f"{write.row('gy', self.edge)} + {piece}"
        good = "good" if self.graph else "True"
        for column in range(self.whole.plan.irreps_in2.dim):
            value = f"tl.sum(gy_{column}, axis=0)" if column in used else "0.0"
            write.store(f"{row} + {column}", value, good)

    def finish(self, role: str, number: int, *, reduces: bool, wide: bool) -> Source:
        columns = {column for path in self.paths for column in self.columns(path)}
        words = 2 if self.write.number == "tl.float64" else 1
        numbers = ", ".join(str(self.whole.number(path)) for path in self.paths)
        return self.write.finish(
            f"channels_{role}_{number}",
            [f"{role.replace('_', ' ')} of paths {numbers} of", *self.whole.comment()],
            lanes=self.whole.x(self.paths[0]).mul,
            values=self.group.values,
            wide=wide,
            reduces=reduces,
            adds=self.group.adds,
            common=(self.cells + len(columns)) * (1 + self.has_ay) * words,
        )
