"""Rotations of space: matrices, Euler angles, quaternions, axis and angle, and every conversion between them.

Conventions of e3nn. Angles mean R = Ry(alpha) Rx(beta) Ry(gamma), gamma applied first; the pole is +y.
Matrices act on column vectors (x, y, z). Quaternions are (w, x, y, z). Compositions apply their second
argument first. All functions take any leading dimensions (...), broadcast them, keep dtype and device, and
are differentiable.

Conversions that have a choice return beta in [0, pi], alpha and gamma in [-pi, pi], quaternions with w >= 0,
and rotation angles in [0, pi] (in [0, 2 pi] from a quaternion, which tells q from -q). No conversion passes
through acos, so angles near 0 and pi keep their digits.

Angles are in radians. Every function raises ValueError for a matrix, quaternion, axis or point whose last
dimensions are not (3, 3), (4,), (3,) and (3,), and for a matrix whose determinant is not 1 (to the tolerance
of torch.allclose).
"""

import math

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor, Tensor]


def check_last_shape(function: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError unless the last dimensions of tensor are shape."""
    if tuple(tensor.shape[-len(shape) :]) != shape:
        expected = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"{function}: {name} must have shape ({expected}), got {tuple(tensor.shape)}")


def check_rotation(function: str, name: str, R: Tensor) -> None:
    """ValueError unless R has shape (..., 3, 3) and determinants 1."""
    check_last_shape(function, name, R, (3, 3))
    determinant = torch.linalg.det(R)
    if not torch.allclose(determinant, torch.ones_like(determinant)):
        worst = determinant.flatten()[(determinant - 1).abs().argmax()].item()
        raise ValueError(f"{function}: {name} must have determinant 1, got {worst:.6g}")


# Random and neutral elements


def rand_matrix(*shape: int, requires_grad: bool = False, dtype=None, device=None) -> Tensor:
    """Uniformly random rotation matrices (*shape, 3, 3)."""
    R = angles_to_matrix(*rand_angles(*shape, dtype=dtype, device=device))
    return R.requires_grad_(requires_grad)


def rand_angles(*shape: int, requires_grad: bool = False, dtype=None, device=None) -> Angles:
    """Angles (alpha, beta, gamma), each of the given shape, of uniformly random rotations."""
    # The same draws in the same order as e3nn, so that a seed gives the same rotations.
    turns = torch.rand(2, *shape, dtype=dtype, device=device)
    height = 2 * torch.rand(shape, dtype=dtype, device=device) - 1
    alpha, gamma = (2 * math.pi * turns).unbind(0)
    beta = torch.acos(height)
    return tuple(angle.clone().requires_grad_(requires_grad) for angle in (alpha, beta, gamma))


def rand_quaternion(*shape: int, requires_grad: bool = False, dtype=None, device=None) -> Tensor:
    """Unit quaternions (*shape, 4) of uniformly random rotations."""
    q = angles_to_quaternion(*rand_angles(*shape, dtype=dtype, device=device))
    return q.requires_grad_(requires_grad)


def rand_axis_angle(
    *shape: int, requires_grad: bool = False, dtype=None, device=None
) -> tuple[Tensor, Tensor]:
    """Unit axes (*shape, 3) and angles in [0, pi] of the given shape, of uniformly random rotations."""
    axis, angle = angles_to_axis_angle(*rand_angles(*shape, dtype=dtype, device=device))
    return axis.requires_grad_(requires_grad), angle.requires_grad_(requires_grad)


def identity_angles(*shape: int, requires_grad: bool = False, dtype=None, device=None) -> Angles:
    """Angles (0, 0, 0), each of the given shape."""
    zeros = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(3))
    return tuple(angle.requires_grad_(requires_grad) for angle in zeros)


def identity_quaternion(*shape: int, requires_grad: bool = False, dtype=None, device=None) -> Tensor:
    """Quaternions (1, 0, 0, 0), as a tensor (*shape, 4)."""
    q = torch.zeros(*shape, 4, dtype=dtype, device=device)
    q[..., 0] = 1
    return q.requires_grad_(requires_grad)


# Composition and inverse


def compose_angles(a1: Tensor, b1: Tensor, c1: Tensor, a2: Tensor, b2: Tensor, c2: Tensor) -> Angles:
    """Angles of R(a1, b1, c1) R(a2, b2, c2)."""
    return matrix_to_angles(angles_to_matrix(a1, b1, c1) @ angles_to_matrix(a2, b2, c2))


def compose_quaternion(q1: Tensor, q2: Tensor) -> Tensor:
    """Hamilton's product q1 q2, the rotation q2 followed by q1; (..., 4)."""
    check_last_shape("compose_quaternion", "q1", q1, (4,))
    check_last_shape("compose_quaternion", "q2", q2, (4,))
    q1, q2 = torch.broadcast_tensors(q1, q2)
    w1, v1 = q1[..., :1], q1[..., 1:]
    w2, v2 = q2[..., :1], q2[..., 1:]
    w = w1 * w2 - (v1 * v2).sum(-1, keepdim=True)
    v = w1 * v2 + w2 * v1 + torch.linalg.cross(v1, v2)
    return torch.cat([w, v], dim=-1)


def compose_axis_angle(axis1: Tensor, angle1: Tensor, axis2: Tensor, angle2: Tensor) -> tuple[Tensor, Tensor]:
    """Axis (..., 3) and angle (...) in [0, 2 pi] of the rotation by angle2, followed by that by angle1."""
    q1 = axis_angle_to_quaternion(axis1, angle1)
    q2 = axis_angle_to_quaternion(axis2, angle2)
    return quaternion_to_axis_angle(compose_quaternion(q1, q2))


def inverse_angles(a: Tensor, b: Tensor, c: Tensor) -> Angles:
    """Angles of the inverse rotation, (-c, -b, -a)."""
    return -c, -b, -a


def inverse_quaternion(q: Tensor) -> Tensor:
    """Conjugate of q (..., 4), which is its inverse where q has norm 1."""
    check_last_shape("inverse_quaternion", "q", q, (4,))
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1)


# To matrices


def _axis_rotation(angle: Tensor, axis: int) -> Tensor:
    """Rotation by angle (...) about coordinate axis 0, 1 or 2 as (..., 3, 3)."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = angle.cos(), angle.sin()
    rows = [[torch.zeros_like(cos)] * 3 for _ in range(3)]
    rows[axis][axis] = torch.ones_like(cos)
    rows[first][first] = rows[second][second] = cos
    rows[first][second] = -sin
    rows[second][first] = sin
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_x(angle: Tensor) -> Tensor:
    """Rotation by angle (...) about x, as (..., 3, 3)."""
    return _axis_rotation(angle, 0)


def matrix_y(angle: Tensor) -> Tensor:
    """Rotation by angle (...) about y, as (..., 3, 3)."""
    return _axis_rotation(angle, 1)


def matrix_z(angle: Tensor) -> Tensor:
    """Rotation by angle (...) about z, as (..., 3, 3)."""
    return _axis_rotation(angle, 2)


def angles_to_matrix(alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Ry(alpha) Rx(beta) Ry(gamma), as (..., 3, 3)."""
    return matrix_y(alpha) @ matrix_x(beta) @ matrix_y(gamma)


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """Rotation matrix (..., 3, 3) of a quaternion (..., 4), which is normalised first."""
    check_last_shape("quaternion_to_matrix", "q", q, (4,))
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def axis_angle_to_matrix(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation matrix (..., 3, 3) by angle (...) about axis (..., 3), of any length but zero."""
    return quaternion_to_matrix(axis_angle_to_quaternion(axis, angle))


# To angles


def matrix_to_angles(R: Tensor) -> Angles:
    """Angles of rotation matrices (..., 3, 3): beta in [0, pi], alpha and gamma in [-pi, pi].

    Where beta is 0 or pi only alpha + gamma or alpha - gamma counts, and alpha is that of the point R y.
    Raises ValueError where a determinant is not 1.
    """
    check_rotation("matrix_to_angles", "R", R)
    alpha, beta = xyz_to_angles(R[..., :, 1])
    # First row of Ry(-alpha) R = Rx(beta) Ry(gamma), which holds (cos gamma, 0, sin gamma) at the poles too.
    row = alpha.cos()[..., None] * R[..., 0, :] - alpha.sin()[..., None] * R[..., 2, :]
    return alpha, beta, torch.atan2(row[..., 2], row[..., 0])


def quaternion_to_angles(q: Tensor) -> Angles:
    """Angles of a quaternion (..., 4), which is normalised first."""
    return matrix_to_angles(quaternion_to_matrix(q))


def axis_angle_to_angles(axis: Tensor, angle: Tensor) -> Angles:
    """Angles of the rotation by angle (...) about axis (..., 3)."""
    return matrix_to_angles(axis_angle_to_matrix(axis, angle))


# To quaternions


def angles_to_quaternion(alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Quaternion (..., 4) of Ry(alpha) Rx(beta) Ry(gamma): the product of the three, w of either sign."""
    alpha, beta, gamma = torch.broadcast_tensors(alpha, beta, gamma)
    cos, sin = (beta / 2).cos(), (beta / 2).sin()
    half_sum, half_difference = (alpha + gamma) / 2, (alpha - gamma) / 2
    parts = [
        cos * half_sum.cos(),
        sin * half_difference.cos(),
        cos * half_sum.sin(),
        -sin * half_difference.sin(),
    ]
    return torch.stack(parts, dim=-1)


def matrix_to_quaternion(R: Tensor) -> Tensor:
    """Quaternion (..., 4) with w >= 0 of rotation matrices (..., 3, 3).

    Raises ValueError where a determinant is not 1.
    """
    check_rotation("matrix_to_quaternion", "R", R)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in R.unbind(-2))
    # 4 q q^T is linear in R, so each row is a multiple of q; the one with the largest diagonal never cancels.
    outer = [
        [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz],
    ]
    rows = torch.stack([torch.stack(row, dim=-1) for row in outer], dim=-2)
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = rows.take_along_dim(largest[..., None, None], dim=-2).squeeze(-2)
    return _upper(torch.nn.functional.normalize(q, dim=-1))


def _upper(q: Tensor) -> Tensor:
    """The one of q and -q with w >= 0."""
    return torch.where(q[..., :1] < 0, -q, q)


def axis_angle_to_quaternion(xyz: Tensor, angle: Tensor) -> Tensor:
    """Quaternion (..., 4) of the rotation by angle (...) about axis xyz (..., 3), of any length but zero."""
    check_last_shape("axis_angle_to_quaternion", "xyz", xyz, (3,))
    xyz, angle = torch.broadcast_tensors(xyz, angle[..., None])
    half = angle / 2
    return torch.cat([half[..., :1].cos(), torch.nn.functional.normalize(xyz, dim=-1) * half.sin()], dim=-1)


# To axis and angle


def quaternion_to_axis_angle(q: Tensor) -> tuple[Tensor, Tensor]:
    """Unit axis (..., 3) and angle (...) in [0, 2 pi] of a quaternion (..., 4) of any norm but zero.

    The identity has the axis (0, 0, 0).
    """
    check_last_shape("quaternion_to_axis_angle", "q", q, (4,))
    v = q[..., 1:]
    angle = 2 * torch.atan2(torch.linalg.vector_norm(v, dim=-1), q[..., 0])
    return torch.nn.functional.normalize(v, dim=-1), angle


def matrix_to_axis_angle(R: Tensor) -> tuple[Tensor, Tensor]:
    """Unit axis (..., 3) and angle (...) in [0, pi] of rotation matrices (..., 3, 3).

    The identity has the axis (0, 0, 0). Raises ValueError where a determinant is not 1.
    """
    return quaternion_to_axis_angle(matrix_to_quaternion(R))


def angles_to_axis_angle(alpha: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Unit axis (..., 3) and angle (...) in [0, pi] of Ry(alpha) Rx(beta) Ry(gamma)."""
    return quaternion_to_axis_angle(_upper(angles_to_quaternion(alpha, beta, gamma)))


# Points of the sphere


def angles_to_xyz(alpha: Tensor, beta: Tensor) -> Tensor:
    """The point (..., 3) = Ry(alpha) Rx(beta) y of the unit sphere."""
    alpha, beta = torch.broadcast_tensors(alpha, beta)
    return torch.stack([beta.sin() * alpha.sin(), beta.cos(), beta.sin() * alpha.cos()], dim=-1)


def xyz_to_angles(xyz: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (...) in [-pi, pi] and beta (...) in [0, pi] of the direction of xyz (..., 3).

    At the poles alpha is 0; the zero vector gives (0, pi / 2).
    """
    check_last_shape("xyz_to_angles", "xyz", xyz, (3,))
    x, y, z = xyz.unbind(-1)
    # From the equator, not the pole: the zero vector then lands where e3nn puts it.
    beta = math.pi / 2 - torch.atan2(y, torch.linalg.vector_norm(xyz[..., ::2], dim=-1))
    return torch.atan2(x, z), beta
