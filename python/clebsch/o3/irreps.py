"""Irrep and Irreps with what needs numbers: random features and the matrices of rotations and inversions.

Labels, grammar and algebra are those of `algebra.irreps`; the matrices are made in `o3.wigner`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..algebra import irreps as algebra
from . import wigner

__all__ = ["Irrep", "Irreps"]


class _Represented:
    """Matrices of O(3) on a direct sum of irreps, whose (multiplicity, irrep) pairs `_pairs` gives."""

    __slots__ = ()

    def _pairs(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def D_from_angles(
        self, alpha: Tensor, beta: Tensor, gamma: Tensor, k: Tensor | int | None = None
    ) -> Tensor:
        """Matrix (..., dim, dim) of the rotation Ry(alpha) Rx(beta) Ry(gamma) followed by k inversions.

        The angles, in radians, and k (None: no inversion) have shapes (...) that broadcast.
        """
        return wigner.D_from_angles(self._pairs(), alpha, beta, gamma, k)

    def D_from_quaternion(self, q: Tensor, k: Tensor | int | None = None) -> Tensor:
        """Matrix (..., dim, dim) of the rotation with quaternion q (..., 4), then k inversions."""
        return wigner.D_from_quaternion(self._pairs(), q, k)

    def D_from_matrix(self, R: Tensor) -> Tensor:
        """Matrix (..., dim, dim) of R (..., 3, 3), a rotation with or without inversion.

        Raises ValueError where the determinant of R is neither 1 nor -1.
        """
        return wigner.D_from_matrix(self._pairs(), R)

    def D_from_axis_angle(self, axis: Tensor, angle: Tensor) -> Tensor:
        """Matrix (..., dim, dim) of the rotation by angle (...), in radians, about axis (..., 3)."""
        return wigner.D_from_axis_angle(self._pairs(), axis, angle)


class Irrep(_Represented, algebra.Irrep):
    __slots__ = ()
    __doc__ = algebra.Irrep.__doc__

    def _pairs(self) -> tuple[Any, ...]:
        return ((1, self),)


class Irreps(_Represented, algebra.Irreps):
    __slots__ = ()
    __doc__ = algebra.Irreps.__doc__
    irrep_class = Irrep
    # what e3nn's own tools look for when they are handed a module with irreps of another class
    _e3nn_irreps_marker = True

    def _pairs(self) -> tuple[Any, ...]:
        return tuple(self)

    def randn(
        self,
        *size: int,
        normalization: str = "component",
        requires_grad: bool = False,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Tensor:
        """Random features: a tensor of shape `size`, in which the one -1 is replaced by dim.

        normalization: "component" draws each component from a normal distribution of variance 1; "norm" draws
        directions, so that every copy of every irrep has norm 1. With one seed, both give e3nn's numbers.
        ValueError for another normalization or a size without exactly one -1.
        """
        if size.count(-1) != 1:
            raise ValueError(f"Irreps.randn: size must contain -1 once, for the irreps, got {size}")
        axis = size.index(-1)
        before, after = size[:axis], size[axis + 1 :]
        if normalization == "component":
            draw = torch.randn(*before, self.dim, *after, dtype=dtype, device=device)
        elif normalization == "norm":
            parts = [torch.zeros(*before, 0, *after, dtype=dtype, device=device)]
            for mul, ir in self:
                part = torch.randn(*before, mul, ir.dim, *after, dtype=dtype, device=device)
                part = part / part.norm(dim=axis + 1, keepdim=True)
                parts.append(part.reshape(*before, mul * ir.dim, *after))
            draw = torch.cat(parts, dim=axis)
        else:
            raise ValueError(
                f"Irreps.randn: normalization must be 'component' or 'norm', got {normalization!r}"
            )
        return draw.requires_grad_(requires_grad)


Irrep.irreps_class = Irreps


def allowed_irreps(name: str, given: Iterable[Any] | None) -> frozenset[Irrep] | None:
    """The irreps of a filter; None, which allows all, stays None. ValueError, with `name` in front, if
    `given` is no iterable of irreps.
    """
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be an iterable of irreps, got {given!r}")
    try:
        return frozenset(map(Irrep, given))
    except ValueError as error:
        raise ValueError(f"{name} must be an iterable of irreps: {error}") from None
