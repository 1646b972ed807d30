"""Exact representation theory of SO(3) in the real basis: the only source of coupling coefficients.

Every number here is a sign times the square root of a rational, kept as integers and rounded once to
float64.

Conventions (those of e3nn). Component ``m + l`` of degree l, m = -l..l, belongs to the real harmonic that
goes as sin(|m| alpha) for m < 0 and cos(m alpha) for m >= 0, with the pole on +y and alpha = atan2(x, z). For
l = 1 the components are (x, y, z). A rotation acts on column vectors, D(R1 R2) = D(R1) D(R2).
"""

from fractions import Fraction
from functools import cache
from math import comb, factorial, isqrt, ldexp
from typing import NamedTuple

SIGNS = ("e3nn-0.5", "e3nn-0.4")


class Entry(NamedTuple):
    """One non-zero real coupling coefficient, sign * sqrt(square), at components (m1, m2, m3), each 0..2l."""

    m1: int
    m2: int
    m3: int
    sign: int
    square: Fraction

    @property
    def value(self) -> float:
        """The coefficient, correctly rounded to float64."""
        return signed_root(self.sign, self.square)


class MatrixEntry(NamedTuple):
    """One non-zero entry, sign * sqrt(square), of a (2l+1, 2l+1) matrix at components (row, column)."""

    row: int
    column: int
    sign: int
    square: Fraction

    @property
    def value(self) -> float:
        """The entry, correctly rounded to float64."""
        return signed_root(self.sign, self.square)


def signed_root(sign: int, square: Fraction) -> float:
    """sign * sqrt(square) rounded to the nearest float64 (ties to even)."""
    numerator, denominator = square.numerator, square.denominator
    # Scale by an even power of two that leaves at least 64 bits in the integer root; a last bit that says
    # "not exact" then lets the conversion of the integer to float do the only rounding.
    shift = max(0, 64 + (denominator.bit_length() - numerator.bit_length() + 1) // 2)
    scaled, remainder = divmod(numerator << (2 * shift), denominator)
    root = isqrt(scaled)
    sticky = remainder != 0 or root * root != scaled
    return sign * ldexp(float((root << 1) | sticky), -shift - 1)


def _check_degree(function: str, name: str, l: int) -> None:
    if isinstance(l, bool) or not isinstance(l, int):
        raise TypeError(f"{function}: {name} must be an int, got {l!r}")
    if l < 0:
        raise ValueError(f"{function}: {name} must be 0 or more, got {l}")


def coupling(l1: int, l2: int, l3: int, signs: str = "e3nn-0.5") -> tuple[Entry, ...]:
    """Non-zero real coupling coefficients C[m1, m2, m3] of degrees l1, l2, l3, sorted by (m1, m2, m3).

    C is the invariant tensor, unchanged when contracted with D(l1), D(l2) and D(l3) of any rotation, of
    Frobenius norm 1. Swapping two slots multiplies it by (-1)^(l1+l2+l3).

    signs: "e3nn-0.5" gives the numbers of e3nn >= 0.5, whose sign is that of the complex Clebsch-Gordan
    coefficients (Condon-Shortley) carried to the real basis; "e3nn-0.4" gives those of e3nn 0.4, where for
    odd l1+l2+l3 the triple in ascending order has a positive first non-zero coefficient and the other orders
    follow from the swap rule. For even l1+l2+l3 the two agree, and the coefficient of m1 = m2 = m3 = 0 is
    positive.

    Raises TypeError for a degree that is not an int; ValueError for a negative one, for degrees that do not
    satisfy the triangle rule, and for unknown signs.
    """
    for name, l in (("l1", l1), ("l2", l2), ("l3", l3)):
        _check_degree("coupling", name, l)
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"coupling: l3 must satisfy |l1 - l2| <= l3 <= l1 + l2, got ({l1}, {l2}, {l3})")
    if signs not in SIGNS:
        raise ValueError(f"coupling: signs must be one of {', '.join(map(repr, SIGNS))}, got {signs!r}")
    if signs == "e3nn-0.4" and changes_sign(l1, l2, l3):
        return _negated(l1, l2, l3)
    return _entries(l1, l2, l3)


def changes_sign(l1: int, l2: int, l3: int) -> bool:
    """Whether the coupling of this triple has opposite signs in e3nn 0.4 and in e3nn >= 0.5."""
    # Both versions follow the same rule under a swap of slots, so the ascending order speaks for all six.
    return (l1 + l2 + l3) % 2 == 1 and _entries(*sorted((l1, l2, l3)))[0].sign < 0


@cache
def _negated(l1: int, l2: int, l3: int) -> tuple[Entry, ...]:
    return tuple(entry._replace(sign=-entry.sign) for entry in _entries(l1, l2, l3))


@cache
def _entries(l1: int, l2: int, l3: int) -> tuple[Entry, ...]:
    # The change of basis mixes orders m and -m only, so a real coefficient is a sum of complex ones over the
    # signs of its orders. Those that conserve m come as one pair with all signs reversed, whose two terms are
    # equal or cancel: each real coefficient is a single complex one times 2/sqrt(8), or 1 if one order is 0.
    total = l1 + l2 + l3
    below = factorial(total + 1)
    for l in (l1, l2, l3):
        below *= factorial(total - 2 * l)
    entries = []
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            complex_m2 = {abs(m2), -abs(m2)} if m1 else {abs(m2)}
            for n2 in complex_m2:
                n1, n3 = abs(m1), abs(m1) + n2
                if abs(n3) > l3:
                    continue
                # The pair cancels unless the number of sine-like orders has the parity of l1+l2+l3.
                odd = (total + (m1 < 0) + (m2 < 0)) % 2
                if odd and n3 == 0:
                    continue
                m3 = -abs(n3) if odd else abs(n3)
                racah = _racah_sum(l1, l2, l3, n1, n2)
                if racah == 0:
                    continue
                quarter_turns = _phase(l1, m1, n1) + _phase(l2, m2, n2) - _phase(l3, m3, n3)
                sign = (1 if racah > 0 else -1) * (1 if quarter_turns % 4 == 0 else -1)
                above = racah * racah
                for l, n in ((l1, n1), (l2, n2), (l3, n3)):
                    above *= factorial(l + n) * factorial(l - n)
                halved = 2 if m1 and m2 and m3 else 1
                square = Fraction(above, below * halved)
                entries.append(Entry(m1 + l1, m2 + l2, m3 + l3, sign, square))
    return tuple(sorted(entries))


def _racah_sum(l1: int, l2: int, l3: int, m1: int, m2: int) -> int:
    """The alternating sum of Racah's formula for <l1 m1 l2 m2 | l3 m1+m2>, in binomials: an integer.

    With J = l1+l2+l3, 3j(l1 l2 l3; m1 m2 m3)^2 = sum^2 * prod_i (l_i+m_i)! (l_i-m_i)! / ((J+1)! prod_i
    (J-2 l_i)!), and the Clebsch-Gordan coefficient has the sign of the sum (Racah 1942, Theory of complex
    spectra II, with each quotient of factorials gathered into a binomial).
    """
    n3, n2, n1 = l1 + l2 - l3, l1 - l2 + l3, -l1 + l2 + l3
    first = max(0, l1 - m1 - n2, l2 + m2 - n1)
    last = min(n3, l1 - m1, l2 + m2)
    result = 0
    for k in range(first, last + 1):
        term = comb(n3, k) * comb(n2, l1 - m1 - k) * comb(n1, l2 + m2 - k)
        result += -term if k % 2 else term
    return result


def _phase(l: int, m: int, n: int) -> int:
    """Power of i in the change of basis from complex order n = +-m to real order m, with e3nn's (-i)^l."""
    if m == 0:
        return 3 * l
    if m > 0:
        return 3 * l + (2 * n if n > 0 else 0)
    return 3 * l + (1 + 2 * n if n > 0 else 3)


@cache
def generators(l: int) -> tuple[tuple[MatrixEntry, ...], tuple[MatrixEntry, ...], tuple[MatrixEntry, ...]]:
    """Generators (X_x, X_y, X_z) of rotations on degree l: the non-zero entries of (2l+1, 2l+1) matrices.

    Antisymmetric, with [X_x, X_y] = X_z and cyclic; D of a rotation by t about axis i is expm(t X_i). They
    are the ladder operators, <m+1| J+ |m> = sqrt(l(l+1) - m(m+1)), carried to the real basis.
    """
    _check_degree("generators", "l", l)
    x: list[MatrixEntry] = []
    y: list[MatrixEntry] = []
    z: list[MatrixEntry] = []

    def add(matrix: list[MatrixEntry], row: int, column: int, sign: int, square: Fraction) -> None:
        matrix.append(MatrixEntry(row + l, column + l, sign, square))
        matrix.append(MatrixEntry(column + l, row + l, -sign, square))

    for m in range(l):
        ladder = l * (l + 1) - m * (m + 1)
        if m == 0:
            square = Fraction(ladder, 2)
            add(x, 1, 0, 1, square)
            add(z, -1, 0, -1, square)
        else:
            square = Fraction(ladder, 4)
            add(x, m + 1, m, 1, square)
            add(x, -m - 1, -m, 1, square)
            add(z, -m - 1, m, -1, square)
            add(z, m + 1, -m, 1, square)
    for m in range(1, l + 1):
        add(y, -m, m, 1, Fraction(m * m))
    return tuple(sorted(x)), tuple(sorted(y)), tuple(sorted(z))


@cache
def axis_swap(l: int) -> tuple[MatrixEntry, ...]:
    """Non-zero entries of J = D^l of the half turn about x + y, which sends (x, y, z) to (y, x, -z).

    J is symmetric and its own inverse, and turns a rotation about x into one about y, so that
    D(alpha, beta, gamma) = Y(alpha) J Y(beta) J Y(gamma) with Y(t) = D of the rotation by t about y.

    Found as Y(pi/2) A Y(pi/2), where A = D of the quarter turn about x is Wigner's d(pi/2) in the real basis.
    """
    _check_degree("axis_swap", "l", l)
    entries = []
    for row in range(-l, l + 1):
        for column in range(-l, l + 1):
            # Y(pi/2) has one entry per row: 1 or -1, on the diagonal for even orders, opposite for odd ones.
            left, left_sign = (row, 1 - row % 4) if row % 2 == 0 else (-row, row % 4 - 2)
            right, right_sign = (column, 1 - column % 4) if column % 2 == 0 else (-column, 2 - column % 4)
            sign, square = _quarter_turn_about_x(l, left, right)
            if sign:
                entries.append(MatrixEntry(row + l, column + l, sign * left_sign * right_sign, square))
    return tuple(entries)


def _quarter_turn_about_x(l: int, row: int, column: int) -> tuple[int, Fraction]:
    """Sign and square of the entry of D^l(rotation by pi/2 about x) at real orders (row, column)."""
    m, n = abs(row), abs(column)
    # Sines and cosines do not mix, and d_{m,-n}(pi/2) = (-1)^(l+m) d_{m,n}(pi/2) cancels or doubles the rest.
    if (row < 0) != (column < 0) or (l + m + n + (row < 0)) % 2:
        return 0, Fraction(0)
    # d_{m,n}(pi/2) = 2^-l sqrt((l+m)! (l-m)! / ((l+n)! (l-n)!)) sum_k (-1)^(m-n+k) C(l+n, k) C(l-n, l-m-k)
    total = 0
    for k in range(max(0, n - m), min(l + n, l - m) + 1):
        term = comb(l + n, k) * comb(l - n, l - m - k)
        total += -term if (m - n + k) % 2 else term
    if total == 0:
        return 0, Fraction(0)
    doubled = (2 if m else 1) * (2 if n else 1)
    above = doubled * total * total * factorial(l + m) * factorial(l - m)
    below = 4**l * factorial(l + n) * factorial(l - n)
    return (1 if total > 0 else -1) * (-1 if (m + n) % 2 else 1), Fraction(above, below)


@cache
def harmonic_norms(l: int, normalization: str = "component") -> tuple[Fraction, ...]:
    """Squares of the factors N_m, m = 0..l, of the real spherical harmonics of degree l.

    On the unit sphere Y_m = N_|m| Q_|m|(y) times Re (z + ix)^m for m >= 0 and Im (z + ix)^|m| for m < 0,
    where Q_m is the m-th derivative of the Legendre polynomial P_l (so no Condon-Shortley phase).

    "component", with |Y|^2 = 2l+1, has N_m^2 = (2l+1) (l-m)!/(l+m)!, twice that for m > 0; "norm", with
    |Y|^2 = 1, lacks the factor 2l+1. "integral", orthonormal on the sphere, is "component" over 4 pi: not
    rational, so left to the caller (ValueError).
    """
    _check_degree("harmonic_norms", "l", l)
    if normalization not in ("component", "norm"):
        raise ValueError(
            "harmonic_norms: normalization must be 'component' or 'norm' "
            f"('integral' is 'component' divided by sqrt(4 pi)), got {normalization!r}"
        )
    scale = 2 * l + 1 if normalization == "component" else 1
    return tuple(Fraction(scale * (2 if m else 1) * factorial(l - m), factorial(l + m)) for m in range(l + 1))
