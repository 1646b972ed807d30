"""The exact table against independent truth: all backends share it, so nothing else would notice an error."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from sympy.physics.wigner import clebsch_gordan, real_gaunt

from clebsch.algebra import so3


def triples(l_max):
    degrees = range(l_max + 1)
    return [t for t in itertools.product(degrees, repeat=3) if abs(t[0] - t[1]) <= t[2] <= t[0] + t[1]]


def dense(l1, l2, l3, signs="e3nn-0.5"):
    C = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for entry in so3.coupling(l1, l2, l3, signs):
        C[entry.m1, entry.m2, entry.m3] = entry.value
    return C


def matrix(entries, l):
    M = np.zeros((2 * l + 1, 2 * l + 1))
    for entry in entries:
        M[entry.row, entry.column] = entry.value
    return M


def exact(entry):
    return entry.sign * sympy.sqrt(sympy.Rational(entry.square.numerator, entry.square.denominator))


# Coupling coefficients against sympy


def real_basis(l):
    """U[a, m], the real harmonic a as a combination of complex ones m with Condon and Shortley's phase."""
    U = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    U[l, l] = 1
    for m in range(1, l + 1):
        U[l + m, l + m], U[l + m, l - m] = (-1) ** m / 2**0.5, 1 / 2**0.5
        U[l - m, l + m], U[l - m, l - m] = (-1) ** m / (1j * 2**0.5), -1 / (1j * 2**0.5)
    return U


def coupling_from_sympy(l1, l2, l3):
    G = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1, m2 in itertools.product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        if abs(m1 + m2) <= l3:
            G[l1 + m1, l2 + m2, l3 + m1 + m2] = float(clebsch_gordan(l1, l2, l3, m1, m2, m1 + m2))
    C = np.einsum(
        "ai,bj,ck,ijk->abc", real_basis(l1).conj(), real_basis(l2).conj(), real_basis(l3), G, optimize=True
    )
    # e3nn's basis of degree l carries (-i)^l, which makes every coupling real.
    C = (-1j) ** (l1 + l2) * 1j**l3 * C
    assert abs(C.imag).max() < 1e-14
    return C.real / math.sqrt(2 * l3 + 1)


def test_coupling_is_that_of_sympy_in_the_real_basis():
    for l1, l2, l3 in triples(5):
        np.testing.assert_allclose(
            dense(l1, l2, l3), coupling_from_sympy(l1, l2, l3), rtol=0, atol=2e-15, err_msg=str((l1, l2, l3))
        )


@pytest.mark.parametrize("l1, l2, l3", [(6, 7, 8), (8, 8, 7), (8, 3, 6)])
def test_coupling_of_high_degree_is_that_of_sympy(l1, l2, l3):
    np.testing.assert_allclose(dense(l1, l2, l3), coupling_from_sympy(l1, l2, l3), rtol=0, atol=2e-15)


@pytest.mark.parametrize("l1, l2, l3", [(0, 2, 2), (1, 1, 2), (2, 2, 2), (2, 1, 3), (3, 3, 2), (4, 2, 4)])
def test_overlap_with_harmonics_is_positive_and_exact(l1, l2, l3):
    # Where l1+l2+l3 is even the integrals of three real harmonics are the same invariant tensor.
    ratios = set()
    for entry in so3.coupling(l1, l2, l3):
        gaunt = real_gaunt(l1, l2, l3, entry.m1 - l1, entry.m2 - l2, entry.m3 - l3)
        ratios.add(sympy.nsimplify(sympy.simplify(gaunt / exact(entry))))
    assert len(ratios) == 1
    assert ratios.pop() > 0


def test_even_triples_couple_poles_positively():
    # At the pole only m = 0 is not zero, and the overlap of three harmonics is the same in all directions.
    for l1, l2, l3 in triples(8):
        middle = dense(l1, l2, l3)[l1, l2, l3]
        assert middle > 0 if (l1 + l2 + l3) % 2 == 0 else middle == 0


# Coupling coefficients: defining properties


def test_coupling_is_invariant_under_the_generators():
    for l1, l2, l3 in triples(8):
        C = dense(l1, l2, l3)
        generators = [[matrix(entries, l) for entries in so3.generators(l)] for l in (l1, l2, l3)]
        for X1, X2, X3 in zip(*generators):
            change = np.tensordot(X1, C, axes=(0, 0))
            change += np.tensordot(X2, C, axes=(0, 1)).transpose(1, 0, 2)
            change += np.tensordot(X3, C, axes=(0, 2)).transpose(1, 2, 0)
            assert abs(change).max() < 5e-15, (l1, l2, l3)


def test_couplings_of_two_degrees_are_orthogonal_and_complete():
    for l1, l2 in itertools.product(range(5), repeat=2):
        columns = [
            math.sqrt(2 * l3 + 1) * dense(l1, l2, l3).reshape(-1, 2 * l3 + 1)
            for l3 in range(abs(l1 - l2), l1 + l2 + 1)
        ]
        Q = np.concatenate(columns, axis=1)
        assert Q.shape[0] == Q.shape[1]
        np.testing.assert_allclose(Q.T @ Q, np.eye(len(Q)), rtol=0, atol=3e-15)


@pytest.mark.parametrize("l1, l2, l3", [*triples(4), (8, 8, 8), (12, 15, 20)])
def test_each_component_has_the_same_exact_norm(l1, l2, l3):
    entries = so3.coupling(l1, l2, l3)
    for slot, l in enumerate((l1, l2, l3)):
        norms = [Fraction(0)] * (2 * l + 1)
        for entry in entries:
            norms[entry[slot]] += entry.square
        assert norms == [Fraction(1, 2 * l + 1)] * (2 * l + 1)


@pytest.mark.parametrize(
    "l1, l2, l3, count", [(1, 1, 1, 6), (1, 1, 2, 11), (2, 2, 2, 25), (3, 3, 3, 42), (4, 4, 4, 97)]
)
def test_number_of_non_zeros(l1, l2, l3, count):
    assert len(so3.coupling(l1, l2, l3)) == count


def test_entries_are_sorted_unique_and_not_zero():
    for l1, l2, l3 in triples(8):
        entries = so3.coupling(l1, l2, l3)
        components = [entry[:3] for entry in entries]
        assert components == sorted(set(components))
        assert all(entry.sign in (-1, 1) and entry.square > 0 for entry in entries)
        assert all(0 <= entry.m1 <= 2 * l1 and 0 <= entry.m2 <= 2 * l2 for entry in entries)
        assert all(0 <= entry.m3 <= 2 * l3 for entry in entries)


@pytest.mark.parametrize("signs", so3.SIGNS)
def test_swapping_two_slots_gives_the_sign_of_the_sum(signs):
    for l in triples(5):
        entries = so3.coupling(*l, signs)
        for first, second in ((0, 1), (0, 2), (1, 2)):
            order = [0, 1, 2]
            order[first], order[second] = second, first
            swapped = so3.coupling(*(l[i] for i in order), signs)
            sign = (-1) ** sum(l)
            expected = sorted(
                so3.Entry(*(entry[i] for i in order), sign * entry.sign, entry.square) for entry in entries
            )
            assert list(swapped) == expected


def test_cross_product_and_dot_product():
    cross = {entry[:3]: exact(entry) for entry in so3.coupling(1, 1, 1)}
    assert cross[0, 1, 2] == cross[1, 2, 0] == cross[2, 0, 1] == 1 / sympy.sqrt(6)
    assert cross[1, 0, 2] == cross[0, 2, 1] == cross[2, 1, 0] == -1 / sympy.sqrt(6)
    dot = {entry[:3]: exact(entry) for entry in so3.coupling(1, 1, 0)}
    assert dot == {(m, m, 0): 1 / sympy.sqrt(3) for m in range(3)}


def test_scalar_leaves_a_degree_alone():
    for l in range(9):
        expected = tuple(so3.Entry(0, m, m, 1, Fraction(1, 2 * l + 1)) for m in range(2 * l + 1))
        assert so3.coupling(0, l, l) == expected


# The signs of e3nn


def test_coupling_is_e3nn():
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn 0.6, a test dependency, is not installed")
    torch = pytest.importorskip("torch")
    for l1, l2, l3 in triples(6):
        theirs = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
        np.testing.assert_allclose(dense(l1, l2, l3), theirs, rtol=0, atol=1e-14)


def test_sign_changes_between_versions_of_e3nn():
    changed = [t for t in triples(6) if so3.changes_sign(*t)]
    assert (len(changed), len(triples(6))) == (34, 175)
    assert all(sum(t) % 2 for t in changed)
    up_to_3 = {t for t in changed if max(t) <= 3}
    assert up_to_3 == {(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1)}
    # Counted in e3nn 0.4.4's own table, as the two above.
    assert sum(so3.changes_sign(*t) for t in triples(9)) == 98


def test_signs_of_e3nn_0_4():
    for t in triples(6):
        new, old = so3.coupling(*t), so3.coupling(*t, signs="e3nn-0.4")
        assert [entry[:3] + entry[4:] for entry in old] == [entry[:3] + entry[4:] for entry in new]
        factor = -1 if so3.changes_sign(*t) else 1
        assert [entry.sign for entry in old] == [factor * entry.sign for entry in new]
        if list(t) == sorted(t) and sum(t) % 2:
            assert old[0].sign == 1


# Generators, axis swap, harmonics


def solid_harmonics(l):
    """The 2l+1 real solid harmonics of degree l as polynomials, from sympy's Legendre polynomials."""
    x, y, z, t = sympy.symbols("x y z t", real=True)
    r2 = x**2 + y**2 + z**2
    norms = [sympy.sqrt(sympy.Rational(n.numerator, n.denominator)) for n in so3.harmonic_norms(l)]
    out = []
    for m in range(-l, l + 1):
        along_pole = sympy.Poly(sympy.diff(sympy.legendre(l, t), t, abs(m)), t)
        # Homogeneous of degree l - |m|: t^k becomes y^k r^(l - |m| - k), an even power of r.
        radial = sum(c * y**k * r2 ** ((l - abs(m) - k) // 2) for (k,), c in along_pole.terms())
        real, imaginary = sympy.expand((z + sympy.I * x) ** abs(m)).as_real_imag()
        out.append(sympy.expand(norms[abs(m)] * radial * (real if m >= 0 else imaginary)))
    return (x, y, z), out


@pytest.mark.parametrize("l", range(6))
def test_generators_turn_harmonics(l):
    (x, y, z), harmonics = solid_harmonics(l)
    velocities = [(0, -z, y), (z, 0, -x), (-y, x, 0)]  # of a point turned about x, y, z
    for velocity, entries in zip(velocities, so3.generators(l)):
        turned = [0] * (2 * l + 1)
        for entry in entries:
            turned[entry.row] += exact(entry) * harmonics[entry.column]
        for harmonic, change in zip(harmonics, turned):
            derivative = sum(v * sympy.diff(harmonic, u) for v, u in zip(velocity, (x, y, z)))
            assert sympy.expand(derivative - change) == 0


def test_generators_are_antisymmetric_with_the_right_commutators_and_casimir():
    for l in range(13):
        X, Y, Z = (matrix(entries, l) for entries in so3.generators(l))
        for A, B, C in ((X, Y, Z), (Y, Z, X), (Z, X, Y)):
            np.testing.assert_array_equal(A, -A.T)
            np.testing.assert_allclose(A @ B - B @ A, C, rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            X @ X + Y @ Y + Z @ Z, -l * (l + 1) * np.eye(2 * l + 1), rtol=0, atol=1e-12
        )


def test_axis_swap_is_an_involution_that_exchanges_x_and_y():
    assert matrix(so3.axis_swap(1), 1).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, -1]]
    for l in range(13):
        J = matrix(so3.axis_swap(l), l)
        X, Y, Z = (matrix(entries, l) for entries in so3.generators(l))
        np.testing.assert_array_equal(J, J.T)
        np.testing.assert_allclose(J @ J, np.eye(2 * l + 1), rtol=0, atol=3e-15)
        np.testing.assert_allclose(J @ X @ J, Y, rtol=0, atol=1e-13)
        np.testing.assert_allclose(J @ Z @ J, -Z, rtol=0, atol=1e-13)


def test_axis_swap_has_exact_rows():
    for l in (1, 2, 5, 12, 30):
        norms = [Fraction(0)] * (2 * l + 1)
        for entry in so3.axis_swap(l):
            norms[entry.row] += entry.square
        assert norms == [Fraction(1)] * (2 * l + 1)


@pytest.mark.parametrize("l", range(7))
def test_harmonics_have_mean_square_one(l):
    # (1/4 pi) times the integral of Y^2: over t = y in [-1, 1], and over the angle about the pole.
    t = sympy.symbols("t")
    for m, square in enumerate(so3.harmonic_norms(l)):
        Q = sympy.diff(sympy.legendre(l, t), t, m)
        along_pole = sympy.integrate(sympy.expand(Q**2 * (1 - t**2) ** m), (t, -1, 1))
        about_pole = sympy.Rational(1, 2) if m else 1
        assert sympy.Rational(square.numerator, square.denominator) * along_pole / 2 * about_pole == 1


@pytest.mark.parametrize("l", range(5))
def test_harmonics_of_a_unit_vector_have_the_norm_of_the_normalization(l):
    _, harmonics = solid_harmonics(l)
    point = dict(zip(sympy.symbols("x y z", real=True), sympy.Rational(1, 3) * sympy.Matrix([1, 2, 2])))
    assert sympy.simplify(sum(h.subs(point) ** 2 for h in harmonics)) == 2 * l + 1
    assert so3.harmonic_norms(l, "norm") == tuple(n / (2 * l + 1) for n in so3.harmonic_norms(l))


# Rounding and errors


def is_nearest(value, square):
    """Whether no float64 is nearer to sqrt(square) than value > 0, in exact arithmetic."""
    below = (Fraction(math.nextafter(value, 0)) + Fraction(value)) / 2
    above = (Fraction(math.nextafter(value, math.inf)) + Fraction(value)) / 2
    return below**2 <= square <= above**2


@given(st.integers(1, 10**60), st.integers(1, 10**60))
def test_signed_root_is_correctly_rounded(numerator, denominator):
    square = Fraction(numerator, denominator)
    assert is_nearest(so3.signed_root(1, square), square)
    assert so3.signed_root(-1, square) == -so3.signed_root(1, square)


def test_signed_root_of_squares_and_halfway_cases():
    assert so3.signed_root(1, Fraction(9, 16)) == 0.75
    assert so3.signed_root(1, Fraction(10**400)) == 1e200
    assert so3.signed_root(1, Fraction(1, 10**400)) == 1e-200
    odd = 2**53 + 1  # halfway between two float64, so to the even one
    assert so3.signed_root(1, Fraction(odd**2)) == 2.0**53
    assert so3.signed_root(1, Fraction(odd**2) + Fraction(1, 10**30)) == 2.0**53 + 2


def test_values_of_the_table_are_correctly_rounded():
    for t in triples(5):
        for entry in so3.coupling(*t):
            assert entry.value * entry.sign > 0
            assert is_nearest(abs(entry.value), entry.square)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((1, 1, 3), ValueError, "coupling: l3 must satisfy |l1 - l2| <= l3 <= l1 + l2, got (1, 1, 3)"),
        ((3, 1, 1), ValueError, "coupling: l3 must satisfy |l1 - l2| <= l3 <= l1 + l2, got (3, 1, 1)"),
        ((1, -1, 1), ValueError, "coupling: l2 must be 0 or more, got -1"),
        ((1, 1, 1.0), TypeError, "coupling: l3 must be an int, got 1.0"),
        ((True, 1, 1), TypeError, "coupling: l1 must be an int, got True"),
        (
            (1, 1, 1, "e3nn"),
            ValueError,
            "coupling: signs must be one of 'e3nn-0.5', 'e3nn-0.4', got 'e3nn'",
        ),
    ],
)
def test_coupling_refuses(arguments, error, message):
    with pytest.raises(error) as caught:
        so3.coupling(*arguments)
    assert str(caught.value) == message


def test_harmonic_norms_refuses_what_is_not_rational():
    with pytest.raises(ValueError) as caught:
        so3.harmonic_norms(2, "integral")
    assert str(caught.value) == (
        "harmonic_norms: normalization must be 'component' or 'norm' "
        "('integral' is 'component' divided by sqrt(4 pi)), got 'integral'"
    )


@pytest.mark.parametrize("function", [so3.generators, so3.axis_swap, so3.harmonic_norms])
def test_negative_degrees_are_refused(function):
    with pytest.raises(ValueError, match=f"^{function.__name__}: l must be 0 or more, got -1$"):
        function(-1)
