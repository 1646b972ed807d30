"""Real spherical harmonics as homogeneous harmonic polynomials of (x, y, z), and their derivatives.

With G^l[i, k, j] = C^{l-1,1,l}[j, k, i] / C^{l-1,1,l}[pole, y, pole], and harmonics normalised to |Y^l| = 1
on the unit sphere (so that Y^l of the pole +y is 1 at m = 0 and zero elsewhere),

    Y^l_i(x)            = sum_{k,j} G^l[i, k, j] x_k Y^{l-1}_j(x)
    d_k Y^l_i(x)        = l sum_j G^l[i, k, j] Y^{l-1}_j(x)

The first holds because the coupling of Y^{l-1} and x to degree l is harmonic and unique; the second because
the derivatives of a harmonic polynomial are harmonic, with Euler's x . grad Y^l = l Y^l for the constant. The
kernels use a recurrence in the Legendre polynomials instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..algebra import so3

Array = NDArray[np.float64]

# As torch.nn.functional.normalize: points shorter than this are divided by it instead of by their length.
SHORTEST = 1e-12


def spherical_harmonics(ls: Sequence[int], points: ArrayLike, normalize: bool, normalization: str) -> Array:
    """Harmonics of degrees `ls`, in that order, of points (..., 3): shape (..., sum of 2l+1).

    normalize: evaluate at points / max(|points|, 1e-12). normalization: "norm" (|Y^l| = 1 on the unit
    sphere), "component" (|Y^l|^2 = 2l+1) or "integral" (the integral of each squared over the sphere is 1).
    """
    direction = _direction(points, normalize)[0]
    solid = _solid_harmonics(max(ls, default=0), direction)
    return _join([scale(l, normalization) * solid[l] for l in ls], direction.shape[:-1], ())


def spherical_harmonics_backward(
    ls: Sequence[int], grad: ArrayLike, points: ArrayLike, normalize: bool, normalization: str
) -> Array:
    """Gradient of <grad, Y(points)> with respect to points: shape (..., 3)."""
    jacobian, _ = derivatives(ls, points, normalize, normalization)
    return np.einsum("...i,...ik->...k", np.asarray(grad, np.float64), jacobian)


def spherical_harmonics_double_backward(
    ls: Sequence[int],
    grad_grad_points: ArrayLike,
    grad: ArrayLike,
    points: ArrayLike,
    normalize: bool,
    normalization: str,
) -> tuple[Array, Array]:
    """Gradients of <grad_grad_points, backward(grad, points)> with respect to grad and to points."""
    jacobian, hessian = derivatives(ls, points, normalize, normalization)
    tangent, grad = np.asarray(grad_grad_points, np.float64), np.asarray(grad, np.float64)
    grad_grad = np.einsum("...k,...ik->...i", tangent, jacobian)
    grad_points = np.einsum("...i,...k,...ikm->...m", grad, tangent, hessian)
    return grad_grad, grad_points


def scale(l: int, normalization: str) -> float:
    """What multiplies harmonics of norm 1 to give the wanted normalization."""
    return {
        "norm": 1.0,
        "component": math.sqrt(2 * l + 1),
        "integral": math.sqrt((2 * l + 1) / (4 * math.pi)),
    }[normalization]


@cache
def _step(l: int) -> Array:
    """G^l of the head of this file, shape (2l+1, 3, 2l-1)."""
    table = np.zeros((2 * l + 1, 3, 2 * l - 1))
    for entry in so3.coupling(l - 1, 1, l):
        table[entry.m3, entry.m2, entry.m1] = entry.value
    return table / table[l, 1, l - 1]


def _solid_harmonics(lmax: int, points: Array) -> list[Array]:
    """Y^0 to Y^lmax at points (..., 3), normalised to 1 on the unit sphere."""
    solid = [np.ones((*points.shape[:-1], 1))]
    for l in range(1, lmax + 1):
        solid.append(np.einsum("ikj,...k,...j->...i", _step(l), points, solid[-1]))
    return solid


def derivatives(
    ls: Sequence[int], points: ArrayLike, normalize: bool, normalization: str
) -> tuple[Array, Array]:
    """First (..., dim, 3) and second (..., dim, 3, 3) derivatives with respect to points."""
    direction, first, second = _direction(points, normalize)
    solid = _solid_harmonics(max(ls, default=0), direction)
    batch = direction.shape[:-1]
    jacobians, hessians = [], []
    for l in ls:
        jacobian, hessian = np.zeros((*batch, 2 * l + 1, 3)), np.zeros((*batch, 2 * l + 1, 3, 3))
        if l >= 1:
            jacobian = l * np.einsum("ikj,...j->...ik", _step(l), solid[l - 1])
        if l >= 2:
            hessian = l * (l - 1) * np.einsum("ikj,jmn,...n->...ikm", _step(l), _step(l - 1), solid[l - 2])
        jacobians.append(scale(l, normalization) * jacobian)
        hessians.append(scale(l, normalization) * hessian)
    jacobian, hessian = _join(jacobians, batch, (3,)), _join(hessians, batch, (3, 3))
    bent = np.einsum("...ia,...akm->...ikm", jacobian, second)
    hessian = np.einsum("...iab,...ak,...bm->...ikm", hessian, first, first) + bent
    return np.einsum("...ia,...ak->...ik", jacobian, first), hessian


def _direction(points: ArrayLike, normalize: bool) -> tuple[Array, Array, Array]:
    """The vector u at which harmonics are evaluated, and its derivatives u_a,k and u_a,km with points."""
    points = np.asarray(points, dtype=np.float64)
    identity = np.broadcast_to(np.eye(3), (*points.shape, 3))
    straight = np.zeros((*points.shape, 3, 3))
    if not normalize:
        return points, identity, straight
    length = np.sqrt(np.sum(points**2, axis=-1))
    clamped = length < SHORTEST
    inverse = 1 / np.where(clamped, SHORTEST, length)
    u = points * inverse[..., None]
    # where the length is clamped u is linear in points: no projection, no second derivative
    unit = np.where(clamped[..., None], 0.0, u)
    across = identity - unit[..., :, None] * unit[..., None, :]
    mixed = np.einsum("...am,...k->...akm", across, unit)
    second = -(mixed + mixed.swapaxes(-1, -2) + np.einsum("...km,...a->...akm", across, unit))
    return u, across * inverse[..., None, None], second * inverse[..., None, None, None] ** 2


def _join(parts: list[Array], batch: tuple[int, ...], rest: tuple[int, ...]) -> Array:
    """The parts, each (*batch, 2l+1, *rest), one after the other; there may be none."""
    return np.concatenate([np.zeros((*batch, 0, *rest)), *parts], axis=len(batch))
