"""Kernels for products of any mode: each operand in its turn is the target, its copies in the lanes.

The sum over paths of F(g, x, y, weight) is linear in each operand, so a result is the derivative with respect
to the operand in whose place it stands: out for g, grad_x for x, grad_y for y, grad_weight for weight. A
program holds the components of a tile of copies of one block of the target, and adds up over the indices that
the target does not have, path by path, in plain loops; over the edges too where it belongs to a node. Every
operand is read where it is used. Correct for every plan, and no more: nothing is kept between copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from clebsch.algebra.plan import Path, ProductPlan

from .operands import Block, Operands
from .source import MOST_COEFFICIENTS, Source, Writer, product, require_few, total

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
        for path in paths:
            require_few("tensor_product", whole.title(path), len(whole.entries(path)))
            held = sum(len(whole.entries(other)) for other in parts[-1])
            if parts[-1] and held + len(whole.entries(path)) > MOST_COEFFICIENTS:
                parts.append([])
            parts[-1].append(path)
        for part in parts:
            kernel = _Kernel(whole, target, block, part, dtype, graph, shared, tangents)
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
        self.rows = {"x": "owner", "y": "owner", "weight": "owner", "grad": "owner"}
        if graph:
            self.rows = {"x": "sender", "y": "edge", "weight": "edge", "grad": "receiver"}
        elif self.pieces:
            self.rows = dict.fromkeys(self.rows, "position")

    def write_all(self, number: int, adds: bool) -> Source:
        """The whole kernel, which adds to what is there or begins anew."""
        write, block = self.write, self.block
        write.line("owner = tl.program_id(0).to(tl.int64)")
        write.tile(block.mul)
        sums = block.names("sum")
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
        for i, name in enumerate(sums):
            place = f"{row} + {block.place(i, 'lane')}"
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
            lanes=block.mul,
            values=2 * len(sums),
            wide=False,
            adds=adds,
        )

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
        write.line(f"lanes = lane < tl.where(good, {self.block.mul}, 0)")

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
            write.line(f"{copy} = lane")
            return {copy}
        if mode.ordered:
            (u, v, *w), twice = mode.letters, 2 * muls[mode.y] - 1
            per_pair = muls[w[0]] if w else 1
            last = muls[v] * (muls[v] - 1) // 2 - 1
            write.line(f"pair = tl.minimum(lane // {per_pair}, {last}).to(tl.int64)")
            write.line(f"root = tl.sqrt(({twice} * {twice} - 8 * pair).to(tl.float64))")
            write.line(f"{u} = (({twice} - root) / 2).to(tl.int64)")
            write.line(f"{u} -= ({u} * ({twice} - {u}) // 2 > pair).to(tl.int64)")
            write.line(f"{u} += (({u} + 1) * ({twice} - {u} - 1) // 2 <= pair).to(tl.int64)")
            write.line(f"{v} = pair - {u} * ({twice} - {u}) // 2 + {u} + 1")
            if w:
                write.line(f"{w[0]} = lane % {muls[w[0]]}")
            return set(mode.letters)
        letters = [letter for letter in mode.letters if letter in copy]
        rest = "lane"
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
        whole = self.whole
        weighted = whole.weight(path) is not None
        if variant["weight"] == "aw" and not weighted:
            return
        blocks = {"x": whole.x(path), "y": whole.y(path), "grad": whole.out(path)}
        copies = {"x": mode.x, "y": mode.y, "grad": mode.out, "weight": mode.weight}
        replaced = TARGETS[self.target]
        for role, block in blocks.items():
            if role != replaced:
                self.load_copy(path, variant[role], role, block, copies[role], lanes, mask)
        weight = ""
        if weighted and replaced != "weight":
            at = Block(0, whole.weight(path), 0, 1, "ir_mul")
            self.load_copy(path, variant["weight"], "weight", at, copies["weight"], lanes, mask)
            weight = f"{self.name(path, variant['weight'], 0)} * "
        self.contract(path, replaced, variant, weight, mask, sums)

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
