"""Coupling coefficients and representation matrices as tensors."""

import math
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch

from clebsch import reference
from clebsch.algebra import so3
from clebsch.algebra.irreps import Irrep, Irreps
from clebsch.o3 import rotation, wigner

F64 = torch.float64
IRREPS = "2x0e + 1x1o + 3x2e + 2x2o + 0x4e + 1x5o + 0o + 1x8e"


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(F64)  # e3nn makes constants of the default dtype; put back after each test


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def orthogonal_matrices(n):
    """Random rotations, every other one with an inversion."""
    return rotation.rand_matrix(n) * torch.tensor([1.0, -1.0]).repeat(n)[:n, None, None]


def e3nn_o3():
    return pytest.importorskip("e3nn.o3", reason="e3nn 0.6, a test dependency, is not installed")


# wigner_3j, generators, change of basis


@pytest.mark.parametrize("signs", so3.SIGNS)
def test_wigner_3j_holds_the_exact_table(signs):
    C = wigner.wigner_3j(2, 3, 3, dtype=F64, signs=signs)
    assert C.shape == (5, 7, 7)
    entries = so3.coupling(2, 3, 3, signs)
    assert C.count_nonzero() == len(entries)
    for entry in entries:
        assert C[entry.m1, entry.m2, entry.m3] == entry.value


def test_wigner_3j_is_invariant():
    R = rotation.rand_matrix()
    for l1, l2, l3 in ((1, 1, 1), (1, 2, 2), (2, 3, 4), (6, 5, 8)):
        D = [wigner.wigner_D(l, *rotation.matrix_to_angles(R)) for l in (l1, l2, l3)]
        C = wigner.wigner_3j(l1, l2, l3)
        close(torch.einsum("lmn,li,mj,nk->ijk", C, *D), C, 1e-14)


def test_wigner_3j_takes_dtype_and_device():
    torch.set_default_dtype(torch.float32)
    assert wigner.wigner_3j(1, 1, 1).dtype == torch.float32
    assert wigner.wigner_3j(1, 1, 1, dtype=F64).dtype == F64
    assert wigner.wigner_3j(1, 1, 1, device="meta").device.type == "meta"
    assert wigner.so3_generators(2).dtype == torch.float32
    assert wigner.change_basis_real_to_complex(2).dtype == torch.complex64


def test_tables_are_copies_and_do_not_keep_the_mode_of_the_first_call():
    with torch.inference_mode():
        wigner.wigner_3j(2, 3, 4)
        wigner.wigner_D(7, *rotation.rand_angles())
    wigner.wigner_3j(2, 3, 4).zero_()
    weight = torch.ones(5, 7, 9, requires_grad=True)
    (weight * wigner.wigner_3j(2, 3, 4)).square().sum().backward()
    close(weight.grad.sum(), torch.tensor(2.0))
    angles = rotation.rand_angles(requires_grad=True)
    wigner.wigner_D(7, *angles).sum().backward()
    assert all(angle.grad.isfinite() for angle in angles)


def test_wigner_3j_refuses_what_does_not_couple():
    with pytest.raises(ValueError) as caught:
        wigner.wigner_3j(1, 1, 3)
    assert str(caught.value) == "coupling: l3 must satisfy |l1 - l2| <= l3 <= l1 + l2, got (1, 1, 3)"


def test_change_of_basis_is_unitary_and_makes_y_diagonal():
    for l in range(7):
        Q = wigner.change_basis_real_to_complex(l)
        close(Q @ Q.mH, torch.eye(2 * l + 1, dtype=torch.complex128), 1e-15)
        m = torch.arange(-l, l + 1)
        about_pole = Q @ wigner.so3_generators(l)[1].to(torch.complex128) @ Q.mH
        assert (about_pole.diagonal().imag.abs() - m.abs()).abs().max() < 1e-14
        close(about_pole, torch.diag(about_pole.diagonal()), 1e-14)


def test_tables_are_those_of_e3nn():
    o3 = e3nn_o3()
    for l in range(9):
        close(wigner.so3_generators(l), o3.so3_generators(l), 1e-14)
        close(wigner.change_basis_real_to_complex(l), o3.change_basis_real_to_complex(l), 1e-15)
    close(wigner.wigner_3j(3, 4, 5), o3.wigner_3j(3, 4, 5), 1e-14)


# wigner_D


@pytest.mark.parametrize("l", [0, 1, 2, 3, 6, 11, 20])
def test_wigner_D_is_a_representation(l):
    a, b = rotation.rand_angles(5), rotation.rand_angles(5)
    D = wigner.wigner_D(l, *a)
    close(D @ wigner.wigner_D(l, *b), wigner.wigner_D(l, *rotation.compose_angles(*a, *b)))
    close(D @ D.mT, torch.eye(2 * l + 1).expand_as(D))
    close(wigner.wigner_D(l, *rotation.inverse_angles(*a)), D.mT)
    close(wigner.wigner_D(l, *rotation.identity_angles()), torch.eye(2 * l + 1))


def test_wigner_D_of_degree_1_is_the_rotation():
    angles = rotation.rand_angles(20)
    close(wigner.wigner_D(1, *angles), rotation.angles_to_matrix(*angles), 1e-15)


@pytest.mark.parametrize("l", [1, 2, 5])
def test_wigner_D_is_the_exponential_of_the_generators(l):
    X, Y, _ = wigner.so3_generators(l)
    t, zero = torch.tensor(0.7), torch.tensor(0.0)
    close(wigner.wigner_D(l, zero, t, zero), torch.matrix_exp(t * X), 1e-14)
    close(wigner.wigner_D(l, t, zero, zero), torch.matrix_exp(t * Y), 1e-14)


def test_harmonics_turn_with_wigner_D():
    points = torch.randn(10, 3)
    angles = rotation.rand_angles()
    R = rotation.angles_to_matrix(*angles)
    for l in range(9):
        arguments = {"normalize": True, "normalization": "component"}
        before = torch.from_numpy(reference.spherical_harmonics([l], points.numpy(), **arguments))
        after = torch.from_numpy(reference.spherical_harmonics([l], (points @ R.T).numpy(), **arguments))
        close(before @ wigner.wigner_D(l, *angles).T, after)


def test_wigner_D_is_that_of_e3nn():
    o3 = e3nn_o3()
    angles = [3 * angle for angle in rotation.rand_angles(20)]
    for l in range(9):
        close(wigner.wigner_D(l, *angles), o3.wigner_D(l, *angles))


def test_wigner_D_broadcasts_and_keeps_float32():
    assert wigner.wigner_D(2, torch.rand(4, 1), torch.rand(3), torch.rand(())).shape == (4, 3, 5, 5)
    assert wigner.wigner_D(2, *rotation.rand_angles(0)).shape == (0, 5, 5)
    angles = rotation.rand_angles(10)
    single = wigner.wigner_D(4, *(angle.float() for angle in angles))
    assert single.dtype == torch.float32
    close(single.double(), wigner.wigner_D(4, *angles), 1e-5)


def test_wigner_D_is_differentiable():
    angles = rotation.rand_angles(2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: wigner.wigner_D(3, *a), angles)
    assert torch.autograd.gradgradcheck(lambda *a: wigner.wigner_D(2, *a), angles)
    assert torch.func.jacfwd(lambda a: wigner.wigner_D(2, a, a, a))(torch.tensor(0.3)).shape == (5, 5)


def test_wigner_D_refuses_a_negative_degree():
    with pytest.raises(ValueError, match="l must be 0 or more, got -1"):
        wigner.wigner_D(-1, *rotation.rand_angles())


# Direct sums


def test_representations_agree_with_each_other():
    irreps = Irreps(IRREPS)
    R = rotation.rand_matrix(10)
    D = wigner.D_from_matrix(irreps, R)
    assert D.shape == (10, irreps.dim, irreps.dim)
    close(wigner.D_from_angles(irreps, *rotation.matrix_to_angles(R)), D)
    close(wigner.D_from_quaternion(irreps, rotation.matrix_to_quaternion(R)), D)
    close(wigner.D_from_axis_angle(irreps, *rotation.matrix_to_axis_angle(R)), D)


def test_blocks_lie_where_the_irreps_lie():
    irreps = Irreps("2x1o + 0x3e + 1x0o + 1x2e")
    R = orthogonal_matrices(4)
    D = wigner.D_from_matrix(irreps, R)
    proper = torch.linalg.det(R).sign()[:, None, None] * R
    expected = torch.zeros(4, 12, 12)
    expected[:, 0:3, 0:3] = expected[:, 3:6, 3:6] = R
    expected[:, 6, 6] = torch.linalg.det(R)
    expected[:, 7:, 7:] = wigner.wigner_D(2, *rotation.matrix_to_angles(proper))
    close(D, expected)


def test_representation_of_products_with_inversions():
    irreps = Irreps(IRREPS)
    a, b = orthogonal_matrices(10), orthogonal_matrices(10).flip(0)
    product = wigner.D_from_matrix(irreps, a) @ wigner.D_from_matrix(irreps, b)
    close(product, wigner.D_from_matrix(irreps, a @ b))


def test_inversions_count_modulo_2():
    irreps = Irreps("0o + 1o + 1e")
    angles = rotation.rand_angles()
    plain = wigner.D_from_angles(irreps, *angles)
    parity = torch.tensor([-1.0] * 4 + [1.0] * 3)
    for k in (torch.arange(4), torch.arange(4.0)):
        D = wigner.D_from_angles(irreps, *angles, k)
        close(D, torch.stack([plain, plain * parity, plain, plain * parity]))
        q = rotation.angles_to_quaternion(*angles)
        close(wigner.D_from_quaternion(irreps, q, k), D)
    close(wigner.D_from_angles(irreps, *angles, 1), plain * parity)


def test_one_irrep_and_no_irrep():
    R = orthogonal_matrices(3)
    close(wigner.D_from_matrix([(1, Irrep("1e"))], R), torch.linalg.det(R)[:, None, None] * R)
    assert wigner.D_from_matrix(Irreps(""), R).shape == (3, 0, 0)
    assert wigner.D_from_angles(Irreps(""), *rotation.rand_angles(2)).shape == (2, 0, 0)


def test_representations_are_those_of_e3nn():
    o3 = e3nn_o3()
    irreps, theirs = Irreps(IRREPS), o3.Irreps(IRREPS)
    R, k = orthogonal_matrices(20), torch.arange(20)
    close(wigner.D_from_matrix(irreps, R), theirs.D_from_matrix(R))
    angles, q, axis_angle = (
        rotation.rand_angles(20),
        rotation.rand_quaternion(20),
        rotation.rand_axis_angle(20),
    )
    close(wigner.D_from_angles(irreps, *angles, k), theirs.D_from_angles(*angles, k))
    close(wigner.D_from_quaternion(irreps, q, k), theirs.D_from_quaternion(q, k))
    close(wigner.D_from_axis_angle(irreps, *axis_angle), theirs.D_from_axis_angle(*axis_angle))


def test_derivatives_are_finite_at_the_identity_and_the_poles():
    irreps = Irreps("1o + 2e + 3o")
    for R in (torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, -1.0])), -torch.eye(3)):
        R.requires_grad_()
        (grad,) = torch.autograd.grad(wigner.D_from_matrix(irreps, R).square().sum(), R)
        assert grad.isfinite().all()
    q = rotation.identity_quaternion(2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: wigner.D_from_quaternion(irreps, q), [q])


def test_derivative_about_the_identity_is_the_generator():
    irreps = Irreps("3o")
    axis = torch.randn(3)

    def turned(t):
        half = t / 2
        return wigner.D_from_quaternion(irreps, torch.cat([torch.ones(1), half * axis]))

    generator = torch.einsum("a,aij->ij", axis, wigner.so3_generators(3))
    close(torch.func.jacfwd(turned)(torch.zeros(1)).squeeze(-1), generator)


@pytest.mark.parametrize(
    "R, message",
    [
        (torch.zeros(2, 2), "D_from_matrix: R must have shape (..., 3, 3), got (2, 2)"),
        (2 * torch.eye(3, dtype=F64), "D_from_matrix: R (or -R) must have determinant 1, got 8"),
        (torch.zeros(3, 3, dtype=F64), "D_from_matrix: R (or -R) must have determinant 1, got 0"),
    ],
)
def test_matrices_that_are_not_orthogonal_are_refused(R, message):
    with pytest.raises(ValueError) as caught:
        wigner.D_from_matrix(Irreps("1o"), R)
    assert str(caught.value) == message


# torch's transforms


class PlainIrrep(NamedTuple):
    l: int
    p: int


TERMS = [(2, PlainIrrep(1, -1)), (1, PlainIrrep(3, 1))]


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    angles, q = rotation.rand_angles(4), rotation.rand_quaternion(4)

    def compiled(function):
        return torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")

    def contracted(x):
        return x * wigner.wigner_3j(1, 1, 2).sum() + wigner.wigner_3j(1, 1, 1).norm()

    close(compiled(lambda *a: wigner.wigner_D(3, *a))(*angles), wigner.wigner_D(3, *angles))
    close(compiled(contracted)(q), contracted(q))
    close(
        compiled(lambda q: wigner.D_from_quaternion(TERMS, q))(q),
        wigner.D_from_quaternion(TERMS, q),
    )


def test_export():
    class Turn(torch.nn.Module):
        def forward(self, alpha, beta, gamma):
            return wigner.wigner_D(3, alpha, beta, gamma)

    angles = rotation.rand_angles(4)
    edges = {name: {0: torch.export.Dim("edges")} for name in ("alpha", "beta", "gamma")}
    exported = torch.export.export(Turn(), angles, dynamic_shapes=edges).module()
    more = rotation.rand_angles(7)
    close(exported(*more), wigner.wigner_D(3, *more))


def test_vmap():
    q = rotation.rand_quaternion(4)
    mapped = torch.func.vmap(lambda q: wigner.D_from_quaternion(TERMS, q))(q)
    close(mapped, wigner.D_from_quaternion(TERMS, q))
    assert math.isclose(np.linalg.det(mapped[0].numpy()), 1.0, abs_tol=1e-12)


@pytest.mark.parametrize("degrees", [(-1, 1, 1), (2, -1, 1)])
def test_bad_degrees_of_wigner_3j(degrees):
    """The exact table's own words, whatever was compiled."""
    with pytest.raises((TypeError, ValueError)) as expected:
        so3.coupling(*degrees)
    with pytest.raises(type(expected.value), match="^" + re.escape(str(expected.value))):
        wigner.wigner_3j(*degrees)
