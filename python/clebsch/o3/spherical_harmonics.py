"""Spherical harmonics as a function and as a layer, with e3nn 0.6's arguments and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from clebsch.o3.irreps import Irreps
from clebsch.ops.spherical_harmonics import check_points, evaluate

__all__ = ["SphericalHarmonics", "spherical_harmonics"]

_NORMALIZATIONS = ("integral", "component", "norm")


class SphericalHarmonics(torch.nn.Module):
    """Real spherical harmonics of vectors; signature and numbers of ``e3nn.o3.SphericalHarmonics`` 0.6.

    Any degree up to 1000, in the convention that `clebsch.o3.spherical_harmonics` writes down.

    Args:
        irreps_out: a degree, a list of degrees (in any order, repeated if wanted), or irreps whose parities
            are those of harmonics of `irreps_in`.
        normalize: whether to divide each vector by max(|x|, 1e-12) first, so that the zero vector gives
            finite values.
        normalization: of the output on the unit sphere: "integral" (the squares integrate to 1), "component"
            (|Y^l|^2 = 2l + 1) or "norm" (|Y^l| = 1).
        irreps_in: "1o" (default) or "1e", what the vectors are.

    Raises:
        ValueError, TypeError: naming the argument that does not fit; for a degree above 1000, where it is
            called.
    """

    def __init__(
        self, irreps_out: Any, normalize: bool, normalization: str = "integral", irreps_in: Any = None
    ) -> None:
        super().__init__()
        if normalization not in _NORMALIZATIONS:
            raise ValueError(
                "SphericalHarmonics: normalization must be one of "
                f"{', '.join(map(repr, _NORMALIZATIONS))}, got {normalization!r}"
            )
        self.normalize, self.normalization = bool(normalize), normalization
        degrees, asked = _degrees(irreps_out)
        self.irreps_in = _input_irreps(irreps_in, asked)
        parity = self.irreps_in[0].ir.p
        for _, ir in asked:
            if ir.p != parity**ir.l:
                raise ValueError(
                    f"SphericalHarmonics: irreps_out = '{asked}' contains {ir}, but harmonics of degree "
                    f"{ir.l} of {self.irreps_in} have parity {parity**ir.l}"
                )
        self.irreps_out = Irreps([(1, (l, parity**l)) for l in degrees]).simplify()
        self._degrees = degrees

    def forward(self, x: Tensor) -> Tensor:
        """x (..., 3), float32 or float64, to (..., irreps_out.dim); differentiable to any order."""
        check_points("SphericalHarmonics", "x", x)
        return evaluate(x, self._degrees, self.normalize, self.normalization)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | normalize={self.normalize}, "
            f"normalization={self.normalization})"
        )


def spherical_harmonics(l: Any, x: Tensor, normalize: bool, normalization: str = "integral") -> Tensor:
    """Real spherical harmonics of degrees `l` of vectors x (..., 3): (..., sum of 2l + 1).

    The pole is y: theta is the angle from y, phi the angle about it from z towards x. For unit vectors and
    normalization "integral" the order m = -l..l of degree l is

        N_0 P_l(cos theta)                           m = 0
        sqrt(2) N_m P_l^m(cos theta) cos(m phi)      m > 0
        sqrt(2) N_n P_l^n(cos theta) sin(n phi)      m = -n < 0

    with N_m^2 = (2l + 1) / (4 pi) (l - m)! / (l + m)! and P_l^m = sin^m theta (d / d cos theta)^m P_l: the
    real and imaginary parts of https://dlmf.nist.gov/14.30.E1 without its sign (-1)^m, times sqrt(2). Without
    `normalize` they are homogeneous polynomials of degree l in x. Arguments and errors are those of
    `SphericalHarmonics`.
    """
    return SphericalHarmonics(l, normalize, normalization)(x)


def _degrees(irreps_out: Any) -> tuple[list[int], Irreps]:
    """Degrees in order, and the irreps that were asked for if it was irreps (no irreps if only degrees)."""
    if isinstance(irreps_out, int):
        irreps_out = [irreps_out]
    if isinstance(irreps_out, (list, tuple, range)) and all(isinstance(l, int) for l in irreps_out):
        degrees, asked = list(irreps_out), Irreps("")
    elif isinstance(irreps_out, Iterable):
        asked = Irreps(irreps_out)
        degrees = asked.ls
    else:
        raise ValueError(
            "SphericalHarmonics: irreps_out must be a degree, a list of degrees or irreps, "
            f"got {irreps_out!r}"
        )
    for l in degrees:
        if l < 0:
            raise ValueError(f"SphericalHarmonics: degrees must be >= 0, got {l}")
    return degrees, asked


def _input_irreps(irreps_in: Any, asked: Irreps) -> Irreps:
    """What the vectors are: as said, or "1e" where an odd degree of even parity is asked for."""
    if irreps_in is None:
        pseudo = any(ir.l % 2 == 1 and ir.p == 1 for _, ir in asked)
        return Irreps("1e" if pseudo else "1o")
    irreps_in = Irreps(irreps_in)
    if irreps_in not in (Irreps("1o"), Irreps("1e")):
        raise ValueError(f"SphericalHarmonics: irreps_in must be '1o' or '1e', got '{irreps_in}'")
    return irreps_in
