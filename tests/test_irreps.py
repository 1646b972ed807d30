"""Irrep and Irreps against e3nn 0.6, method by method, and the sentences they refuse nonsense with."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from e3nn import o3 as e3nn_o3
from hypothesis import given
from hypothesis import strategies as st

from clebsch.algebra.irreps import Irrep, Irreps, MulIr
from clebsch.testing import random_irreps

IRREPS = random_irreps(max_terms=6, multiplicities=(0, 1, 2, 5, 17))
GRAMMAR = "expected [mul x] l p with p in e, o, y"


def theirs(irreps):
    return e3nn_o3.Irreps(str(irreps))


def same(ours, other):
    """The same representations as e3nn has, in our own classes."""
    assert type(ours) is Irreps
    assert all(type(term) is MulIr and type(term.ir) is Irrep for term in ours)
    return str(ours) == str(other) and ours == other and hash(ours) == hash(other)


# Reading


@pytest.mark.parametrize(
    "text",
    ["", "  ", "0e", " 2x0e + 3 x 1o ", "2y+3y", "10x1e+0x2o", "01e", "2x 1 o", "16x12o", "0x0e", "1o+1o+1o"],
)
def test_strings_are_read_as_e3nn_reads_them(text):
    assert same(Irreps(text), e3nn_o3.Irreps(text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("2x0e + 3x", "3x"),
        ("x0e", "x0e"),
        ("2x0e+", ""),
        ("0e+-1e", "-1e"),
        ("-2x1e", "-2x1e"),
        ("1e2", "1e2"),
        ("0E", "0E"),
        ("2*0e", "2*0e"),
        ("2x3x0e", "2x3x0e"),
        ("1.5x0e", "1.5x0e"),
        ("1_0x0e", "1_0x0e"),
        ("٣e", "٣e"),
        ("vector", "vector"),
    ],
)
def test_malformed_strings_are_refused(text, part):
    with pytest.raises(ValueError) as error:
        Irreps(text)
    assert str(error.value) == f"Irreps: cannot parse {part!r} in {text!r}: {GRAMMAR}"


@given(IRREPS)
def test_str_is_read_back(irreps):
    assert Irreps(str(irreps)) == irreps
    assert same(irreps, theirs(irreps))


def test_many_forms_say_the_same():
    expected = Irreps("2x1e+1x0e+1x2o")

    class Printed:
        def __str__(self):
            return "2x1e + 0e + 2o"

    for form in (
        [(2, "1e"), "0e", (1, (2, -1))],
        ((2, (1, 1)), Irrep("0e"), MulIr(1, Irrep("2o"))),
        (term for term in ["2x1e", "0e", "2o"]),
        [[np.int64(2), Irrep(np.int32(1), 1)], e3nn_o3.Irrep("0e"), (1, e3nn_o3.Irrep("2o"))],
        e3nn_o3.Irreps("2x1e+0e+2o"),
        list(e3nn_o3.Irreps("2x1e+0e+2o")),
        Printed(),
        expected,
    ):
        assert same(Irreps(form), e3nn_o3.Irreps("2x1e+1x0e+1x2o"))
    assert Irreps() == Irreps("") == Irreps([]) == Irreps(None)
    assert Irrep(MulIr(2, Irrep("1o"))) == Irrep("1o")
    assert Irreps(Irrep("1o")) == Irreps(MulIr(1, Irrep("1o"))) == Irreps(e3nn_o3.Irrep("1o")) == Irreps("1o")
    assert e3nn_o3.Irreps(expected) == expected


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (5, "Irreps: cannot read 5: expected a string or an iterable of terms"),
        ([5], f"Irreps: cannot parse '5': {GRAMMAR}"),
        ([(1, 2, 3)], "Irreps: cannot read the term (1, 2, 3): expected a pair (mul, irrep)"),
        ([(-1, "1e")], "Irreps: a multiplicity must be an integer >= 0, got -1 of 1e"),
        ([(1.5, "1e")], "Irreps: a multiplicity must be an integer >= 0, got 1.5 of 1e"),
        ([(2, "2x1e")], "Irrep: cannot parse '2x1e': expected l p with p in e, o, y, such as '1o'"),
        ([(2, (1, 2))], "Irrep: p must be 1 or -1, got 2"),
    ],
)
def test_malformed_terms_are_refused(form, message):
    with pytest.raises(ValueError) as error:
        Irreps(form)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("abc",), "Irrep: cannot parse 'abc': expected l p with p in e, o, y, such as '1o'"),
        (("3x1e",), "Irrep: cannot parse '3x1e': expected l p with p in e, o, y, such as '1o'"),
        ((1,), "Irrep: cannot parse '1': expected l p with p in e, o, y, such as '1o'"),
        ((-1, 1), "Irrep: l must be an integer >= 0, got -1"),
        ((1.0, 1), "Irrep: l must be an integer >= 0, got 1.0"),
        ((1, 0), "Irrep: p must be 1 or -1, got 0"),
    ],
)
def test_malformed_irreps_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        Irrep(*arguments)
    assert str(error.value) == message


# One irrep


def test_irrep_against_e3nn():
    labels = [f"{l}{p}" for l in range(4) for p in "eoy"]
    for label in labels:
        ours, other = Irrep(label), e3nn_o3.Irrep(label)
        assert ours == other and hash(ours) == hash(other) and repr(ours) == str(ours) == repr(other)
        assert (ours.l, ours.p, ours.dim, ours.is_scalar()) == (
            other.l,
            other.p,
            other.dim,
            other.is_scalar(),
        )
        assert same(3 * ours, 3 * other)
        assert (
            Irrep(ours) is ours
            and Irrep((ours.l, ours.p)) == Irrep(other) == Irrep(l=ours.l, p=ours.p) == ours
        )
        l, p = ours
        assert (l, p) == (ours.l, ours.p)
    for a, b in itertools.product(labels, repeat=2):
        assert list(Irrep(a) * b) == list(e3nn_o3.Irrep(a) * e3nn_o3.Irrep(b))
        assert same(Irrep(a) + Irrep(b), e3nn_o3.Irrep(a) + e3nn_o3.Irrep(b))
        assert (Irrep(a) < Irrep(b)) == (e3nn_o3.Irrep(a) < e3nn_o3.Irrep(b))
    assert list(Irrep.iterator(3)) == list(e3nn_o3.Irrep.iterator(3))
    assert list(itertools.islice(Irrep.iterator(), 30)) == list(
        itertools.islice(e3nn_o3.Irrep.iterator(), 30)
    )
    assert Irrep("2e") in Irrep("1o") * "1o" and Irrep("2o") not in Irrep("1o") * "1o"


@pytest.mark.parametrize(
    "question", [len, lambda ir: 1 in ir, lambda ir: ir.count(1), lambda ir: ir.index(1)], ids=range(4)
)
def test_an_irrep_is_not_a_sequence(question):
    with pytest.raises(NotImplementedError, match=r"^an Irrep is one representation, not a sequence"):
        question(Irrep("1o"))


# Direct sums


@given(IRREPS)
def test_properties_against_e3nn(irreps):
    other = theirs(irreps)
    assert (irreps.dim, irreps.num_irreps, irreps.ls) == (other.dim, other.num_irreps, other.ls)
    assert irreps.slices() == other.slices()
    assert [(term.mul, term.ir, term.dim) for term in irreps] == [(t.mul, t.ir, t.dim) for t in other]
    assert same(irreps.simplify(), other.simplify())
    assert same(irreps.regroup(), other.regroup())
    assert same(irreps.remove_zero_multiplicities(), other.remove_zero_multiplicities())
    ours, sort = irreps.sort(), other.sort()
    assert same(ours.irreps, sort.irreps) and tuple(ours)[1:] == tuple(sort)[1:]
    assert ours.p == sort.p and ours.inv == sort.inv
    for label in ("0e", "1o", "8e"):
        assert irreps.count(label) == other.count(label) and (label in irreps) == (label in other)
    if irreps.ls:
        assert irreps.lmax == other.lmax


@given(IRREPS, IRREPS, st.integers(0, 3))
def test_sums_and_multiples_against_e3nn(a, b, times):
    assert same(a + b, theirs(a) + theirs(b))
    assert same(a + str(b), theirs(a) + theirs(b)) and same(a + theirs(b), theirs(a) + theirs(b))
    assert same(a * times, theirs(a) * times) and same(times * a, times * theirs(a))


@given(IRREPS, st.integers(0, 8), st.data())
def test_filter_against_e3nn(irreps, lmax, data):
    other = theirs(irreps)
    labels = data.draw(st.lists(st.sampled_from([str(ir) for ir in Irrep.iterator(8)])))
    text = "+".join(labels)
    assert same(irreps.filter(keep=labels), other.filter(keep=labels))
    assert same(irreps.filter(drop=labels), other.filter(drop=labels))
    assert irreps.filter(keep=text) == irreps.filter(keep=Irreps(text)) == irreps.filter(labels)
    assert same(irreps.filter(lmax=lmax), other.filter(lmax=lmax))
    assert same(irreps.filter(keep=lambda term: term.mul > 1), other.filter(keep=lambda term: term.mul > 1))
    assert same(
        irreps.filter(drop=lambda term: term.ir.l == 1), other.filter(drop=lambda term: term.ir.l == 1)
    )
    assert irreps.filter() is irreps
    for term in irreps:
        label = [str(term.ir)]  # alone, and in a string, e3nn 0.6 does not find it
        assert same(irreps.filter(keep=term.ir), other.filter(keep=label))
        assert same(irreps.filter(drop=term), other.filter(drop=label))


def test_filter_takes_one_criterion():
    with pytest.raises(ValueError) as error:
        Irreps("0e").filter("0e", lmax=1)
    assert str(error.value) == "Irreps.filter: give only one of keep, drop and lmax, got keep and lmax"


@given(IRREPS, st.slices(40), st.slices(6))
def test_slices_against_e3nn(irreps, copies, terms):
    other = theirs(irreps)
    assert same(irreps[terms], other[terms])
    start, stop, _ = slice(copies.start, copies.stop).indices(irreps.num_irreps)
    if start > stop:  # e3nn finds negative multiplicities
        assert irreps.slice_by_mul[start:stop].num_irreps == 0
    else:
        assert same(irreps.slice_by_mul[start:stop], other.slice_by_mul[start:stop])


def test_what_slices_refuse():
    with pytest.raises(IndexError, match=r"^Irreps.slice_by_mul: expected a slice, got 5$"):
        Irreps("10x0e").slice_by_mul[5]
    with pytest.raises(NotImplementedError, match=r"^Irreps.slice_by_mul: the step must be 1, got 2$"):
        Irreps("10x0e").slice_by_mul[::2]


def test_spherical_harmonics_against_e3nn():
    for lmax, p in itertools.product(range(-1, 5), (1, -1)):
        assert same(Irreps.spherical_harmonics(lmax, p), e3nn_o3.Irreps.spherical_harmonics(lmax, p))
    assert same(Irreps.spherical_harmonics(3), e3nn_o3.Irreps.spherical_harmonics(3))


@pytest.mark.parametrize("text", ["", "0x2e"])
def test_no_lmax_of_nothing(text):
    with pytest.raises(ValueError) as error:
        _ = Irreps(text).lmax
    assert str(error.value) == f"Irreps: {text!r} is empty and has no lmax"


def test_what_is_not_defined():
    with pytest.raises(NotImplementedError, match=r"^Irreps \* Irreps is not defined"):
        Irreps("0e") * Irreps("0e")
    with pytest.raises(NotImplementedError, match=r"^Irreps has no index"):
        Irreps("0e").index("0e")
    with pytest.raises(NotImplementedError, match=r"^a term of an Irreps is not a sequence"):
        Irreps("0e")[0].count(1)


@given(IRREPS)
def test_copies_and_pickles(irreps):
    things = [irreps, *irreps, *(term.ir for term in irreps)]
    for thing in things:
        for duplicate in (copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
            assert type(duplicate) is type(thing) and duplicate == thing and hash(duplicate) == hash(thing)


def test_terms_unpack():
    ((mul, ir), (other_mul, (l, p))) = Irreps("3x1o + 2x0e")
    assert (mul, ir, other_mul, l, p) == (3, Irrep("1o"), 2, 0, 1)


# With numbers: clebsch.o3


@pytest.fixture(scope="module")
def o3():
    from clebsch import o3

    return o3


IRREPS_WITH_ALL = "2x0e+0x1o+1x1o+3x2e+1x3o+1x0o+1x4e"


@pytest.mark.parametrize("normalization", ["component", "norm"])
@pytest.mark.parametrize("size", [(-1,), (3, -1), (2, -1, 4)])
def test_randn_draws_what_e3nn_draws(o3, size, normalization):
    irreps = o3.Irreps(IRREPS_WITH_ALL)
    draws = []
    for source in (irreps, theirs(irreps)):
        torch.manual_seed(7)
        draws.append(source.randn(*size, normalization=normalization, dtype=torch.float64))
    torch.testing.assert_close(*draws, rtol=1e-15, atol=1e-15)


def test_randn_options(o3):
    irreps = o3.Irreps("2x1o+0x2e")
    draw = irreps.randn(5, -1, normalization="norm", requires_grad=True, dtype=torch.float64)
    assert draw.requires_grad and draw.is_leaf and draw.dtype == torch.float64
    torch.testing.assert_close(draw.reshape(5, 2, 3).norm(dim=-1), torch.ones(5, 2, dtype=torch.float64))
    assert o3.Irreps("").randn(4, -1, normalization="norm").shape == (4, 0)
    assert irreps.randn(0, -1).shape == (0, 6)
    with pytest.raises(ValueError) as error:
        irreps.randn(5, 6)
    assert str(error.value) == "Irreps.randn: size must contain -1 once, for the irreps, got (5, 6)"
    with pytest.raises(ValueError) as error:
        irreps.randn(-1, normalization="none")
    assert str(error.value) == "Irreps.randn: normalization must be 'component' or 'norm', got 'none'"


def test_matrices_against_e3nn(o3):
    torch.set_default_dtype(torch.float64)
    irreps = o3.Irreps(IRREPS_WITH_ALL)
    R = e3nn_o3.rand_matrix(6)
    R[::2] *= -1
    k = torch.arange(6)
    angles, q, axis_angle = e3nn_o3.rand_angles(6), e3nn_o3.rand_quaternion(6), e3nn_o3.rand_axis_angle(6)
    for ours in (irreps, *(ir for _, ir in irreps)):
        other = e3nn_o3.Irreps(str(ours)) if ours is irreps else e3nn_o3.Irrep(str(ours))
        for D, expected in (
            (ours.D_from_matrix(R), other.D_from_matrix(R)),
            (ours.D_from_angles(*angles), other.D_from_angles(*angles)),
            (ours.D_from_angles(*angles, k), other.D_from_angles(*angles, k)),
            (ours.D_from_quaternion(q, k), other.D_from_quaternion(q, k)),
            (ours.D_from_axis_angle(*axis_angle), other.D_from_axis_angle(*axis_angle)),
        ):
            torch.testing.assert_close(D, expected, rtol=0, atol=1e-12)


def test_everything_stays_in_the_class_with_numbers(o3):
    irreps = o3.Irreps(IRREPS_WITH_ALL)
    ir = irreps[0].ir
    for made in (
        irreps + "1o",
        irreps * 2,
        irreps[1:],
        irreps.simplify(),
        irreps.sort().irreps,
        irreps.filter(lmax=1),
        irreps.slice_by_mul[1:3],
        o3.Irreps(Irreps("2x1o")),
        o3.Irreps(theirs(irreps)),
        o3.Irreps.spherical_harmonics(2),
        3 * ir,
        ir + ir,
        pickle.loads(pickle.dumps(irreps)),
        copy.deepcopy(irreps),
    ):
        assert type(made) is o3.Irreps and all(type(term.ir) is o3.Irrep for term in made)
    assert all(
        type(made) is o3.Irrep for made in (*(ir * "1o"), *o3.Irrep.iterator(1), o3.Irrep(Irrep("1o")))
    )
    assert irreps == Irreps(irreps) == theirs(irreps) and type(Irreps(irreps)) is Irreps
    assert e3nn_o3.Linear(irreps, irreps).irreps_in == irreps
