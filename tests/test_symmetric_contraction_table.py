"""Couplings of powers, and the sparse table that stands for them."""

import itertools
import re

import numpy as np
import pytest
import torch

from clebsch import nn
from clebsch.algebra import so3
from clebsch.algebra.irreps import Irrep, Irreps
from clebsch.nn.symmetric_contraction_basis import coupled_powers
from contraction_calls import decode, matrices

CASES = [
    ("0e+1o+2e+3o", "0e+1o", 3),
    ("0e+1o+2e+3o", "2e+3o", 2),
    ("0e+1o", "0e+1o+2e", 4),
    ("0e+0o+1e+1o", "0o+1e", 3),
    ("0e+1o+2e+3o+4e", "4e+0e", 2),
    ("0e+1o", "2e+0o", 1),
]


def arrays(irreps, targets, correlation):
    return [coupled_powers(Irreps(irreps), ir, correlation) for _, ir in Irreps(targets)]


def symmetrized(u):
    """The mean over the orders of the indices i1, ..., inu."""
    nu = u.ndim - 2
    orders = list(itertools.permutations(range(1, nu + 1)))
    return sum(u.transpose(0, *order, nu + 1) for order in orders) / len(orders)


def folded(u):
    """Entries added up over the orders of their indices, at the sorted one."""
    result = np.zeros(u.shape)
    for place in zip(*np.nonzero(u), strict=True):
        result[(place[0], *sorted(place[1:-1]), place[-1])] += u[place]
    return result


@pytest.mark.parametrize(("irreps", "targets", "correlation"), CASES)
def test_a_table_holds_its_arrays(irreps, targets, correlation):
    given = arrays(irreps, targets, correlation)
    table = nn.contraction_table(given)
    decoded = decode(table)
    assert decoded.basis == decoded.again
    assert table.widths == tuple(decoded.widths) == tuple(ir.dim for _, ir in Irreps(targets))
    paths = [[u.shape[-1] for u in target] for target in given]
    assert table.weights == sum(map(sum, paths)) == decoded.counts["weights"]
    for target, own in zip(given, matrices(decoded, paths), strict=True):
        for u, found in zip(target, own, strict=True):
            assert np.allclose(found, folded(u), rtol=0, atol=4e-15 * abs(u).max(initial=0))


@pytest.mark.parametrize(("irreps", "targets", "correlation"), CASES)
def test_as_many_rows_as_independent_polynomials(irreps, targets, correlation):
    given = arrays(irreps, targets, correlation)
    ranks = [
        sum(np.linalg.matrix_rank(symmetrized(u).reshape(-1, u.shape[-1]), tol=1e-8) for u in target)
        for target in given
    ]
    assert decode(nn.contraction_table(given)).rows_of_target == ranks


def test_the_counts_that_the_kernel_quotes():
    table = nn.contraction_table(arrays("0e+1o+2e+3o", "0e+1o", 3))
    counts = decode(table).counts
    assert (counts["weights"], counts["rows"]) == (86, 29)
    assert (counts["entries"], counts["groups"], counts["terms"], counts["pairs"]) == (486, 374, 410, 57)


@pytest.mark.parametrize("irreps, out, correlation", [("0e+1o+2e", "1o", 3), ("0e+1o", "2e", 4)])
def test_couplings_are_equivariant(irreps, out, correlation):
    """A generator of rotations acts on the output as on all inputs together."""
    for axis in range(3):
        blocks = [generators(ir.l)[axis] for _, ir in Irreps(irreps)]
        ends = np.cumsum([len(block) for block in blocks])
        x = np.zeros((ends[-1], ends[-1]))
        for end, block in zip(ends, blocks, strict=True):
            x[end - len(block) : end, end - len(block) : end] = block
        for u in coupled_powers(Irreps(irreps), Irrep(out), correlation):
            left = np.tensordot(generators(Irrep(out).l)[axis], u, axes=(1, 0))
            right = sum(
                np.moveaxis(np.tensordot(u, x, axes=(slot, 0)), -1, slot) for slot in range(1, u.ndim - 1)
            )
            assert abs(left - right).max() < 1e-13


def generators(l):
    """How the three components of an axial vector act: the couplings of l and 1 to l, of one scale."""
    if l == 0:
        return np.zeros((3, 1, 1))
    found = np.zeros((3, 2 * l + 1, 2 * l + 1))
    for entry in so3.coupling(l, 1, l):
        found[entry.m2, entry.m1, entry.m3] = entry.value
    # sum over axes of G^T G is l (l + 1)
    return found * np.sqrt(l * (l + 1) * (2 * l + 1))


def test_powers_of_a_vector_by_hand():
    """Of x = (a, b, c): x.x / sqrt 3 in component normalisation, and x x.x along both of its paths."""
    (_, two), (_, _, three) = arrays("1o", "0e", 2)[0], arrays("1o", "1o", 3)[0]
    assert np.allclose(two[0, :, :, 0], np.eye(3) / np.sqrt(3))
    x = np.array([0.3, -1.2, 0.7])
    value = np.einsum("mijhk,i,j,h->km", three, x, x, x)
    assert np.allclose(np.cross(value, x), 0)
    assert np.allclose(value[0], x * (x @ x) / np.sqrt(3))


@pytest.mark.parametrize("noise", [0.0, 3e-8, 1e-7])
def test_rounding_noise_of_float32_is_dropped(noise):
    """Entries that are noise, and paths that are the same but for it, cost nothing."""
    exact = arrays("0e+1o+2e+3o", "0e+1o", 3)
    rng = np.random.default_rng(0)
    rounded = [
        [
            torch.tensor(u * (1 + 5e-8 * rng.normal(size=u.shape)) + noise * rng.normal(size=u.shape)).float()
            for u in target
        ]
        for target in exact
    ]
    found = decode(nn.contraction_table(rounded))
    expected = decode(nn.contraction_table(exact))
    assert found.counts == expected.counts
    paths = [[u.shape[-1] for u in target] for target in exact]
    for own, target in zip(matrices(found, paths), exact, strict=True):
        for u, v in zip(own, target, strict=True):
            assert abs(u - folded(v)).max() < 2e-6 * abs(v).max()


def test_float64_arrays_that_carry_the_rounding_of_float32_are_kept_to_the_digit():
    rounded = [
        [torch.tensor(u).float().double() for u in target] for target in arrays("0e+1o+2e", "0e+1o", 3)
    ]
    decoded = decode(nn.contraction_table(rounded))
    paths = [[u.shape[-1] for u in target] for target in rounded]
    for own, target in zip(matrices(decoded, paths), rounded, strict=True):
        for u, v in zip(own, target, strict=True):
            assert abs(u - folded(v.numpy())).max() < 1e-13
    # and are joined again where that precision is asked for
    coarse = decode(nn.contraction_table(rounded, resolution=1e-6))
    assert (
        coarse.counts["rows"] == decode(nn.contraction_table(arrays("0e+1o+2e", "0e+1o", 3))).counts["rows"]
    )


def test_arrays_as_mace_keeps_them():
    """Without the axis of M for scalars."""
    exact = arrays("0e+1o", "0e+1o", 3)
    flat = [[torch.tensor(u[0] if u.shape[0] == 1 else u) for u in target] for target in exact]
    assert nn.contraction_table(flat) == nn.contraction_table(exact)
    assert hash(nn.contraction_table(flat)) == hash(nn.contraction_table(exact))
    one = arrays("0e", "0e", 2)
    squeezed = [[torch.tensor(u).reshape(u.shape[-1]) for u in target] for target in one]
    assert nn.contraction_table(squeezed) == nn.contraction_table(one)


def test_no_coupling_at_all():
    decoded = decode(nn.contraction_table(arrays("0e+1o", "0o", 2)))
    assert decoded.counts["rows"] == decoded.counts["entries"] == 0
    assert decoded.counts["weights"] == 2


def test_a_table_is_immutable_and_its_tensor_is_made_once():
    table = nn.contraction_table(arrays("0e+1o", "0e", 2))
    assert table.tensor is table.tensor and table.tensor.dtype == torch.int64
    with pytest.raises(AttributeError):
        table.weights = 3


def test_bad_arrays():
    u1, u2 = np.zeros((3, 4, 1)), np.zeros((3, 4, 4, 2))
    for message, given in (
        ("u_matrices must hold an array or more for every target", []),
        ("u_matrices must hold an array or more for every target", [[u1], []]),
        ("correlation must be 1 to 4, got 5", [[u1] * 5]),
        ("u_matrices[0][1] must have shape (3, 4, 4, 2), got (3, 4, 5, 2)", [[u1, np.zeros((3, 4, 5, 2))]]),
        ("u_matrices[1][1] must have shape (1, 4, 4, 2), got (3, 4, 4, 2)", [[u1], [u1[0], u2]]),
        (
            "u_matrices[0][0] must have shape (D, paths) or (2l+1, D, paths), got (3, 4, 4, 2)",
            [[u2]],
        ),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(f"contraction_table: {message}") + "$"):
            nn.contraction_table(given)
