"""Kernels for products of any mode: each operand in its turn is the target, its copies in the lanes.

The sum over paths of F(g, x, y, weight) is linear in each operand, so a result is the derivative with respect
to the operand in whose place it stands: out for g, grad_x for x, grad_y for y, grad_weight for weight. A
program holds the components of a tile of copies of one block of the target, and adds up over the indices that
the target does not have, path by path, in plain loops; over the edges too where it belongs to a node. Every
operand is read where it is used. Correct for every plan, and no more: nothing is kept between copies.

Coefficients are constants in straight code; those of a path that has too many for it, of high degrees, are
read from a table: then all numbers of a block lie in the lanes, and a lane goes through what its component
meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from clebsch.algebra.plan import Path, ProductPlan

from .operands import Block, Operands
from .source import MOST_COEFFICIENTS, Source, Table, Writer, product, total

__all__ = ["TARGETS", "contraction"]

TARGETS = {"out": "grad", "gx": "x", "gy": "y", "gw": "weight"}
"""A result, and the operand in whose place it stands."""

_TANGENTS = {"x": "ax", "y": "ay", "weight": "aw"}


@dataclass(frozen=True)
class _Indices:
    """Of a path: its letters, and what copy of each operand they mean. `ordered`: u < v.

    Letters and numbers that a path reads have its number in their names, for Triton lets no name stand for a
    block before a loop and for a scalar in it."""

    letters: tuple[str, ...]
    x: str
    y: str
    out: str
    weight: str
    ordered: bool = False


def _indices(mode: str, mul2: int, mul3: int, number: int) -> _Indices:
    u, v, w = (f"{letter}{number}" for letter in "uvw")
    pair = f"{u} * ({2 * mul2 - 1} - {u}) // 2 + {v} - {u} - 1"
    both = f"{u} * {mul2} + {v}"
    return {
        "uvw": _Indices((u, v, w), u, v, w, f"({both}) * {mul3} + {w}"),
        "uvu": _Indices((u, v), u, v, u, both),
        "uvv": _Indices((u, v), u, v, v, both),
        "uuw": _Indices((u, w), u, u, w, f"{u} * {mul3} + {w}"),
        "uuu": _Indices((u,), u, u, u, u),
        "uvuv": _Indices((u, v), u, v, both, both),
        "uvu<v": _Indices((u, v), u, v, pair, pair, True),
        "u<vw": _Indices((u, v, w), u, v, w, f"({pair}) * {mul3} + {w}", True),
    }[mode]


def contraction(
    plan: ProductPlan,
    dtype: str,
    target: str,
    *,
    graph: bool,
    shared: bool = False,
    tangents: tuple[bool, bool, bool] | None = None,
) -> list[Source]:
    """Kernels that fill the blocks of `target` which some path reaches, one block or more kernels each.

    With tangents the target is that of the sum of F in which x, y or weight is replaced by its tangent. Where
    the target is gw and weights are shared, a program adds up rows owner * count to (owner + 1) * count, and
    the results of all owners are pieces of a sum.
    """
    whole = Operands(plan)
    blocks: dict[Block, list[Path]] = {}
    for path in whole.paths:
        block = _target_block(whole, path, target)
        if block is not None:
            blocks.setdefault(block, []).append(path)
    sources = []
    for block, paths in blocks.items():
        parts: list[list[Path]] = [[]]
        held = 0
        for path in paths:
            count = len(whole.entries(path))
            if parts[-1] and held + count > MOST_COEFFICIENTS:
                parts.append([])
                held = 0
            parts[-1].append(path)
            held += count
        for part in parts:
            reads_table = len(whole.entries(part[0])) > MOST_COEFFICIENTS
            kernel = (_TableKernel if reads_table else _Kernel)(
                whole, target, block, part, dtype, graph, shared, tangents
            )
            sources.append(kernel.write_all(len(sources), part is not parts[0]))
    return sources


def _target_block(whole: Operands, path: Path, target: str) -> Block | None:
    if target == "gw":
        at = whole.weight(path)
        if at is None:
            return None
        size = 1
        for length in whole.plan.path_shapes[whole.number(path)]:
            size *= length
        return Block(whole.number(path), at, size, 1, "ir_mul")
    return {"out": whole.out, "gx": whole.x, "gy": whole.y}[target](path)


class _Kernel:
    """The source for one block of a target."""

    def __init__(
        self,
        whole: Operands,
        target: str,
        block: Block,
        paths: Sequence[Path],
        dtype: str,
        graph: bool,
        shared: bool,
        tangents: tuple[bool, bool, bool] | None,
    ) -> None:
        self.whole, self.target, self.block, self.paths = whole, target, block, paths
        self.graph, self.along = graph, tangents is not None
        self.pieces = shared and target == "gw"
        self.write = Writer(dtype)
        self.variants = _variants(target, tangents)
        self.size, self.copy = block.mul, "lane"  # how much lies in the lanes, and of which copy
        self.rows = {"x": "owner", "y": "owner", "weight": "owner", "grad": "owner"}
        if graph:
            self.rows = {"x": "sender", "y": "edge", "weight": "edge", "grad": "receiver"}
        elif self.pieces:
            self.rows = dict.fromkeys(self.rows, "position")

    def write_all(self, number: int, adds: bool) -> Source:
        """The whole kernel, which adds to what is there or begins anew."""
        write, block = self.write, self.block
        write.line("owner = tl.program_id(0).to(tl.int64)")
        write.tile(self.size)
        results = self.results()
        sums = list(results)
        write.zeros(sums)
        with ExitStack() as stack:
            for head in self.owned_rows():
                stack.enter_context(write.block(head))
            if self.graph:
                self.edge()
            for path in self.paths:
                write.line(f"# {self.whole.title(path)}")
                self.add_path(path, sums)
        owner = (
            {"out": "owner", "gx": "owner", "gy": "edge", "gw": "edge"}[self.target]
            if self.graph
            else "owner"
        )
        mask = "lanes" if owner == "edge" and not self.pieces else "there"
        row = write.row(self.target, "owner" if self.pieces else owner)
        for name, offset in results.items():
            place = f"{row} + {offset}"
            if adds:
                write.load("earlier", place, mask)
                write.line(f"{name} += earlier")
            write.store(place, name, mask)
        return write.finish(
            f"modes_{self.target}_{'tangent_' if self.along else ''}{number}",
            [
                f"{self.target}{' along tangents' if self.along else ''} by block {block.number} of",
                *self.whole.comment(),
            ],
            lanes=self.size,
            values=2 * len(sums),
            wide=False,
            adds=adds,
            table=self.table(),
        )

    def results(self) -> dict[str, str]:
        """What lanes add up, and where in a row it is stored."""
        return {name: self.block.place(i, "lane") for i, name in enumerate(self.block.names("sum"))}

    def table(self) -> Table:
        """What is read from memory in place of constants."""
        return ()

    def owned_rows(self) -> Iterator[str]:
        """Heads of the loop over what belongs to an owner."""
        write = self.write
        if self.pieces:
            if self.graph:
                write.lists()
            count, rows = write.argument("count"), write.argument("rows")
            yield f"for position in range(owner * {count}, tl.minimum((owner + 1) * {count}, {rows})):"
        elif self.graph and self.target in ("gy", "gw"):
            write.lists()
            write.line("position = owner")
        elif self.graph and self.target == "gx":
            head = write.edges("sender")
            yield head.replace("position", "outgoing")
        elif self.graph:
            yield write.edges("receiver")

    def edge(self) -> None:
        """The edge at a position; NaN instead of y where it is out of range."""
        write = self.write
        if self.target == "gx":
            write.line("position = tl.load(outgoing_list + outgoing)")
            write.line("listed = (position >= 0) & (position < edges)")
            write.edge("listed")
        else:
            write.edge()
        write.line(f"lanes = lane < tl.where(good, {self.size}, 0)")

    def add_path(self, path: Path, sums: Sequence[str]) -> None:
        """sums += what the path gives, over all indices that the target does not have."""
        write, whole = self.write, self.whole
        x, y, out = whole.x(path), whole.y(path), whole.out(path)
        mode = _indices(path.mode, y.mul, out.mul, whole.number(path))
        muls = {letter: {"u": x.mul, "v": y.mul, "w": out.mul}[letter[0]] for letter in mode.letters}
        copy = {"out": mode.out, "gx": mode.x, "gy": mode.y, "gw": mode.weight}[self.target]
        lanes = self.decode(mode, copy, muls)
        with ExitStack() as stack:
            for letter in mode.letters:
                if letter not in lanes:
                    after_u = mode.ordered and letter == mode.y and mode.x not in lanes
                    begin = f"{mode.x} + 1" if after_u else "0"
                    stack.enter_context(write.block(f"for {letter} in range({begin}, {muls[letter]}):"))
            mask = self.mask(mode, lanes)
            for variant in self.variants:
                self.add_variant(path, mode, lanes, mask, variant, sums)

    def decode(self, mode: _Indices, copy: str, muls: dict[str, int]) -> set[str]:
        """Lines that give the letters of the lanes; which letters these are."""
        write = self.write
        if copy in muls:
            write.line(f"{copy} = {self.copy}")
            return {copy}
        if mode.ordered:
            (u, v, *w), twice = mode.letters, 2 * muls[mode.y] - 1
            per_pair = muls[w[0]] if w else 1
            last = muls[v] * (muls[v] - 1) // 2 - 1
            write.line(f"pair = tl.minimum({self.copy} // {per_pair}, {last}).to(tl.int64)")
            write.line(f"root = tl.sqrt(({twice} * {twice} - 8 * pair).to(tl.float64))")
            write.line(f"{u} = (({twice} - root) / 2).to(tl.int64)")
            write.line(f"{u} -= ({u} * ({twice} - {u}) // 2 > pair).to(tl.int64)")
            write.line(f"{u} += (({u} + 1) * ({twice} - {u} - 1) // 2 <= pair).to(tl.int64)")
            write.line(f"{v} = pair - {u} * ({twice} - {u}) // 2 + {u} + 1")
            if w:
                write.line(f"{w[0]} = {self.copy} % {muls[w[0]]}")
            return set(mode.letters)
        letters = [letter for letter in mode.letters if letter in copy]
        rest = self.copy
        for letter in reversed(letters[1:]):
            write.line(f"{letter} = {rest} % {muls[letter]}")
            rest = f"({rest} // {muls[letter]})"
        write.line(f"{letters[0]} = {rest}")
        return set(letters)

    def mask(self, mode: _Indices, lanes: set[str]) -> str:
        """Which lanes take part; for scalars of an edge see `place`."""
        base = "lanes" if self.graph else "there"
        if mode.ordered and len(lanes & {mode.x, mode.y}) == 1:
            self.write.line(f"ordered = {base} & ({mode.x} < {mode.y})")
            return "ordered"
        return base

    def add_variant(
        self,
        path: Path,
        mode: _Indices,
        lanes: set[str],
        mask: str,
        variant: dict[str, str],
        sums: Sequence[str],
    ) -> None:
        """sums += the product of three operands, each as it is or its tangent."""
        at, replaced = self.whole.weight(path), TARGETS[self.target]
        if variant["weight"] == "aw" and at is None:
            return
        weight = ""
        if at is not None and replaced != "weight":
            block = Block(0, at, 0, 1, "ir_mul")
            self.load_copy(path, variant["weight"], "weight", block, mode.weight, lanes, mask)
            weight = f"{self.name(path, variant['weight'], 0)} * "
        whole = self.whole
        others = {
            "x": (whole.x(path), mode.x),
            "y": (whole.y(path), mode.y),
            "grad": (whole.out(path), mode.out),
        }
        others.pop(replaced, None)
        self.add_products(path, others, variant, weight, lanes, mask, sums)

    def add_products(
        self,
        path: Path,
        others: dict[str, tuple[Block, str]],
        variant: dict[str, str],
        weight: str,
        lanes: set[str],
        mask: str,
        sums: Sequence[str],
    ) -> None:
        """sums += weight times the coefficients times the `others`, of each of which it takes a copy."""
        for role, (block, copy) in others.items():
            self.load_copy(path, variant[role], role, block, copy, lanes, mask)
        self.contract(path, TARGETS[self.target], variant, weight, mask, sums)

    def name(self, path: Path, operand: str, component: int) -> str:
        """Of a number that a path reads."""
        return f"{operand}{self.whole.number(path)}_{component}"

    def load_copy(
        self, path: Path, operand: str, role: str, block: Block, copy: str, lanes: set[str], mask: str
    ) -> None:
        """The components of a copy, of a lane's own or, where no letter of it is in the lanes, of all."""
        write = self.write
        row = write.row(operand, self.rows[role])
        own = any(letter in copy for letter in lanes)
        index = copy if copy.isidentifier() else f"({copy})"
        arguments = (mask,) if own else (("good", 'float("nan")') if self.graph else ())
        for i in range(block.dim):
            write.load(self.name(path, operand, i), f"{row} + {block.place(i, index)}", *arguments)

    def contract(
        self,
        path: Path,
        replaced: str,
        variant: dict[str, str],
        weight: str,
        mask: str,
        sums: Sequence[str],
    ) -> None:
        terms: dict[int, list[str]] = {}
        for m1, m2, m3, value in self.whole.entries(path):
            component = {"x": m1, "y": m2, "grad": m3, "weight": 0}[replaced]
            factors = [
                self.name(path, variant[role], m)
                for role, m in (("x", m1), ("y", m2), ("grad", m3))
                if role != replaced
            ]
            terms.setdefault(component, []).append(product(value, *factors))
        for component, parts in sorted(terms.items()):
            value = f"{weight}({total(parts)})" if weight else total(parts)
            self.write.line(f"{sums[component]} += tl.where({mask}, {value}, 0.0)")


class _TableKernel(_Kernel):
    """The source for one block of a target and one path, whose coefficients are in a table."""

    def __init__(self, whole: Operands, target: str, block: Block, *rest: Any) -> None:
        super().__init__(whole, target, block, *rest)
        self.size, self.copy = block.mul * block.dim, "copy"

    def results(self) -> dict[str, str]:
        """One number; which one, and what it meets in the table."""
        write, (mul, dim) = self.write, (self.block.mul, self.block.dim)
        places = (f"lane // {dim}", f"lane % {dim}")
        if self.block.layout == "ir_mul":
            places = (f"lane % {mul}", f"tl.minimum(lane // {mul}, {dim - 1})")
        for name, place in zip(("copy", "component"), places, strict=True):
            write.line(f"{name} = {place}")
        write.line(f"first_met = tl.load({write.argument('begins')} + component)")
        write.line("last_met = tl.load(begins + component + 1)")
        return {"sum": f"{self.block.offset} + lane"}

    def table(self) -> Table:
        """For each component of the target: (m1, m2, m3, coefficient) of all that it meets."""
        index = {"x": 0, "y": 1, "grad": 2, "weight": None}[TARGETS[self.target]]
        rows: list[list[tuple[int, int, int, float]]] = [[] for _ in range(self.block.dim)]
        for entry in self.whole.entries(self.paths[0]):
            rows[0 if index is None else entry[index]].append(entry)
        return tuple(map(tuple, rows))

    def add_products(
        self,
        path: Path,
        others: dict[str, tuple[Block, str]],
        variant: dict[str, str],
        weight: str,
        lanes: set[str],
        mask: str,
        sums: Sequence[str],
    ) -> None:
        write = self.write
        with write.block(f"for entry in range({max(map(len, self.table()))}):"):
            write.line("met = first_met + entry")
            write.line(f"some = {mask} & (met < last_met)")
            write.load("value", f"{write.argument('coefficients')} + met", "some")
            factors = ["value"]
            for role, (block, copy) in others.items():
                column = ("x", "y", "grad").index(role)
                place = f"{write.argument('components')} + 3 * met + {column}"
                write.line(f"m = tl.load({place}, mask=some, other=0)")
                at = (
                    f"m * {block.mul} + {copy}" if block.layout == "ir_mul" else f"({copy}) * {block.dim} + m"
                )
                row = write.row(variant[role], self.rows[role])
                write.load(f"{role}_m", f"{row} + {block.offset} + {at}", "some")
                factors.append(f"{role}_m")
            write.line(f"{sums[0]} += tl.where(some, {weight}({' * '.join(factors)}), 0.0)")


def _variants(target: str, tangents: tuple[bool, bool, bool] | None) -> list[dict[str, str]]:
    """What stands for each operand in the terms that are added up."""
    plain = {"x": "x", "y": "y", "weight": "weight", "grad": "grad"}
    if tangents is None:
        return [plain]
    return [
        {**plain, role: tangent}
        for (role, tangent), given in zip(_TANGENTS.items(), tangents, strict=True)
        if given and role != TARGETS[target]
    ]
