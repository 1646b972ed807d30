"""Source and operators of spherical harmonics and two derivatives: lanes are points, code is straight.

With the pole y, t = x^2 + z^2 and c_m + i s_m = (z + i x)^m, harmonics are Y_{l,m} = q_l^m c_m and
Y_{l,-m} = q_l^m s_m, and q_l^m follows the recurrence of csrc/cpu/spherical_harmonics.inl.h, whose rounding
grows like l. Derivatives are harmonics of the degree below, contracted with coupling coefficients,

    d Y^l_i / d x_k = sum_j G^l[i, k, j] Y^{l-1}_j,   G^l[i, k, j] ~ C^{l-1,1,l}[j, k, i],

so that both derivatives are sums of the same products.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import pi, sqrt

from torch import Tensor

from clebsch.algebra import so3

from .checks import contiguous_rows, require_rows
from .launch import launch
from .source import Source, Writer, product, require_few, total

__all__ = [
    "source",
    "spherical_harmonics",
    "spherical_harmonics_backward",
    "spherical_harmonics_double_backward",
]

NORMALIZATIONS = ("integral", "component", "norm")
AXES = ("x", "y", "z")


@lru_cache(maxsize=256)
def source(dtype: str, ls: tuple[int, ...], normalize: bool, normalization: str, step: str) -> Source:
    """The kernel of a step: "forward", "backward" or "double_backward"."""
    highest = max(ls, default=0)
    require_few("spherical_harmonics", f"degree {highest}", 5 * (highest + 1) ** 2)
    kernel = _Kernel(dtype, ls, normalize, normalization)
    kernel.points()
    getattr(kernel, step)()
    degrees = ", ".join(map(str, ls))
    return kernel.write.finish(
        f"spherical_harmonics_{step}",
        [f"{step.replace('_', ' ')} of degrees {degrees}, {normalization}, {normalize = }"],
        lanes=0,
        values=0,
        contiguous=False,
    )


class _Kernel:
    def __init__(self, dtype: str, ls: tuple[int, ...], normalize: bool, normalization: str) -> None:
        self.write, self.ls, self.normalize, self.normalization = Writer(dtype), ls, normalize, normalization
        self.double = dtype == "float64"
        self.degrees = sorted(set(ls))
        self.squares = "norm" if normalization == "norm" else "component"

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

    def harmonics(self, wanted: Sequence[int]) -> None:
        """y_{l}_{i} for the wanted degrees, i = m + l."""
        write, highest = self.write, max(wanted, default=-1)
        if highest < 0:
            return
        write.line("t = u_x * u_x + u_z * u_z")
        for m in range(1, highest + 1):
            c, s = (
                ("u_z", "u_x")
                if m == 1
                else (f"u_z * c_{m - 1} - u_x * s_{m - 1}", f"u_z * s_{m - 1} + u_x * c_{m - 1}")
            )
            write.line(f"c_{m} = {c}")
            write.line(f"s_{m} = {s}")
        for l in range(highest + 1):
            for m in range(l + 1):
                self.recur(l, m)
                if l in wanted:
                    write.line(f"y_{l}_{l + m} = q_{l}_{m}" + (f" * c_{m}" if m else ""))
                    if m:
                        write.line(f"y_{l}_{l - m} = q_{l}_{m} * s_{m}")

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
        entries = so3.coupling(l - 1, 1, l)
        pole = next(e for e in entries if (e.m1, e.m2, e.m3) == (l - 1, 1, l))
        square = Fraction(1) if self.normalization == "norm" else Fraction(2 * l + 1, 2 * l - 1)
        scale = l * l * square / pole.square
        return [(e.m3, e.m2, e.m1, so3.signed_root(e.sign * pole.sign, e.square * scale)) for e in entries]

    def gradients(self) -> None:
        """g_{l}_{i}: what comes down to each harmonic, over all columns that show it."""
        row = self.write.row("grad", "lane")
        seen: set[int] = set()
        column = 0
        for l in self.ls:
            for i in range(2 * l + 1):
                self.write.load("loaded" if l in seen else f"g_{l}_{i}", f"{row} + {column}", "there")
                if l in seen:
                    self.write.line(f"g_{l}_{i} += loaded")
                column += 1
            seen.add(l)

    def contract(self, result: str, cotangent: str, degrees: Sequence[int]) -> None:
        """result = J(u)^T cotangent."""
        write = self.write
        for axis in AXES:
            write.line(f"{result}_{axis} = tl.zeros((BLOCK,), {write.number})")
        for l in degrees:
            terms: dict[tuple[int, int], list[str]] = {}
            for i, k, j, value in self.slopes(l) if l else ():
                terms.setdefault((k, j), []).append(product(value, f"{cotangent}_{l}_{i}"))
            for (k, j), parts in sorted(terms.items()):
                write.line(f"{result}_{AXES[k]} += ({total(parts)}) * y_{l - 1}_{j}")

    # Steps

    def forward(self) -> None:
        self.harmonics(self.degrees)
        self.put("out", "y")

    def put(self, result: str, name: str) -> None:
        row, column = self.write.row(result, "lane"), 0
        for l in self.ls:
            for i in range(2 * l + 1):
                self.write.store(f"{row} + {column}", f"{name}_{l}_{i}", "there")
                column += 1

    def put_vector(self, result: str, name: str) -> None:
        row = self.write.row(result, "lane")
        for i, axis in enumerate(AXES):
            self.write.store(f"{row} + {i}", f"{name}_{axis}", "there")

    def backward(self) -> None:
        self.harmonics([l - 1 for l in self.degrees if l > 0])
        self.gradients()
        self.contract("j", "g", self.degrees)
        self.push("result", "j")
        self.put_vector("grad_points", "result")

    def double_backward(self) -> None:
        write = self.write
        self.vector("h")
        self.push("p", "h")
        self.harmonics(sorted({l - n for l in self.degrees for n in (1, 2) if l >= n}))
        self.gradients()
        lower: set[int] = set()
        for l in self.degrees:
            first, second = {i: [] for i in range(2 * l + 1)}, {}
            for i, k, j, value in self.slopes(l) if l else ():
                first[i].append(product(value, f"p_{AXES[k]}", f"y_{l - 1}_{j}"))
                second.setdefault(j, []).append(product(value, f"p_{AXES[k]}", f"g_{l}_{i}"))
            for i, parts in first.items():
                write.line(f"gg_{l}_{i} = {total(parts) if parts else f'tl.zeros((BLOCK,), {write.number})'}")
            for j, parts in sorted(second.items()):
                write.line(f"f_{l - 1}_{j} = {total(parts)}")
            if l:
                lower.add(l - 1)
        self.put("out", "gg")
        self.contract("second", "f", sorted(lower))
        if self.normalize:
            self.contract("j", "g", self.degrees)
            self.bend()
        self.put_vector("grad_points", "second")

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
    kernel = source(dtype, tuple(ls), normalize, normalization, step)
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
