"""clebsch.numpy: the kernels without torch, against the reference; what it refuses."""

import concurrent.futures
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clebsch
from clebsch import reference
from clebsch.algebra.plan import MODES, ProductPlan
from clebsch.numpy import spherical_harmonics, tensor_product
from clebsch.testing import assert_close_to_reference, random_operands, random_plans, relative_error
from product_calls import instruction_sets, plan_of_mode, wide_plan

PLAN = ProductPlan.from_instructions(
    "4x0e+4x1o", "1x0e+1x1o", "4x0e", [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True)]
)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def raises(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_torch_is_not_imported():
    code = (
        "import sys, clebsch, clebsch.numpy, numpy as np\n"
        "points = np.ones((2, 3))\n"
        "y = clebsch.numpy.spherical_harmonics([0, 1], points, True, 'component')\n"
        "plan = '1x0e*1x0e+1x1o->1x1o;mul_ir;0 1 0 uvu w 1.0'\n"
        "print(clebsch.numpy.tensor_product(plan, points[:, :1], y, points[:, :1]).shape)\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'torch'))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("(2, 3)\n[]\n", "")
    assert clebsch.numpy.tensor_product is tensor_product


# Products


@settings(max_examples=40, derandomize=True)
@given(
    random_plans(max_terms=2000),
    st.sampled_from((0, 1, 7, 17)),
    st.booleans(),
    st.sampled_from((np.float32, np.float64)),
    st.integers(0, 2**20),
)
def test_random_plans(plan, rows, shared, dtype, seed):
    operands = random_operands(plan, rows, shared=shared, dtype=dtype, seed=seed)
    for _ in instruction_sets():
        out = tensor_product(plan, *operands)
        assert out.dtype == dtype and out.flags.c_contiguous and out.flags.owndata
        assert_close_to_reference(out, reference.tensor_product, plan, *operands)


@dtypes
@pytest.mark.parametrize("plan", [wide_plan(33), wide_plan(12), *map(plan_of_mode, MODES)], ids=str)
def test_large_plans(plan, dtype):
    operands = random_operands(plan, 9, dtype=dtype)
    assert_close_to_reference(tensor_product(str(plan), *operands), reference.tensor_product, plan, *operands)


def test_degrees_beyond_the_table_are_found():
    plan = ProductPlan("2x13e", "1x1e", "2x13e", ((0, 0, 0, "uvu", True, 1.0),))
    operands = random_operands(plan, 3)
    assert relative_error(tensor_product(plan, *operands), reference.tensor_product(plan, *operands)) < 1e-13


@dtypes
def test_arrays_that_are_not_contiguous(dtype):
    x, y, weight = random_operands(PLAN, 6, dtype=dtype)
    expected = tensor_product(PLAN, x, y, weight)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype).reshape(x.shape)
    unaligned[:] = x
    read_only = x.copy()
    read_only.setflags(write=False)
    for same in (
        np.asfortranarray(x),
        np.repeat(x, 2, 1)[:, ::2],
        x[::-1].copy()[::-1],
        unaligned,
        read_only,
    ):
        assert np.array_equal(tensor_product(PLAN, same, y, weight), expected)
    rows = np.broadcast_to(weight[0], weight.shape)
    assert np.array_equal(tensor_product(PLAN, x, y, rows), tensor_product(PLAN, x, y, rows.copy()))
    matrix = x.view(np.matrix)
    assert type(tensor_product(PLAN, matrix, y, weight)) is np.ndarray


@pytest.mark.parametrize("i, name", [(0, "x"), (1, "y"), (2, "weight")])
def test_types_of_operands(i, name):
    def call(change, dtype=np.float32):
        given = list(random_operands(PLAN, 5, dtype=dtype))
        before = [a.copy() for a in given]
        given[i] = change(given[i])
        try:
            tensor_product(PLAN, *given)
        finally:
            assert all(np.array_equal(a, b) for j, (a, b) in enumerate(zip(given, before)) if j != i)

    with raises(TypeError, f"tensor_product: {name} must be a numpy array, got list"):
        call(np.ndarray.tolist)
    for dtype in (np.int64, np.float16, np.complex64, bool, np.longdouble, ">f4"):
        with raises(TypeError, f"tensor_product: {name} must be float32 or float64, got {np.dtype(dtype)}"):
            call(lambda a: a.astype(dtype))  # noqa: B023
    wrong = "y" if i == 0 else name
    given, needed = ("float32", "float64") if i == 0 else ("float64", "float32")
    with raises(TypeError, f"tensor_product: {wrong} must have the dtype of x, {needed}, got {given}"):
        call(lambda a: a.astype(np.float64))


@pytest.mark.parametrize(
    "i, shape, message",
    [
        (0, (5, 15), "x must have shape (rows, 16), got (5, 15)"),
        (0, (16,), "x must have shape (rows, 16), got (16,)"),
        (0, (), "x must have shape (rows, 16), got ()"),
        (0, (1, 5, 16), "x must have shape (rows, 16), got (1, 5, 16)"),
        (1, (5, 3), "y must have shape (rows, 4) = (5, 4), got (5, 3)"),
        (1, (4, 4), "y must have shape (rows, 4) = (5, 4), got (4, 4)"),
        (1, (1, 4), "y must have shape (rows, 4) = (5, 4), got (1, 4)"),
        (2, (5, 7), "weight must have shape (rows, 8) = (5, 8) or (8,), got (5, 7)"),
        (2, (4, 8), "weight must have shape (rows, 8) = (5, 8) or (8,), got (4, 8)"),
        (2, (7,), "weight must have shape (rows, 8) = (5, 8) or (8,), got (7,)"),
        (2, (), "weight must have shape (rows, 8) = (5, 8) or (8,), got ()"),
    ],
)
def test_shapes_of_operands(i, shape, message):
    given = list(random_operands(PLAN, 5))
    given[i] = np.zeros(shape)
    with raises(ValueError, f"tensor_product: {message}"):
        tensor_product(PLAN, *given)


def test_plans_that_are_none():
    operands = random_operands(PLAN, 5)
    with pytest.raises(ValueError, match=r"^ProductPlan.parse: expected"):
        tensor_product("nonsense", *operands)
    with raises(TypeError, "ProductPlan.parse: expected a str, got NoneType"):
        tensor_product(None, *operands)


def test_same_bits_in_concurrent_threads():
    problems = [(plan, random_operands(plan, 300)) for plan in (wide_plan(16), wide_plan(2))]
    expected = [tensor_product(plan, *operands) for plan, operands in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda problem: tensor_product(problem[0], *problem[1]), problems * 5)
        for result, first in zip(results, expected * 5):
            assert result.tobytes() == first.tobytes()


# Harmonics


@dtypes
@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("ls", [[0], [1], [3, 0, 3, 1], range(7), [12], []], ids=str)
def test_harmonics(ls, normalize, normalization, dtype):
    ls = list(ls)
    for rows in (0, 1, 5, 40):
        points = np.random.default_rng(rows).standard_normal((rows, 3)).astype(dtype)
        for _ in instruction_sets():
            values = spherical_harmonics(ls, points, normalize, normalization)
            assert values.dtype == dtype and values.shape == (rows, sum(2 * l + 1 for l in ls))
            assert_close_to_reference(
                values, reference.spherical_harmonics, ls, points, normalize, normalization
            )
            expected = reference.spherical_harmonics(ls, points, normalize, normalization)
            assert relative_error(values, expected) < {np.float32: 1e-5, np.float64: 1e-13}[dtype]


def test_shapes_of_points():
    points = np.random.default_rng(0).standard_normal((2, 5, 3))
    whole = spherical_harmonics((0, 1, 2), points, True, "norm")
    assert whole.shape == (2, 5, 9)
    assert np.array_equal(
        spherical_harmonics([0, 1, 2], points.reshape(10, 3), True, "norm"), whole.reshape(10, 9)
    )
    assert np.array_equal(spherical_harmonics([0, 1, 2], points[1, 3], True, "norm"), whole[1, 3])
    turned = np.asfortranarray(points)[:, ::-1]
    assert np.array_equal(spherical_harmonics(np.array([0, 1, 2]), turned, True, "norm"), whole[:, ::-1])
    assert spherical_harmonics([1], np.zeros((0, 4, 3)), True, "norm").shape == (0, 4, 3)
    assert spherical_harmonics([], points, True, "norm").shape == (2, 5, 0)


def test_points_that_are_zero_or_not_finite():
    points = np.array([[0, 0, 0], [1, 2, 3], [np.nan, 0, 0], [np.inf, 0, 1]])
    for normalize in (True, False):
        values = spherical_harmonics([0, 1, 2], points, normalize, "component")
        assert np.array_equal(values[0], [1] + [0] * 8)
        assert np.isfinite(values[1]).all() and not np.isfinite(values[2:, 1:4]).all(1).any()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"points": [[1.0, 0, 0]]}, TypeError, "points must be a numpy array, got list"),
        ({"points": np.zeros((2, 3), int)}, TypeError, "points must be float32 or float64, got int64"),
        ({"points": np.zeros((2, 3), ">f8")}, TypeError, "points must be float32 or float64, got >f8"),
        ({"points": np.zeros((3, 2))}, ValueError, "points must have shape (..., 3), got (3, 2)"),
        ({"points": np.zeros(())}, ValueError, "points must have shape (..., 3), got ()"),
        ({"ls": [0, -1]}, ValueError, "ls must be >= 0, got -1"),
        ({"ls": [0, 1001]}, ValueError, "ls must be <= 1000, got 1001"),
        ({"ls": [0, 1.0]}, TypeError, "ls must be integers, got 1.0"),
        ({"ls": ["1"]}, TypeError, "ls must be integers, got '1'"),
        (
            {"normalization": "x"},
            ValueError,
            "normalization must be one of 'integral', 'component', 'norm', got 'x'",
        ),
    ],
)
def test_harmonics_that_are_refused(change, error, message):
    given = {"ls": [0, 1], "points": np.zeros((2, 3)), "normalize": True, "normalization": "norm"} | change
    with raises(error, f"spherical_harmonics: {message}"):
        spherical_harmonics(**given)
