"""Coupling coefficients and representation matrices as tensors, made from the exact table of `algebra.so3`.

Conventions of e3nn: `so3` and `rotation` state them. Every function holds for any degree.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor

from .. import backend
from ..algebra import so3
from . import rotation

# Tables are kept as numpy arrays: a cached tensor would keep the mode (inference, fake, functional) of the
# caller that asked first. torch.compile cannot follow the exact arithmetic behind them: it sees _table as one
# call.


@lru_cache(maxsize=4096)
def coupling_array(l1: int, l2: int, l3: int, signs: str = "e3nn-0.5") -> numpy.ndarray:
    """`wigner_3j` as an array of float64 that all callers share: not to be changed."""
    # What was compiled is the same, bit for bit, without the exact arithmetic; [] beyond it.
    are_degrees = all(type(l) is int and l >= 0 for l in (l1, l2, l3))
    compiled = backend.native().coupling(l1, l2, l3) if are_degrees and signs == "e3nn-0.5" else []
    exact = () if compiled else so3.coupling(l1, l2, l3, signs)
    dense = numpy.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1, m2, m3, value in compiled or ((e.m1, e.m2, e.m3, e.value) for e in exact):
        dense[m1, m2, m3] = value
    return dense


def _dense(entries: Iterable[so3.MatrixEntry], l: int) -> numpy.ndarray:
    matrix = numpy.zeros((2 * l + 1, 2 * l + 1))
    for entry in entries:
        matrix[entry.row, entry.column] = entry.value
    return matrix


@lru_cache(maxsize=256)
def _axis_swap_array(l: int) -> numpy.ndarray:
    return _dense(so3.axis_swap(l), l)


@lru_cache(maxsize=256)
def _generators_array(l: int) -> numpy.ndarray:
    return numpy.stack([_dense(entries, l) for entries in so3.generators(l)])


@lru_cache(maxsize=256)
def _real_to_complex_array(l: int) -> numpy.ndarray:
    matrix = numpy.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    matrix[l, l] = 1
    root = 0.5**0.5
    for m in range(1, l + 1):
        matrix[l + m, l + m] = (-1) ** m * root
        matrix[l - m, l + m] = root
        matrix[l + m, l - m] = 1j * (-1) ** m * root
        matrix[l - m, l - m] = -1j * root
    return (-1j) ** l * matrix


_ARRAYS = {
    "axis swap": _axis_swap_array,
    "coupling": coupling_array,
    "generators": _generators_array,
    "real to complex": _real_to_complex_array,
}


def _numbers(name: str, *key: Any) -> list[Any]:
    """The table of that name as nested lists."""
    return _ARRAYS[name](*key).tolist()


# What torch.compiler.assume_constant_result does, without its import of the whole compiler (seconds).
_numbers._dynamo_marked_constant = True


def _table(name: str, *key: Any) -> Tensor:
    """The table of that name, a copy in float64 or complex128."""
    if torch.compiler.is_compiling():
        dtype = torch.complex128 if name == "real to complex" else torch.float64
        return torch.tensor(_numbers(name, *key), dtype=dtype, device="cpu")
    return torch.tensor(_ARRAYS[name](*key), device="cpu")


def _cast(table: Tensor, dtype: torch.dtype | None, device: Any) -> Tensor:
    """The table with torch's default dtype and device where none is given."""
    return torch.empty(table.shape, dtype=dtype, device=device).copy_(table)


def wigner_3j(
    l1: int, l2: int, l3: int, dtype: torch.dtype | None = None, device: Any = None, signs: str = "e3nn-0.5"
) -> Tensor:
    """Coupling coefficients C, real, of Frobenius norm 1, shape (2*l1+1, 2*l2+1, 2*l3+1).

    C[i,j,k] = sum_{lmn} C[l,m,n] D1[l,i] D2[m,j] D3[n,k] for the matrices D of any one rotation; zeros are
    exact. signs: "e3nn-0.5" (e3nn 0.5 and later) or "e3nn-0.4", see `algebra.so3.coupling`, whose errors this
    raises. The tensor is a copy, free to be changed.
    """
    return _cast(_table("coupling", l1, l2, l3, signs), dtype, device)


def so3_generators(l: int, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """Generators (X_x, X_y, X_z) of degree l, shape (3, 2l+1, 2l+1), real and antisymmetric.

    D of a rotation by t about axis i is matrix_exp(t * X_i).
    """
    return _cast(_table("generators", l), dtype, device)


def change_basis_real_to_complex(l: int, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """Unitary Q, shape (2l+1, 2l+1), that takes real components (columns) to complex ones, m = -l..l (rows).

    Complex ones have Condon and Shortley's phase, and Q the factor (-i)^l that makes coupling coefficients
    real. dtype is that of the real and imaginary parts, torch's default where none is given.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return _cast(_table("real to complex", l), dtype.to_complex(), device)


def wigner_D(l: int, alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """D^l of the rotation Ry(alpha) Rx(beta) Ry(gamma), shape (..., 2l+1, 2l+1); the angles (...) broadcast.

    D = Y(alpha) J Y(beta) J Y(gamma), where Y turns each pair of orders (m, -m) by m times its angle and J is
    the exact matrix of the half turn that swaps x and y.
    """
    swap = _table("axis swap", l)
    alpha, beta, gamma = torch.broadcast_tensors(alpha, beta, gamma)
    orders = torch.arange(-l, l + 1, device=alpha.device)

    def turned(angle: Tensor) -> Tensor:
        phase = (angle[..., None] * orders)[..., None]
        cos, sin = phase.cos(), phase.sin()
        J = swap.to(cos)
        return cos * J - sin * J.flip(-2)

    D = turned(alpha) @ turned(beta)
    phase = (gamma[..., None] * orders)[..., None, :]
    return phase.cos() * D + phase.sin() * D.flip(-1)


def _degrees_from_matrix(l_max: int, R: Tensor) -> list[Tensor]:
    """D^l of rotation matrices R (..., 3, 3) for l = 0..l_max.

    D^l is the part of degree l of the product of D^(l-1) and R: a polynomial in R, so unlike a way through
    angles it has finite derivatives at the poles and at the identity.
    """
    degrees = [torch.ones_like(R[..., :1, :1]), R]
    for l in range(2, l_max + 1):
        C = _table("coupling", l - 1, 1, l, "e3nn-0.5").to(R)
        right = torch.einsum("...ij,jbn->...ibn", degrees[-1], C)
        right = torch.einsum("...ab,...ibn->...ian", R, right)
        degrees.append((2 * l + 1) * torch.einsum("iam,...ian->...mn", C, right))
    return degrees[: l_max + 1]


# Representation matrices of direct sums. `terms` are the (multiplicity, irrep) pairs of an Irreps, each irrep
# with its degree .l and parity .p; a single irrep is [(1, irrep)].


def D_from_angles(
    terms: Iterable[Any], alpha: Tensor, beta: Tensor, gamma: Tensor, k: Tensor | int | None = None
) -> Tensor:
    """Matrix (..., dim, dim) of Ry(alpha) Rx(beta) Ry(gamma) with k inversions, p^k D^l for each irrep.

    The angles and k, integers, have shapes (...) that broadcast; k = None means no inversion.
    """
    terms = tuple(terms)
    angles = torch.broadcast_tensors(alpha, beta, gamma)
    degrees = {l: wigner_D(l, *angles) for l in {0} | {ir.l for _, ir in terms}}
    return _direct_sum(terms, degrees, k)


def D_from_quaternion(terms: Iterable[Any], q: Tensor, k: Tensor | int | None = None) -> Tensor:
    """Matrix (..., dim, dim) of a rotation, quaternion q (..., 4) of any norm but zero, with k inversions."""
    return _from_rotation(terms, rotation.quaternion_to_matrix(q), k)


def D_from_matrix(terms: Iterable[Any], R: Tensor) -> Tensor:
    """Matrix (..., dim, dim) of R (..., 3, 3), a rotation with or without inversion.

    Its derivative is that of a polynomial in R, finite everywhere. Raises ValueError where the determinant is
    neither 1 nor -1.
    """
    rotation.check_last_shape("D_from_matrix", "R", R, (3, 3))
    sign = torch.linalg.det(R).sign().detach()
    proper = sign[..., None, None] * R
    rotation.check_rotation("D_from_matrix", "R (or -R)", proper)
    return _from_rotation(terms, proper, (1 - sign) / 2)


def D_from_axis_angle(terms: Iterable[Any], axis: Tensor, angle: Tensor) -> Tensor:
    """Matrix (..., dim, dim) of the rotation by angle (...) about axis (..., 3), of any length but zero."""
    return _from_rotation(terms, rotation.axis_angle_to_matrix(axis, angle), None)


def _from_rotation(terms: Iterable[Any], R: Tensor, k: Tensor | int | None) -> Tensor:
    terms = tuple(terms)
    l_max = max([0, *[ir.l for _, ir in terms]])
    return _direct_sum(terms, dict(enumerate(_degrees_from_matrix(l_max, R))), k)


def _direct_sum(terms: tuple[Any, ...], degrees: dict[int, Tensor], k: Tensor | int | None) -> Tensor:
    """Block-diagonal matrix with p^k D^l for every copy of every irrep."""
    scalar = degrees[0]
    sign = None if k is None else 1 - 2 * torch.remainder(torch.as_tensor(k, device=scalar.device), 2)
    batch = scalar.shape[:-2] if sign is None else torch.broadcast_shapes(scalar.shape[:-2], sign.shape)
    dim = sum(mul * (2 * ir.l + 1) for mul, ir in terms)
    out = scalar.new_zeros((*batch, dim, dim))
    start = 0
    for mul, ir in terms:
        block = degrees[ir.l]
        if sign is not None and ir.p == -1:
            block = sign[..., None, None] * block
        for _ in range(mul):
            stop = start + 2 * ir.l + 1
            out[..., start:stop, start:stop] = block
            start = stop
    return out
