"""ProductPlan: which blocks of two inputs a tensor product couples into which blocks of its output, and how.

A plan is a list of paths. Path p couples block i of x (multiplicity index u), block j of y (v) and block k of
the output (w) with a fixed coefficient c_p and, if it is weighted, with weights W_p:

    out_k[w, m3] += c_p sum_{u,v} W_p[u, v, w] sum_{m1,m2} C^{l1 l2 l3}[m1, m2, m3] x_i[u, m1] y_j[v, m2]

where the mode says which (u, v, w) occur and which weight each of them has:

    uvw    all                       W[u, v, w]        uuu    u = v = w              W[u]
    uvu    w = u                     W[u, v]           uvuv   w = (u, v), row-major  W[u, v]
    uvv    w = v                     W[u, v]           uvu<v  w = (u < v)            W[u < v]
    uuw    u = v                     W[u, w]           u<vw   u < v                  W[u < v, w]

Pairs u < v are numbered row by row. A plan is immutable and hashable, and its string is canonical: parse is
the inverse of str, and the string is what compiled operators take. Execution, numbers and devices are
elsewhere.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from . import so3
from .irreps import Irreps, MulIr

__all__ = ["LAYOUTS", "MODES", "Path", "ProductPlan"]

MODES = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")
LAYOUTS = ("mul_ir", "ir_mul")
_ALWAYS_WEIGHTED = ("uvw", "u<vw")
_IRREP_NORMALIZATIONS = ("component", "norm", "none")
_PATH_NORMALIZATIONS = ("element", "path", "none")

# How each mode's copies and weights are indexed, for printing.
_INDICES = {
    "uvw": ("u", "v", "w"),
    "uvu": ("u", "v", "u"),
    "uvv": ("u", "v", "v"),
    "uuw": ("u", "u", "w"),
    "uuu": ("u", "u", "u"),
    "uvuv": ("u", "v", "u,v"),
    "uvu<v": ("u", "v", "u<v"),
    "u<vw": ("u", "v", "w"),
}
_WEIGHT_INDICES = {
    "uvw": "u,v,w",
    "uvu": "u,v",
    "uvv": "u,v",
    "uuw": "u,w",
    "uuu": "u",
    "uvuv": "u,v",
    "uvu<v": "u<v",
    "u<vw": "u<v,w",
}


@dataclass(frozen=True)
class Path:
    """One coupling of block i_in1 of x with block i_in2 of y into block i_out of the output.

    `coefficient` multiplies coupling coefficients of Frobenius norm 1, with the signs of e3nn >= 0.5; it is
    the number that e3nn's TensorProduct stores as the path_weight of an instruction.
    """

    i_in1: int
    i_in2: int
    i_out: int
    mode: str
    has_weight: bool
    coefficient: float

    def __str__(self) -> str:
        blocks = f"{self.i_in1} {self.i_in2} {self.i_out}"
        return f"{blocks} {self.mode} {'w' if self.has_weight else '-'} {self.coefficient!r}"

    @classmethod
    def parse(cls, text: str) -> Path:
        """The inverse of str; ValueError for anything else."""
        try:
            i_in1, i_in2, i_out, mode, weight, coefficient = text.split(" ")
            has_weight = {"w": True, "-": False}[weight]
            path = cls(int(i_in1), int(i_in2), int(i_out), mode, has_weight, float(coefficient))
        except (ValueError, KeyError):
            path = None
        if path is None or str(path) != text:
            raise ValueError(
                f"ProductPlan.parse: expected a path 'i_in1 i_in2 i_out mode w|- coefficient', got {text!r}"
            )
        return path


@dataclass(frozen=True)
class ProductPlan:
    """An immutable, validated description of a tensor product; see the head of this file.

    irreps_in1, irreps_in2, irreps_out: `Irreps` of x, y and the output, or anything that makes one. paths:
    `Path` objects, or tuples of the same six fields. layout: "mul_ir" puts component m of copy u of a block
    at u (2l+1) + m, as e3nn does; "ir_mul" puts it at m mul + u; it holds for x, y and the output.

    Raises, naming the path: IndexError for a block that does not exist; ValueError for a coupling that the
    selection rules forbid, an unknown mode, multiplicities that do not suit the mode, or a coefficient that
    is not finite.
    """

    irreps_in1: Irreps
    irreps_in2: Irreps
    irreps_out: Irreps
    paths: tuple[Path, ...]
    layout: str = "mul_ir"
    _string: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def store(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("irreps_in1", "irreps_in2", "irreps_out"):
            store(name, Irreps(getattr(self, name)))
        if self.layout not in LAYOUTS:
            raise ValueError(f"ProductPlan: layout must be one of {_quoted(LAYOUTS)}, got {self.layout!r}")
        blocks = (self.irreps_in1, self.irreps_in2, self.irreps_out)
        paths = []
        for i, path in enumerate(self.paths):
            i_in1, i_in2, i_out, mode, has_weight, coefficient = _fields(path)
            _check_path("paths", i, blocks, i_in1, i_in2, i_out, mode, has_weight)
            if not math.isfinite(coefficient):
                raise ValueError(f"ProductPlan: paths[{i}]: coefficient must be finite, got {coefficient!r}")
            # + 0.0 makes -0.0 the 0.0 that it equals: equal plans have equal strings
            path = Path(int(i_in1), int(i_in2), int(i_out), mode, bool(has_weight), float(coefficient) + 0.0)
            paths.append(path)
        store("paths", tuple(paths))
        inputs = f"{self.irreps_in1}*{self.irreps_in2}->{self.irreps_out}"
        store("_string", f"{inputs};{self.layout};{','.join(map(str, self.paths))}")

    def __str__(self) -> str:
        """The canonical string; two plans are equal if and only if their strings are."""
        return self._string

    def __hash__(self) -> int:
        return hash(self._string)  # a str remembers its hash

    @classmethod
    def parse(cls, text: str) -> ProductPlan:
        """The plan whose canonical string is `text`; ValueError for any other text. Cached."""
        if not isinstance(text, str):
            raise TypeError(f"ProductPlan.parse: expected a str, got {type(text).__name__}")
        return _parse(text)

    @classmethod
    def from_instructions(
        cls,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any,
        instructions: Iterable[Sequence[Any]],
        in1_var: Iterable[float] | None = None,
        in2_var: Iterable[float] | None = None,
        out_var: Iterable[float] | None = None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        layout: str = "mul_ir",
        signs: str = "e3nn-0.5",
    ) -> ProductPlan:
        """The plan of e3nn 0.6's ``TensorProduct`` for the same arguments, with the same normalisation.

        instructions: tuples (i_in1, i_in2, i_out, mode, has_weight[, path_weight]). Their coefficient is

            sqrt(path_weight * out_var[i_out] * alpha / x)

        with alpha = dim(ir_out) for irrep_normalization "component" (the default), dim(ir_in1) dim(ir_in2)
        for "norm", 1 for "none"; and x, for path_normalization "element" (the default), the sum over all
        paths into the same i_out of in1_var in2_var n, for "path" this path's in1_var in2_var n times their
        number, for "none" 1; n is the number of (u, v) summed per output. A path with x = 0 is not divided.

        An instruction with a seventh field (path_shape), as e3nn stores them, carries a normalised
        path_weight already, which is taken as it is.

        signs: "e3nn-0.4" gives the product of e3nn 0.4, whose coupling coefficients have other signs.

        Raises as `ProductPlan` does, naming the instruction or the argument.
        """
        blocks = (Irreps(irreps_in1), Irreps(irreps_in2), Irreps(irreps_out))
        _check_choice("irrep_normalization", irrep_normalization, _IRREP_NORMALIZATIONS)
        _check_choice("path_normalization", path_normalization, _PATH_NORMALIZATIONS)
        _check_choice("signs", signs, so3.SIGNS)
        variances = [
            _variances(name, given, irreps)
            for name, given, irreps in zip(
                ("in1_var", "in2_var", "out_var"), (in1_var, in2_var, out_var), blocks, strict=True
            )
        ]
        try:
            numbered = list(enumerate(instructions))
        except TypeError:
            raise TypeError(f"instructions must be an iterable of tuples, got {instructions!r}") from None
        given = [_instruction(i, instruction, blocks) for i, instruction in numbered]
        divisors = _divisors(given, blocks, variances, path_normalization or "element")
        paths = []
        for number, (path, x) in enumerate(zip(given, divisors, strict=True)):
            ir1, ir2, ir3 = blocks[0][path.i_in1].ir, blocks[1][path.i_in2].ir, blocks[2][path.i_out].ir
            coefficient = path.path_weight
            if not path.is_stored:
                alpha = {"component": ir3.dim, "norm": ir1.dim * ir2.dim, "none": 1}
                scale = alpha[irrep_normalization or "component"]
                # The order of operations is e3nn's, so that the coefficient is the same to the last bit.
                square = (scale / x if x > 0.0 else scale) * variances[2][path.i_out] * path.path_weight
                coefficient = _root(f"instructions[{number}]", square, path.path_weight)
            if signs == "e3nn-0.4" and so3.changes_sign(ir1.l, ir2.l, ir3.l):
                coefficient = -coefficient
            paths.append(Path(*path[:5], coefficient))
        return cls(*blocks, tuple(paths), layout)

    def blocks(self, path: Path) -> tuple[MulIr, MulIr, MulIr]:
        """The (mul, ir) of the three blocks that `path` couples."""
        return self.irreps_in1[path.i_in1], self.irreps_in2[path.i_in2], self.irreps_out[path.i_out]

    def entries(self, path: Path) -> tuple[so3.Entry, ...]:
        """The non-zero coupling coefficients of `path`, before its coefficient."""
        return so3.coupling(*(block.ir.l for block in self.blocks(path)))

    @cached_property
    def path_shapes(self) -> tuple[tuple[int, ...], ...]:
        """For every path, weighted or not, the shape that its weights have or would have."""
        return tuple(
            _path_shape(path.mode, *(block.mul for block in self.blocks(path))) for path in self.paths
        )

    @cached_property
    def weight_shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """For every path, the shape of its weights, or None if it has no weights."""
        return tuple(
            shape if path.has_weight else None
            for path, shape in zip(self.paths, self.path_shapes, strict=True)
        )

    @cached_property
    def weight_slices(self) -> tuple[tuple[int, tuple[int, ...]] | None, ...]:
        """For every path, (offset, shape) of its weights within a row of the weight, or None.

        The weights of weighted paths follow each other in the order of the paths, each in C order.
        """
        slices: list[tuple[int, tuple[int, ...]] | None] = []
        offset = 0
        for shape in self.weight_shapes:
            slices.append(None if shape is None else (offset, shape))
            offset += 0 if shape is None else math.prod(shape)
        return tuple(slices)

    @cached_property
    def weight_numel(self) -> int:
        """Length of a row of the weight."""
        return sum(math.prod(shape) for shape in self.weight_shapes if shape is not None)

    def num_terms(self, path: Path) -> int:
        """Number of products coefficient * weight * x * y that `path` adds up per row, over all outputs."""
        mul1, mul2, mul3 = (block.mul for block in self.blocks(path))
        pairs = mul1 * (mul2 - 1) // 2
        tuples = {
            "uvw": mul1 * mul2 * mul3,
            "uuw": mul1 * mul3,
            "uuu": mul1,
            "uvu<v": pairs,
            "u<vw": pairs * mul3,
        }.get(path.mode, mul1 * mul2)
        return tuples * len(self.entries(path))

    def algebra(self) -> str:
        """The plan for people: its spaces, then one line per path with what it couples and what it costs."""
        head = (
            f"({self.irreps_in1}) * ({self.irreps_in2}) -> {self.irreps_out}",
            f"layout {self.layout}, {len(self.paths)} paths, {self.weight_numel} weights",
        )
        return "\n".join((*head, *(self._line(i) for i in range(len(self.paths)))))

    def _line(self, i: int) -> str:
        path, located = self.paths[i], self.weight_slices[i]
        x, y, out = self.blocks(path)
        u, v, w = _INDICES[path.mode]
        weight = ""
        if located is not None:
            offset, shape = located
            span = f"{offset}:{offset + math.prod(shape)}"
            weight = f" W{i}[{_WEIGHT_INDICES[path.mode]}]"
        formula = (
            f"out{path.i_out}[{w}] += {path.coefficient:.6g}{weight} x{path.i_in1}[{u}] y{path.i_in2}[{v}]"
        )
        coupled = f"{x} * {y} -> {out}"
        stored = f"W{i} = weight[{span}] as {shape}" if located is not None else "no weights"
        return f"  {i:3d}  {coupled}  ({path.mode})  {formula};  {stored}, {self.num_terms(path)} terms"


def _path_shape(mode: str, mul1: int, mul2: int, mul3: int) -> tuple[int, ...]:
    pairs = mul1 * (mul2 - 1) // 2
    return {
        "uvw": (mul1, mul2, mul3),
        "uuw": (mul1, mul3),
        "uuu": (mul1,),
        "uvu<v": (pairs,),
        "u<vw": (pairs, mul3),
    }.get(mode, (mul1, mul2))


def _num_summed(mode: str, mul1: int, mul2: int) -> int:
    """Number of pairs (u, v) that e3nn counts as added up in one output of a path."""
    return {
        "uvw": mul1 * mul2,
        "uvu": mul2,
        "uvv": mul1,
        "uuw": mul1,
        "u<vw": mul1 * (mul2 - 1) // 2,
    }.get(mode, 1)


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(map(repr, words))


def _check_choice(name: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {_quoted(allowed)}, got {value!r}")


def _fields(path: Path | Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(path, Path):
        return path.i_in1, path.i_in2, path.i_out, path.mode, path.has_weight, path.coefficient
    if len(path) != 6:
        raise ValueError(f"ProductPlan: a path has the six fields of Path, got {path!r}")
    return tuple(path)


def _variances(name: str, given: Iterable[float] | None, irreps: Irreps) -> list[float]:
    if given is None:
        return [1.0] * len(irreps)
    variances = [float(value) for value in given]
    if len(variances) != len(irreps):
        raise ValueError(
            f"{name} must have {len(irreps)} entries, one per block of '{irreps}', got {len(variances)}"
        )
    return variances


class _Instruction(NamedTuple):
    """A checked instruction; is_stored if its path_weight is a coefficient already."""

    i_in1: int
    i_in2: int
    i_out: int
    mode: str
    has_weight: bool
    path_weight: float
    is_stored: bool


def _instruction(number: int, instruction: Sequence[Any], blocks: tuple[Irreps, ...]) -> _Instruction:
    fields = tuple(instruction)
    label = f"instructions[{number}]"
    if len(fields) not in (5, 6, 7):
        raise ValueError(
            f"{label}: expected (i_in1, i_in2, i_out, mode, has_weight[, path_weight]), got {fields!r}"
        )
    _check_path("instructions", number, blocks, *fields[:5])
    i_in1, i_in2, i_out, mode, has_weight = fields[:5]
    path_weight = float(fields[5]) if len(fields) > 5 else 1.0
    if not math.isfinite(path_weight):
        raise ValueError(f"{label}: path_weight must be finite, got {path_weight!r}")
    return _Instruction(
        int(i_in1), int(i_in2), int(i_out), mode, bool(has_weight), path_weight, len(fields) == 7
    )


def _root(label: str, square: float, path_weight: float) -> float:
    if not square >= 0.0:
        raise ValueError(
            f"{label}: the coefficient is the square root of path_weight, variances and dimensions, whose "
            f"product must be >= 0, got {square!r} for path_weight {path_weight!r}"
        )
    return math.sqrt(square)


def _divisors(
    instructions: list[_Instruction],
    blocks: tuple[Irreps, ...],
    variances: list[list[float]],
    path_normalization: str,
) -> list[float]:
    """The x of the normalisation (see `ProductPlan.from_instructions`) of each instruction."""
    if path_normalization == "none":
        return [1.0] * len(instructions)
    own = [
        variances[0][path.i_in1]
        * variances[1][path.i_in2]
        * _num_summed(path.mode, blocks[0][path.i_in1].mul, blocks[1][path.i_in2].mul)
        for path in instructions
    ]
    outputs = [path.i_out for path in instructions]
    if path_normalization == "path":
        return [x * outputs.count(i_out) for x, i_out in zip(own, outputs, strict=True)]
    total: dict[int, float] = defaultdict(float)
    for x, i_out in zip(own, outputs, strict=True):
        total[i_out] += x
    return [total[i_out] for i_out in outputs]


def _check_path(name: str, number: int, blocks: tuple[Irreps, ...], *path: Any) -> None:
    """IndexError or ValueError, naming the path, if it cannot exist between `blocks`."""
    try:
        _check_mode(*_check_blocks(blocks, *path[:3]), *path[3:])
    except (IndexError, ValueError) as error:
        shown = ", ".join(map(repr, path))
        raise type(error)(f"{name}[{number}] = ({shown}): {error}") from None


def _check_blocks(blocks: tuple[Irreps, ...], *indices: Any) -> list[int]:
    """The multiplicities of the three blocks, if they exist and their irreps couple."""
    found = []
    for name, i, irreps in zip(("in1", "in2", "out"), indices, blocks, strict=True):
        if isinstance(i, bool) or not hasattr(i, "__index__"):
            raise ValueError(f"i_{name} must be an integer")
        if not 0 <= i < len(irreps):
            raise IndexError(
                f"i_{name} must be >= 0 and < {len(irreps)}, the blocks of irreps_{name} = '{irreps}'"
            )
        found.append(irreps[i])
    (mul1, ir1), (mul2, ir2), (mul3, ir3) = found
    (l1, p1), (l2, p2), (l3, p3) = ir1, ir2, ir3
    if p1 * p2 != p3 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"{ir1} * {ir2} does not contain {ir3}, only {'+'.join(map(str, ir1 * ir2))}")
    return [mul1, mul2, mul3]


def _check_mode(mul1: int, mul2: int, mul3: int, mode: Any, has_weight: Any) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {_quoted(MODES)}, got {mode!r}")
    if mode in _ALWAYS_WEIGHTED and not has_weight:
        raise ValueError(f"mode {mode!r} needs has_weight = True")
    rule, holds = _multiplicity_rule(mode, bool(has_weight), mul1, mul2, mul3)
    if not holds:
        raise ValueError(
            f"mode {mode!r} needs {rule}, got mul_in1, mul_in2, mul_out = {mul1}, {mul2}, {mul3}"
        )


def _multiplicity_rule(mode: str, has_weight: bool, mul1: int, mul2: int, mul3: int) -> tuple[str, bool]:
    """What the mode asks of the three multiplicities, and whether these satisfy it."""
    if mode == "uvu":
        return "mul_out = mul_in1", mul3 == mul1
    if mode == "uvv":
        return "mul_out = mul_in2", mul3 == mul2
    if mode == "uuw" and not has_weight:
        return "mul_in1 = mul_in2 and mul_out = 1 where it has no weights", mul1 == mul2 and mul3 == 1
    if mode in ("uuw", "u<vw"):
        return "mul_in1 = mul_in2", mul1 == mul2
    if mode == "uuu":
        return "mul_in1 = mul_in2 = mul_out", mul1 == mul2 == mul3
    if mode == "uvuv":
        return "mul_out = mul_in1 mul_in2", mul3 == mul1 * mul2
    if mode == "uvu<v":
        pairs = mul1 * (mul1 - 1) // 2
        return "mul_in1 = mul_in2 and mul_out = mul_in1 (mul_in1 - 1) / 2", mul1 == mul2 and mul3 == pairs
    return "", True


@lru_cache(maxsize=1024)
def _parse(text: str) -> ProductPlan:
    try:
        spaces, layout, paths = text.split(";")
        inputs, irreps_out = spaces.split("->")
        irreps_in1, irreps_in2 = inputs.split("*")
    except ValueError:
        raise ValueError(
            f"ProductPlan.parse: expected 'irreps_in1*irreps_in2->irreps_out;layout;paths', got {text!r}"
        ) from None
    listed = tuple(map(Path.parse, paths.split(","))) if paths else ()
    plan = ProductPlan(irreps_in1, irreps_in2, irreps_out, listed, layout)
    if str(plan) != text:
        raise ValueError(f"ProductPlan.parse: not a canonical string: {text!r} (canonical: {str(plan)!r})")
    return plan
