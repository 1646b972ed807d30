"""Rotations: round trips, defining properties, edge cases, and e3nn's numbers."""

import itertools
import math

import pytest
import torch

from clebsch.o3 import rotation

F64 = torch.float64


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(F64)  # e3nn makes constants of the default dtype; put back after each test


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def matrices():
    """Random rotations, and the half and quarter turns where formulas divide by zero."""
    eye = torch.eye(3)
    permuted = [eye[list(p)] for p in itertools.permutations(range(3))]
    signs = [torch.diag(torch.tensor(s)) for s in itertools.product((-1.0, 1.0), repeat=3)]
    cube = torch.stack([S @ P for S in signs for P in permuted])
    cube = cube[torch.linalg.det(cube) > 0]
    assert len(cube) == 24
    return torch.cat([rotation.rand_matrix(50), cube])


# Elements


def test_random_rotations_have_the_shape_asked_for():
    assert rotation.rand_matrix(2, 5).shape == (2, 5, 3, 3)
    assert [angle.shape for angle in rotation.rand_angles(2, 5)] == [(2, 5)] * 3
    assert rotation.rand_quaternion(2, 5).shape == (2, 5, 4)
    axis, angle = rotation.rand_axis_angle(2, 5)
    assert (axis.shape, angle.shape) == ((2, 5, 3), (2, 5))
    assert rotation.rand_matrix().shape == (3, 3)
    assert rotation.rand_quaternion(0).shape == (0, 4)


@pytest.mark.parametrize("name", ["rand_matrix", "rand_angles", "rand_quaternion", "rand_axis_angle"])
def test_random_rotations_take_dtype_and_requires_grad(name):
    made = getattr(rotation, name)(3, dtype=torch.float32, requires_grad=True)
    for tensor in made if isinstance(made, tuple) else (made,):
        assert tensor.dtype == torch.float32
        assert tensor.requires_grad and tensor.is_leaf


def test_random_rotations_are_uniform():
    R = rotation.rand_matrix(20000)
    # Entries of a uniformly random rotation: mean 0, mean square 1/3, and a trace of mean square 1.
    close(R.mean(0), torch.zeros(3, 3), 0.02)
    close((R**2).mean(0), torch.full((3, 3), 1 / 3), 0.02)
    close(R.diagonal(dim1=1, dim2=2).sum(1).square().mean(), torch.tensor(1.0), 0.05)


def test_identities():
    close(rotation.angles_to_matrix(*rotation.identity_angles(2)), torch.eye(3).expand(2, 3, 3))
    close(rotation.quaternion_to_matrix(rotation.identity_quaternion(2)), torch.eye(3).expand(2, 3, 3))
    assert rotation.identity_quaternion(2, requires_grad=True).requires_grad
    assert all(angle.requires_grad for angle in rotation.identity_angles(requires_grad=True))


def test_matrices_about_the_axes_turn_the_next_axis_to_the_one_after():
    x, y, z = torch.eye(3)
    quarter = torch.tensor(math.pi / 2)
    for turn, (axis, start, stop) in (
        (rotation.matrix_x, (x, y, z)),
        (rotation.matrix_y, (y, z, x)),
        (rotation.matrix_z, (z, x, y)),
    ):
        close(turn(quarter) @ axis, axis)
        close(turn(quarter) @ start, stop)


# Conversions


def test_every_conversion_gives_the_same_rotation():
    R = matrices()
    back = {
        "angles": rotation.angles_to_matrix(*rotation.matrix_to_angles(R)),
        "quaternion": rotation.quaternion_to_matrix(rotation.matrix_to_quaternion(R)),
        "axis_angle": rotation.axis_angle_to_matrix(*rotation.matrix_to_axis_angle(R)),
    }
    q = rotation.matrix_to_quaternion(R)
    back["quaternion, angles"] = rotation.angles_to_matrix(*rotation.quaternion_to_angles(q))
    back["quaternion, axis_angle"] = rotation.axis_angle_to_matrix(*rotation.quaternion_to_axis_angle(q))
    angles = rotation.matrix_to_angles(R)
    back["angles, quaternion"] = rotation.quaternion_to_matrix(rotation.angles_to_quaternion(*angles))
    back["angles, axis_angle"] = rotation.axis_angle_to_matrix(*rotation.angles_to_axis_angle(*angles))
    axis_angle = rotation.matrix_to_axis_angle(R)
    back["axis_angle, angles"] = rotation.angles_to_matrix(*rotation.axis_angle_to_angles(*axis_angle))
    for name, matrix in back.items():
        torch.testing.assert_close(
            matrix, R, rtol=0, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_results_lie_in_the_stated_ranges():
    R = matrices()
    alpha, beta, gamma = rotation.matrix_to_angles(R)
    assert (alpha.abs() <= math.pi).all() and (gamma.abs() <= math.pi).all()
    assert (beta >= 0).all() and (beta <= math.pi).all()
    q = rotation.matrix_to_quaternion(R)
    assert (q[:, 0] >= 0).all()
    close(q.norm(dim=-1), torch.ones(len(R)))
    for axis, angle in (
        rotation.matrix_to_axis_angle(R),
        rotation.angles_to_axis_angle(*(4 * a for a in rotation.rand_angles(50))),
    ):
        assert (angle >= 0).all() and (angle <= math.pi).all()
        turned = angle > 0
        close(axis.norm(dim=-1)[turned], torch.ones(int(turned.sum())))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-5, math.pi - 1e-5, math.pi - 1e-12, math.pi])
def test_small_and_half_turns_keep_their_digits(angle):
    axis = torch.nn.functional.normalize(torch.randn(20, 3), dim=-1)
    angles = torch.full((20,), angle)
    R = rotation.axis_angle_to_matrix(axis, angles)
    new_axis, new_angle = rotation.matrix_to_axis_angle(R)
    close(new_angle, angles, 1e-15 + 1e-15 * angle)
    close(rotation.axis_angle_to_matrix(new_axis, new_angle), R, 2e-15)
    close(rotation.angles_to_matrix(*rotation.matrix_to_angles(R)), R, 2e-15)


def test_length_of_axes_and_quaternions_does_not_matter():
    axis, angle = rotation.rand_axis_angle(10)
    R = rotation.axis_angle_to_matrix(axis, angle)
    close(rotation.axis_angle_to_matrix(7.0 * axis, angle), R)
    q = rotation.axis_angle_to_quaternion(0.1 * axis, angle)
    close(rotation.quaternion_to_matrix(3.0 * q), R)
    close(rotation.quaternion_to_axis_angle(3.0 * q)[1], angle)


def test_composition_is_the_product_of_matrices():
    a, b = rotation.rand_matrix(20), rotation.rand_matrix(20)
    angles = rotation.compose_angles(*rotation.matrix_to_angles(a), *rotation.matrix_to_angles(b))
    close(rotation.angles_to_matrix(*angles), a @ b)
    q = rotation.compose_quaternion(rotation.matrix_to_quaternion(a), rotation.matrix_to_quaternion(b))
    close(rotation.quaternion_to_matrix(q), a @ b)
    axis_angle = rotation.compose_axis_angle(
        *rotation.matrix_to_axis_angle(a), *rotation.matrix_to_axis_angle(b)
    )
    close(rotation.axis_angle_to_matrix(*axis_angle), a @ b)


def test_inverses_transpose_the_matrix():
    R = rotation.rand_matrix(20)
    inverse = R.transpose(-1, -2)
    close(rotation.angles_to_matrix(*rotation.inverse_angles(*rotation.matrix_to_angles(R))), inverse)
    q = rotation.inverse_quaternion(rotation.matrix_to_quaternion(R))
    close(rotation.quaternion_to_matrix(q), inverse)


def test_points_of_the_sphere():
    points = torch.randn(50, 3)
    directions = torch.nn.functional.normalize(points, dim=-1)
    alpha, beta = rotation.xyz_to_angles(points)
    close(rotation.angles_to_xyz(alpha, beta), directions)
    pole = torch.tensor([0.0, 1.0, 0.0])
    close(rotation.angles_to_matrix(alpha, beta, torch.zeros(50)) @ pole, directions)
    assert [a.item() for a in rotation.xyz_to_angles(pole)] == [0.0, 0.0]
    assert [a.item() for a in rotation.xyz_to_angles(torch.zeros(3))] == [0.0, math.pi / 2]


def test_leading_dimensions_broadcast():
    alpha, beta, gamma = torch.rand(4, 1), torch.rand(5), torch.rand(3, 1, 1)
    assert rotation.angles_to_matrix(alpha, beta, gamma).shape == (3, 4, 5, 3, 3)
    assert rotation.angles_to_quaternion(alpha, beta, gamma).shape == (3, 4, 5, 4)
    assert rotation.compose_quaternion(torch.rand(4, 1, 4), torch.rand(5, 4)).shape == (4, 5, 4)
    assert rotation.axis_angle_to_matrix(torch.rand(3), torch.rand(6)).shape == (6, 3, 3)
    assert rotation.matrix_to_angles(rotation.rand_matrix(0))[0].shape == (0,)


def test_float32_stays_float32():
    R = rotation.rand_matrix(20, dtype=torch.float32)
    for back in (
        rotation.angles_to_matrix(*rotation.matrix_to_angles(R)),
        rotation.axis_angle_to_matrix(*rotation.matrix_to_axis_angle(R)),
    ):
        assert back.dtype == torch.float32
        close(back, R, 1e-6)


def test_derivatives():
    angles = [angle.requires_grad_() for angle in rotation.rand_angles(3)]
    assert torch.autograd.gradcheck(rotation.angles_to_matrix, angles)
    assert torch.autograd.gradcheck(rotation.angles_to_quaternion, angles)
    q = rotation.rand_quaternion(3, requires_grad=True)
    assert torch.autograd.gradcheck(rotation.quaternion_to_matrix, [q])
    assert torch.autograd.gradcheck(rotation.quaternion_to_axis_angle, [q])
    # A step away from a rotation is refused by nothing but its determinant, so stay on the group.
    assert torch.autograd.gradcheck(
        lambda q: rotation.matrix_to_angles(rotation.quaternion_to_matrix(q)), [q]
    )
    assert torch.autograd.gradcheck(
        lambda q: rotation.matrix_to_axis_angle(rotation.quaternion_to_matrix(q)), [q]
    )


# e3nn


def test_numbers_are_those_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn 0.6, a test dependency, is not installed")
    angles, angles2 = o3.rand_angles(100), o3.rand_angles(100)
    R = o3.rand_matrix(100)
    q, q2 = o3.rand_quaternion(100), o3.rand_quaternion(100)
    axis_angle, axis_angle2 = o3.rand_axis_angle(100), o3.rand_axis_angle(100)
    calls = {
        "matrix_x": angles[:1],
        "matrix_y": angles[:1],
        "matrix_z": angles[:1],
        "angles_to_matrix": angles,
        "angles_to_quaternion": angles,
        "angles_to_axis_angle": angles,
        "inverse_angles": angles,
        "compose_angles": (*angles, *angles2),
        "matrix_to_angles": (R,),
        "matrix_to_quaternion": (R,),
        "matrix_to_axis_angle": (R,),
        "quaternion_to_matrix": (q,),
        "quaternion_to_angles": (q,),
        "quaternion_to_axis_angle": (q,),
        "inverse_quaternion": (q,),
        "compose_quaternion": (q, q2),
        "axis_angle_to_matrix": axis_angle,
        "axis_angle_to_quaternion": axis_angle,
        "axis_angle_to_angles": axis_angle,
        "compose_axis_angle": (*axis_angle, *axis_angle2),
        "angles_to_xyz": angles[:2],
        "xyz_to_angles": (torch.randn(100, 3),),
    }
    for name, arguments in calls.items():
        theirs, ours = getattr(o3, name)(*arguments), getattr(rotation, name)(*arguments)
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_seed_gives_the_rotations_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn 0.6, a test dependency, is not installed")
    for name in ("rand_matrix", "rand_angles", "rand_quaternion", "rand_axis_angle"):
        torch.manual_seed(1)
        theirs = getattr(o3, name)(4, 5)
        torch.manual_seed(1)
        torch.testing.assert_close(getattr(rotation, name)(4, 5), theirs, rtol=0, atol=1e-12)


# Errors


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (
            rotation.matrix_to_angles,
            (torch.zeros(2, 3),),
            "matrix_to_angles: R must have shape (..., 3, 3), got (2, 3)",
        ),
        (
            rotation.matrix_to_quaternion,
            (-torch.eye(3, dtype=F64),),
            "matrix_to_quaternion: R must have determinant 1, got -1",
        ),
        (
            rotation.matrix_to_angles,
            (torch.stack([torch.eye(3, dtype=F64), 2 * torch.eye(3, dtype=F64)]),),
            "matrix_to_angles: R must have determinant 1, got 8",
        ),
        (
            rotation.quaternion_to_matrix,
            (torch.zeros(3),),
            "quaternion_to_matrix: q must have shape (..., 4), got (3,)",
        ),
        (
            rotation.compose_quaternion,
            (torch.zeros(4), torch.zeros(5)),
            "compose_quaternion: q2 must have shape (..., 4), got (5,)",
        ),
        (
            rotation.axis_angle_to_matrix,
            (torch.zeros(4), torch.zeros(1)),
            "axis_angle_to_quaternion: xyz must have shape (..., 3), got (4,)",
        ),
        (rotation.xyz_to_angles, (torch.zeros(2),), "xyz_to_angles: xyz must have shape (..., 3), got (2,)"),
    ],
)
def test_bad_input_is_refused(function, arguments, message):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert str(caught.value) == message
