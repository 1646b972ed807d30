"""What all generators of Triton source write with: text by lines, sums of terms, loads, the edges of a graph.

A kernel is text, made from a plan without torch or Triton, so that a person can read it and a test can print
it. `clebsch.triton.launch` turns text into a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "COUNTS",
    "MOST_COEFFICIENTS",
    "MOST_IN_ROW",
    "MOST_TILES",
    "NUMBERS",
    "Source",
    "Table",
    "Writer",
    "product",
    "require_short_rows",
    "total",
]

# Arithmetic for numbers stored in each type.
NUMBERS = {
    "float32": "tl.float32",
    "float64": "tl.float64",
    "float16": "tl.float32",
    "bfloat16": "tl.float32",
}

MOST_COEFFICIENTS = 400
"""What the straight code of one kernel may hold: more takes too long to compile."""


MOST_IN_ROW = 1 << 30
"""Numbers of a row: offsets in it, and twice the number of a pair, have 32 bits. Rows are found with 64."""

MOST_TILES = 65535
"""What the second and the third axis of a grid may be."""

COUNTS = ("nodes", "edges", "rows", "count", "first", "last", "piece", "gy_piece", "adds")
"""Arguments that change from call to call; Triton would compile anew for 1 and for multiples of 16."""


Table = tuple[tuple[tuple[int, int, int, float], ...], ...]
"""For each component of a result the (m1, m2, m3, coefficient) of what it meets."""


@dataclass(frozen=True)
class Source:
    """A kernel: its `name`, its whole `text`, and the names of its arguments in order, blocks aside.

    lanes: how many elements lie along the lanes, all tiles together. values: numbers that a lane keeps at a
    time, about, and common: those that all lanes share; `clebsch.triton.schedule` makes blocks from them.
    wide: whether a thread should take several neighbouring lanes. reduces: whether lanes are summed. adds:
    whether it adds to what is there, so that it cannot be run twice. table: what it reads as begins,
    components and coefficients.
    """

    name: str
    text: str
    arguments: tuple[str, ...]
    lanes: int
    values: int
    wide: bool
    reduces: bool = False
    adds: bool = False
    common: int = 0
    table: Table = ()

    @property
    def is_of_rows(self) -> bool:
        """Whether rows lie along the lanes, not elements of a row."""
        return self.lanes == 0


class Writer:
    """Lines with indentation, for a kernel that computes in `dtype`, a name of torch's."""

    def __init__(self, dtype: str) -> None:
        self.number = NUMBERS[dtype]
        self._convert = f".to({self.number})" if self.number == "tl.float32" and dtype != "float32" else ""
        self._lines: list[str] = []
        self._depth = 1
        self._arguments: dict[str, None] = {}

    def line(self, text: str) -> None:
        """One line at the present depth."""
        self._lines.append("    " * self._depth + text)

    @contextmanager
    def block(self, head: str | None) -> Iterator[None]:
        """Lines below `head`, one level deeper; at the same level where there is none."""
        if head is None:
            yield
            return
        self.line(head)
        self._depth += 1
        begin = len(self._lines)
        yield
        if len(self._lines) == begin:
            self.line("pass")
        self._depth -= 1

    def argument(self, name: str) -> str:
        """`name`, which the kernel takes."""
        self._arguments[name] = None
        return name

    def row(self, operand: str, index: str) -> str:
        """Where row `index` of an operand begins."""
        return f"{self.argument(operand)} + {index} * {self.argument(operand + '_stride')}"

    def load(self, target: str, place: str, mask: str = "", other: str = "0.0") -> None:
        """target = the number at `place`, in the type of the arithmetic."""
        masked = f", mask={mask}, other={other}" if mask else ""
        self.line(f"{target} = tl.load({place}{masked}){self._convert}")

    def store(self, place: str, value: str, mask: str) -> None:
        """Write `value` where `mask` allows, in the type of the memory."""
        self.line(f"tl.store({place}, {value}, mask={mask})")

    def zeros(self, names: Iterable[str]) -> None:
        """Sums that begin with nothing."""
        for name in names:
            self.line(f"{name} = tl.zeros((BLOCK,), {self.number})")

    def tile(self, size: int) -> None:
        """lane, and whether it is `there`: of a tile of `size` elements."""
        tile = "tl.program_id(1)"
        if size > 32 * MOST_TILES:  # more tiles, perhaps, than an axis has
            tile = f"({tile} + tl.program_id(2) * tl.num_programs(1))"
        self.line(f"lane = {tile} * BLOCK + tl.arange(0, BLOCK)")
        self.line(f"there = lane < {size}")

    def lists(self) -> None:
        """Where the lists of an order begin, without products, which would have 32 bits as `edges` has;
        whether it was made for a device."""
        for name in ("order", "nodes", "edges"):
            self.argument(name)
        self.line(
            "# an order: -1, -1, receiver_begin, sender_begin, unused, edge, sender, receiver, outgoing"
        )
        self.line("edge_list = order + 5 + nodes + nodes + nodes")
        for name, before in (("sender", "edge"), ("receiver", "sender"), ("outgoing", "receiver")):
            self.line(f"{name}_list = {before}_list + edges")
        self.line("made_for_device = tl.load(order) == -1")

    def edges(self, end: str) -> str:
        """The loop over the positions whose end (receiver or sender) is node `owner`; the head of it."""
        begin = {"receiver": "order + 2 + owner", "sender": "order + 3 + nodes + owner"}[end]
        self.lists()
        self.line(f"begin = tl.maximum(tl.load({begin}), 0)")
        self.line(f"end = tl.minimum(tl.load({begin} + 1), edges)")
        return "for position in range(begin, end):"

    def edge(self, listed: str = "made_for_device") -> None:
        """edge, sender and receiver at `position`; `good` unless one of them or `listed` is out of range."""
        other = "" if listed == "made_for_device" else f", mask={listed}, other=-1"
        for name in _ENDS:
            self.line(f"{name} = tl.load({name}_list + position{other})")
        inside = (f"({name} >= 0) & ({name} < {count})" for name, count in _ENDS.items())
        self.line(f"good = made_for_device & {' & '.join(inside)}")

    def finish(
        self,
        name: str,
        comment: Sequence[str],
        *,
        lanes: int,
        values: int,
        wide: bool,
        reduces: bool = False,
        adds: bool = False,
        common: int = 0,
        table: Table = (),
    ) -> Source:
        """The kernel, with `comment` as its docstring."""
        arguments = tuple(self._arguments)
        counts = ", ".join(f'"{name}"' for name in arguments if name in COUNTS)
        text = "\n".join(
            [
                f"@triton.jit(do_not_specialize=[{counts}])" if counts else "@triton.jit",
                f"def {name}(",
                *(f"    {argument}," for argument in arguments),
                "    BLOCK: tl.constexpr,",
                "):",
                *(f"    # {line}".rstrip() for line in comment),
                *self._lines,
                "",
            ]
        )
        return Source(name, text, arguments, lanes, values, wide, reduces, adds, common, table)


_ENDS = {"edge": "edges", "sender": "nodes", "receiver": "nodes"}


def product(coefficient: float, *factors: str) -> str:
    """coefficient * factors, as text."""
    if coefficient == 1.0 and factors:
        return " * ".join(factors)
    return " * ".join((repr(coefficient), *factors))


def total(terms: Sequence[str]) -> str:
    """The sum of terms, as text."""
    return " + ".join(terms).replace("+ -", "- ")


def require_short_rows(noun: str, columns: int) -> None:
    """NotImplementedError, with what to do, if offsets in a row of so many numbers need more than 32 bits."""
    if columns > MOST_IN_ROW:
        raise NotImplementedError(
            f"{noun}: rows of {columns} numbers, and a Triton kernel takes at most {MOST_IN_ROW}: the plan "
            "is too large for it. Split its blocks into plans of their own, or use tensors on the CPU"
        )
