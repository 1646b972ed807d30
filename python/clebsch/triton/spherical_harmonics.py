"""Source and operators of spherical harmonics and two derivatives: lanes are points, code is straight.

With the pole y, t = x^2 + z^2 and c_m + i s_m = (z + i x)^m, harmonics are Y_{l,m} = q_l^m c_m and
Y_{l,-m} = q_l^m s_m, and q_l^m follows the recurrence of csrc/cpu/spherical_harmonics.inl.h, whose rounding
grows like l. Derivatives are harmonics of the degree below, contracted with coupling coefficients,

    d Y^l_i / d x_k = sum_j G^l[i, k, j] Y^{l-1}_j,   G^l[i, k, j] ~ C^{l-1,1,l}[j, k, i],

so that both derivatives are sums of the same products. Code goes by orders m, for in them a harmonic of order
m meets only those of orders m - 1, m and m + 1: what comes down is loaded when it is first met, what is
complete is stored, and a lane keeps few numbers of each degree. Kernels have a few degrees each, or a few
orders of a high one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from math import pi, sqrt

from torch import Tensor

from clebsch.algebra import so3

from .checks import contiguous_rows, require_rows
from .launch import launch
from .source import Source, Writer, product, total

__all__ = [
    "sources",
    "spherical_harmonics",
    "spherical_harmonics_backward",
    "spherical_harmonics_double_backward",
]

NORMALIZATIONS = ("integral", "component", "norm")
AXES = ("x", "y", "z")


MOST_LINES = 600
"""Of a kernel, about: what Triton takes to compile it grows like their square."""

_STEPS = {"forward": (64, 1, 3), "backward": (16, 6, 6), "double_backward": (6, 22, 12)}
"""Of a step: how many degrees a kernel takes at most, how many numbers of a degree a lane keeps, and how many
lines there are for a harmonic."""


@lru_cache(maxsize=256)
def sources(
    dtype: str, ls: tuple[int, ...], normalize: bool, normalization: str, step: str
) -> tuple[Source, ...]:
    """The kernels of a step, "forward", "backward" or "double_backward", to be run in this order: later ones
    add to what earlier ones wrote."""
    fixed = dtype, ls, normalize, normalization
    parts = enumerate(_parts(sorted(set(ls)), step))
    return tuple(_Kernel(*fixed, degrees, orders).finish(step, number) for number, (degrees, orders) in parts)


def _parts(degrees: Sequence[int], step: str) -> Iterator[tuple[list[int], range]]:
    """Degrees that share a kernel, and the orders that it goes through; all of them, as a rule."""
    most, _, lines = _STEPS[step]

    def size(group: Sequence[int], m: int) -> int:
        return 2 * (max(group) + 1 - m) + lines * (2 if m else 1) * sum(l >= m for l in group)

    groups: list[list[int]] = [[]]
    for l in degrees:
        wider = [*groups[-1], l]
        if groups[-1] and (len(wider) > most or sum(size(wider, m) for m in range(l + 1)) > MOST_LINES):
            groups.append([])
        groups[-1].append(l)
    for group in groups:
        first, held, end = 0, 0, max(group, default=0) + 1
        for m in range(end):
            if m > first and held + size(group, m) > MOST_LINES:
                yield group, range(first, m)
                first, held = m, 0
            held += size(group, m) if group else 0
        yield group, range(first, end)


class _Kernel:
    """The source for some of the degrees, as far as harmonics of some orders go."""

    def __init__(
        self,
        dtype: str,
        ls: tuple[int, ...],
        normalize: bool,
        normalization: str,
        degrees: Sequence[int],
        orders: range,
    ) -> None:
        self.write, self.normalize, self.normalization = Writer(dtype), normalize, normalization
        self.double, self.degrees, self.orders = dtype == "float64", degrees, orders
        self.squares = "norm" if normalization == "norm" else "component"
        self.columns: dict[int, list[int]] = {}  # where a degree begins in a row, as often as it is there
        column = 0
        for l in ls:
            self.columns.setdefault(l, []).append(column)
            column += 2 * l + 1
        self.met: set[str] = set()  # numbers that have a name

    def finish(self, step: str, number: int) -> Source:
        """The kernel of a step, the number-th one; all but the first add to grad_points."""
        self.adds = number > 0
        self.points()
        getattr(self, step)()
        degrees = ", ".join(map(str, self.degrees))
        words = 2 if self.double else 1
        return self.write.finish(
            f"spherical_harmonics_{step}" + (f"_{number}" if number else ""),
            [
                f"{step.replace('_', ' ')} of degrees {degrees}, {self.normalization}, "
                f"normalize = {self.normalize}, orders {self.orders.start} to {self.orders.stop - 1}"
            ],
            lanes=0,
            values=_STEPS[step][1] * len(self.degrees) * words,
            wide=False,
            adds=self.adds,
        )

    # Points

    def vector(self, operand: str) -> None:
        row = self.write.row(operand, "lane")
        for i, axis in enumerate(AXES):
            self.write.load(f"{operand}_{axis}", f"{row} + {i}", "there")

    def points(self) -> None:
        """u, where harmonics are evaluated; with normalize its length's `inverse`, and `bent`, u or zero."""
        write = self.write
        write.line("lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
        write.line(f"there = lane < {write.argument('rows')}")
        self.vector("points")
        if not self.normalize:
            for axis in AXES:
                write.line(f"u_{axis} = points_{axis}")
            return
        most, scale = (2.0**1000, 2.0**-520) if self.double else (2.0**120, 2.0**-66)
        # Literals in tl.where are rounded to float32 by Triton before 3.9.
        write.line(f"least = tl.full((BLOCK,), 1e-24, {write.number})")
        write.line(f"square = {_dot('points', 'points')}")
        write.line("tiny = square < least")
        write.line(f"scale = tl.where(square > {most!r}, {scale!r}, 1.0).to({write.number})")
        for axis in AXES:
            write.line(f"scaled_{axis} = points_{axis} * scale")
        write.line(f"square = tl.where(tiny, least, {_dot('scaled', 'scaled')})")
        one = f"tl.full((BLOCK,), 1.0, {write.number})"
        write.line(
            f"inverse = {one} / tl.sqrt(square)"
            if self.double
            else f"inverse = tl.div_rn({one}, tl.sqrt_rn(square))"
        )
        for axis in AXES:
            write.line(f"u_{axis} = scaled_{axis} * inverse")
        write.line("inverse = inverse * scale")
        for axis in AXES:
            write.line(f"bent_{axis} = tl.where(tiny, 0.0, u_{axis})")

    def push(self, result: str, along: str) -> None:
        """The derivative of u along a vector, which is its own transpose."""
        write = self.write
        if not self.normalize:
            for axis in AXES:
                write.line(f"{result}_{axis} = {along}_{axis}")
            return
        write.line(f"along = {_dot('u', along)}")
        for axis in AXES:
            write.line(f"{result}_{axis} = inverse * ({along}_{axis} - bent_{axis} * along)")

    # Harmonics

    def harmonics(self, wanted: set[int], use: Callable[[int, int], None]) -> None:
        """y_{l}_{i} for the wanted degrees, i = m + l, each followed by the lines of `use(l, i)`."""
        write, highest = self.write, max(wanted, default=-1)
        if highest < 0:
            return
        write.line("t = u_x * u_x + u_z * u_z")
        for m in range(min(self.orders.stop, highest + 1)):
            c, s = f"u_z * c_{m - 1} - u_x * s_{m - 1}", f"u_z * s_{m - 1} + u_x * c_{m - 1}"
            if m:
                write.line(f"c_{m} = {c if m > 1 else 'u_z'}")
                write.line(f"s_{m} = {s if m > 1 else 'u_x'}")
            for l in range(m, highest + 1) if m in self.orders else ():
                self.recur(l, m)
                if l in wanted:
                    write.line(f"y_{l}_{l + m} = q_{l}_{m}" + (f" * c_{m}" if m else ""))
                    use(l, l + m)
                if l in wanted and m:
                    write.line(f"y_{l}_{l - m} = q_{l}_{m} * s_{m}")
                    use(l, l - m)

    def recur(self, l: int, m: int) -> None:
        """q_l^m from those of l - 1 and l - 2, split into what goes straight on and how that bends."""
        write = self.write
        if l == m:
            square = self.norm(l, m)
            for k in range(1, 2 * m, 2):
                square *= k * k
            value = so3.signed_root(1, square) * (
                sqrt(0.25 / pi) if self.normalization == "integral" else 1.0
            )
            write.line(f"q_{l}_{m} = tl.full((BLOCK,), {value!r}, {write.number})")
            return
        ratio = self.norm(l, m) / self.norm(l - 1, m)
        if l == m + 1:
            if m:
                write.line(f"d_{l}_{m} = {2.0 * m!r} * (u_y * q_{l - 1}_{m})")
            else:
                write.line(f"d_{l}_{m} = tl.zeros((BLOCK,), {write.number})")
            up = so3.signed_root(1, ratio * (2 * m + 1) ** 2)
            write.line(f"q_{l}_{m} = {product(up, f'(u_y * q_{l - 1}_{m})')}")
            return
        bend = Fraction(l + m - 1, l - m) ** 2 * self.norm(l - 1, m) / self.norm(l - 2, m)
        bent = f"(u_y * d_{l - 1}_{m} - t * q_{l - 2}_{m})"
        write.line(f"d_{l}_{m} = {product(so3.signed_root(1, bend), bent)}")
        write.line(f"q_{l}_{m} = {product(so3.signed_root(1, ratio), f'(u_y * q_{l - 1}_{m} + d_{l}_{m})')}")

    def norm(self, l: int, m: int) -> Fraction:
        return so3.harmonic_norms(l, self.squares)[m]

    # Derivatives

    def slopes(self, l: int) -> list[tuple[int, int, int, float]]:
        """(i, k, j, G^l[i, k, j]) that are not zero."""
        return _slopes(l, self.normalization == "norm")

    def meeting(self, l: int, j: int) -> list[tuple[int, int, float]]:
        """(i, k, G^l[i, k, j]): the components of degree l that meet a harmonic of the degree below."""
        return [(i, k, value) for i, k, met, value in self.slopes(l) if met == j]

    def gradient(self, l: int, i: int) -> str:
        """What comes down to a harmonic, over all columns that show it; loaded when it is first met."""
        name, row = f"g_{l}_{i}", self.write.row("grad", "lane")
        if name not in self.met:
            self.met.add(name)
            for n, column in enumerate(self.columns[l]):
                self.write.load("loaded" if n else name, f"{row} + {column + i}", "there")
                if n:
                    self.write.line(f"{name} += loaded")
        return name

    def zero(self, *results: str) -> None:
        """Vectors that begin with nothing."""
        self.write.zeros(f"{result}_{axis}" for result in results for axis in AXES)

    def contract(self, result: str, cotangent: Callable[[int, int], str], l: int, j: int) -> None:
        """result += what harmonic j of the degree below l adds to J(u)^T cotangent."""
        terms: dict[int, list[str]] = {}
        for i, k, value in self.meeting(l, j):
            terms.setdefault(k, []).append(product(value, cotangent(l, i)))
        for k, parts in sorted(terms.items()):
            self.write.line(f"{result}_{AXES[k]} += ({total(parts)}) * y_{l - 1}_{j}")

    # Steps

    def forward(self) -> None:
        self.harmonics(set(self.degrees), lambda l, i: self.put("out", l, i, f"y_{l}_{i}"))

    def put(self, result: str, l: int, i: int, value: str) -> None:
        """Store a component of a degree wherever a row shows it."""
        row = self.write.row(result, "lane")
        for column in self.columns[l]:
            self.write.store(f"{row} + {column + i}", value, "there")

    def put_vector(self, result: str, name: str) -> None:
        row = self.write.row(result, "lane")
        for i, axis in enumerate(AXES):
            if self.adds:
                self.write.load("earlier", f"{row} + {i}", "there")
                self.write.line(f"{name}_{axis} += earlier")
            self.write.store(f"{row} + {i}", f"{name}_{axis}", "there")

    def backward(self) -> None:
        self.zero("j")
        wanted = {l - 1 for l in self.degrees if l > 0}
        self.harmonics(wanted, lambda l, j: self.contract("j", self.gradient, l + 1, j))
        self.push("result", "j")
        self.put_vector("grad_points", "result")

    def double_backward(self) -> None:
        self.vector("h")
        self.push("p", "h")
        self.zero("j", "second")
        if 0 in self.degrees and 0 in self.orders:
            self.write.zeros(["gg_0_0"])
            self.put("out", 0, 0, "gg_0_0")
        met = {(l, i, j) for l in self.degrees if l for i, _, j, _ in self.slopes(l)}
        left = Counter((l, i) for l, i, j in met if abs(j - l + 1) in self.orders)  # still to come
        self.begun = {(l, i) for l, i, j in met if abs(j - l + 1) < self.orders.start}

        def use(l: int, j: int) -> None:
            if l + 1 in self.degrees:
                self.add_along(l + 1, j, left)
                if self.normalize:
                    self.contract("j", self.gradient, l + 1, j)
            if l + 2 in self.degrees:
                self.contract("second", self.pushed, l + 1, j)

        self.harmonics({l - n for l in self.degrees for n in (1, 2) if l >= n}, use)
        if self.normalize:
            self.bend()
        self.put_vector("grad_points", "second")

    def add_along(self, l: int, j: int, left: dict[tuple[int, int], int]) -> None:
        """gg_{l}_{i}, the derivatives of harmonics along p, += what harmonic j of the degree below adds;
        stored when nothing is left to come."""
        terms: dict[int, list[str]] = {}
        for i, k, value in self.meeting(l, j):
            terms.setdefault(i, []).append(product(value, f"p_{AXES[k]}"))
        for i, parts in terms.items():
            name = f"gg_{l}_{i}"
            if name not in self.met and (l, i) in self.begun:
                place = f"{self.write.row('out', 'lane')} + {self.columns[l][0] + i}"
                self.write.load(name, place, "there")
            sign = "+=" if name in self.met or (l, i) in self.begun else "="
            self.met.add(name)
            self.write.line(f"{name} {sign} ({total(parts)}) * y_{l - 1}_{j}")
            left[l, i] -= 1
            if not left[l, i]:
                self.put("out", l, i, name)

    def pushed(self, l: int, j: int) -> str:
        """f_{l}_{j}: what comes down to a harmonic from derivatives along p of the degree above."""
        name = f"f_{l}_{j}"
        if name not in self.met:
            self.met.add(name)
            met = self.meeting(l + 1, j)
            parts = [product(value, f"p_{AXES[k]}", self.gradient(l + 1, i)) for i, k, value in met]
            self.write.line(f"{name} = {total(parts)}")
        return name

    def bend(self) -> None:
        """second, the derivative of J(u)^T grad along p, becomes that of what `push` makes of it."""
        write = self.write
        write.line(f"along = {_dot('u', 'j')}")
        write.line(f"turn = {_dot('p', 'j')}")
        write.line(f"away = {_dot('u', 'h')}")
        write.line(f"forth = {_dot('u', 'second')}")
        for axis in AXES:
            write.line(f"across = inverse * (j_{axis} - bent_{axis} * along)")
            write.line(f"turned = u_{axis} * (forth + turn) + along * p_{axis} + away * across")
            write.line(f"second_{axis} = inverse * (second_{axis} - tl.where(tiny, 0.0, turned))")


@lru_cache(maxsize=256)
def _slopes(l: int, are_norm: bool) -> list[tuple[int, int, int, float]]:
    entries = so3.coupling(l - 1, 1, l)
    pole = next(e for e in entries if (e.m1, e.m2, e.m3) == (l - 1, 1, l))
    square = Fraction(1) if are_norm else Fraction(2 * l + 1, 2 * l - 1)
    scale = l * l * square / pole.square
    return [(e.m3, e.m2, e.m1, so3.signed_root(e.sign * pole.sign, e.square * scale)) for e in entries]


def _dot(a: str, b: str) -> str:
    return f"{a}_x * {b}_x + ({a}_y * {b}_y + {a}_z * {b}_z)"


def spherical_harmonics(points: Tensor, ls: Sequence[int], normalize: bool, normalization: str) -> Tensor:
    """clebsch::spherical_harmonics"""
    points, columns = _checked(points, ls, normalization)
    out = points.new_empty((points.shape[0], columns))
    _run("forward", {"points": points, "out": out}, ls, normalize, normalization)
    return out


def spherical_harmonics_backward(
    grad: Tensor, points: Tensor, ls: Sequence[int], normalize: bool, normalization: str
) -> Tensor:
    """clebsch::spherical_harmonics_backward"""
    points, columns = _checked(points, ls, normalization)
    grad = _like(points, "grad", grad, columns)
    grad_points = points.new_empty((points.shape[0], 3))
    given = {"points": points, "grad": grad, "grad_points": grad_points}
    _run("backward", given, ls, normalize, normalization)
    return grad_points


def spherical_harmonics_double_backward(
    grad_grad_points: Tensor,
    grad: Tensor,
    points: Tensor,
    ls: Sequence[int],
    normalize: bool,
    normalization: str,
) -> tuple[Tensor, Tensor]:
    """clebsch::spherical_harmonics_double_backward"""
    points, columns = _checked(points, ls, normalization)
    h = _like(points, "grad_grad_points", grad_grad_points, 3)
    grad = _like(points, "grad", grad, columns)
    grad_grad, grad_points = (
        points.new_empty((points.shape[0], columns)),
        points.new_empty((points.shape[0], 3)),
    )
    given = {"points": points, "grad": grad, "h": h, "out": grad_grad, "grad_points": grad_points}
    _run("double_backward", given, ls, normalize, normalization)
    return grad_grad, grad_points


def _run(step: str, operands: dict[str, Tensor], ls, normalize: bool, normalization: str) -> None:
    points = operands["points"]
    dtype = str(points.dtype).removeprefix("torch.")
    strides = {f"{name}_stride": operand.stride(0) for name, operand in operands.items()}
    for kernel in sources(dtype, tuple(ls), normalize, normalization, step):
        launch(kernel, points.shape[0], {**operands, **strides, "rows": points.shape[0]})


def _checked(points: Tensor, ls: Sequence[int], normalization: str) -> tuple[Tensor, int]:
    require_rows("spherical_harmonics", "points", points, points, "points", 3)
    for l in ls:
        if l < 0:
            raise ValueError(f"spherical_harmonics: ls must be >= 0, got {l}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            "spherical_harmonics: normalization must be 'integral', 'component' or 'norm', got "
            f"'{normalization}'"
        )
    return contiguous_rows(points), sum(2 * l + 1 for l in ls)


def _like(points: Tensor, name: str, operand: Tensor, columns: int) -> Tensor:
    require_rows("spherical_harmonics", name, operand, points, "points", columns)
    if operand.shape[0] != points.shape[0]:
        raise ValueError(
            f"spherical_harmonics: {name} must have {points.shape[0]} rows, got {operand.shape[0]}"
        )
    return contiguous_rows(operand)
