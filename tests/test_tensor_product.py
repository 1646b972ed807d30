"""The product over rows, forward, backward and double backward, as operators, against the reference."""

import concurrent.futures
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import interpretation
import sizes
from clebsch import o3, ops
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import random_plans, relative_error
from product_calls import (
    RESULTS,
    Problem,
    broadcast,
    channelwise_plan,
    dense_plan,
    elementwise_plan,
    instruction_sets,
    kernel,
    meets_shared_weights,
    mixed_plan,
    moved,
    outputs_in_lanes,
    plan_of_mode,
    plan_of_orders,
    poisoned_memory,
    same_bits,
    wide_plan,
)

ROWS = sizes.distinct(sizes.rows, (0, 1, 7, 17, 40))
layouts = pytest.mark.parametrize("layout", LAYOUTS)
HIGH = pytest.mark.not_interpreted("high degrees, for their time")


# Against the reference


@settings(max_examples=sizes.examples(80), derandomize=True)
@given(random_plans(max_terms=sizes.terms(2000)), st.sampled_from(ROWS), st.booleans(), st.integers(0, 2**20))
@example(ProductPlan("", "", "", ()), 7, False, 0)
@example(ProductPlan("3x0e", "1x0e", "", ()), 7, True, 0)
@example(ProductPlan("", "1x0e", "3x0e+2x1o", (), "ir_mul"), 7, False, 0)
def test_random_plans(plan, rows, shared, seed):
    Problem.random(plan, rows, shared=shared, seed=seed).check_everywhere()


@settings(max_examples=sizes.examples(30), derandomize=True)
@given(
    random_plans(["uvu"], l_max=5, multiplicities=(1, 16, 17, 31, 33, 48), max_terms=sizes.terms(2000)),
    st.sampled_from(ROWS),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_random_plans_with_wide_blocks(plan, rows, shared, seed):
    Problem.random(plan, rows, shared=shared, seed=seed).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul", sizes.one([16, 31, 33, 100, 128]))
def test_wide_multiplicities(mul, shared, layout):
    plan = wide_plan(mul, layout)
    assert kernel(plan) == "channels"
    Problem.random(plan, 9, shared=shared, seed=mul).check_everywhere()


@layouts
@pytest.mark.parametrize("mul", sizes.some([1, 2, 3, 5]))
def test_narrow_multiplicities(mul, layout):
    plan = wide_plan(mul, layout)
    assert kernel(plan, "forward") == "rows"
    assert kernel(plan) == ("rows" if mul <= 2 else "channels")
    Problem.random(plan, 17, seed=mul).check_everywhere()


# Degrees that channelwise kernels know when compiled, all pairs with 4 among them, and those that they look
# up; 12 lies beyond the table. With 68 copies a thread of a GPU has several channels.
@layouts
@pytest.mark.parametrize(
    "irreps_in1, irreps_in2, l_max",
    [
        ("16x0e+17x1o", "1x0e+1x1o+1x2e+1x3o+1x4e", 4),
        ("31x2e+16x3o", "1x0e+1x1o+1x2e", 4),
        ("16x4e", "1x0e+1x3o+1x4e", 4),
        ("64x0e+65x1o+66x2e", "1x3o", 4),
        ("67x3o", "1x1o+1x2e", 4),
        ("68x4e", "1x1o+1x4e", 4),
        ("16x1o+17x5o", "1x4e+1x5o", 5),
        ("16x8e", "1x0e+1x1o+1x8e", 8),
        ("17x12e", "1x0e+1x1o+1x12e", 12),
        ("16x14e", "1x14e", 2),
    ],
)
def test_degrees_in_channels(irreps_in1, irreps_in2, l_max, layout):
    plan = channelwise_plan(irreps_in1, irreps_in2, l_max, layout, unweighted=1)
    assert kernel(plan) == "channels"
    Problem.random(plan, 9, seed=l_max).check_everywhere()


@layouts
@pytest.mark.parametrize(
    "irreps_in1, irreps_in2, l_max",
    [
        ("3x4e+1x3o", "2x0e+1x4e", 4),
        ("2x8e", "1x1o+2x8e", 8),
        ("1x12e", "3x1o+1x12e", 12),
        pytest.param("16x13o", "1x1o", 14, marks=HIGH),
    ],
)
def test_degrees_in_rows(irreps_in1, irreps_in2, l_max, layout):
    plan = channelwise_plan(irreps_in1, irreps_in2, l_max, layout, unweighted=1)
    assert kernel(plan) == "rows"
    Problem.random(plan, 17, seed=l_max).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_modes_with_many_copies(mode, shared, layout):
    plan = plan_of_mode(mode, layout)
    assert kernel(plan) == ("channels" if mode == "uuu" else "rows")
    Problem.random(plan, 9, shared=shared, seed=1).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul", sizes.one([1, 3, 7, 16, 17, 33, 100]))
@pytest.mark.parametrize("make", [elementwise_plan, mixed_plan])
def test_elementwise(make, mul, shared, layout):
    plan = make(mul, layout=layout)
    assert kernel(plan) == ("channels" if mul >= 16 else "rows")
    assert kernel(plan, "forward") == (
        "channels" if mul >= (16 if make is elementwise_plan else 33) else "rows"
    )
    for rows in sizes.some((0, 1, 9)):
        Problem.random(plan, rows, shared=shared, seed=mul).check_everywhere()


@layouts
@pytest.mark.parametrize("degrees", sizes.distinct(sizes.degree, [(0, 3), (2, 4), (5, 8), (13, 2)]))
def test_degrees_of_elementwise_paths(degrees, layout):
    plan = elementwise_plan(17, degrees, layout)
    assert kernel(plan, "forward") == kernel(plan) == "channels"
    Problem.random(plan, 3, seed=1).check_everywhere()


@settings(max_examples=sizes.examples(30), derandomize=True)
@given(
    random_plans(["uuu", "uvu"], l_max=4, multiplicities=(1, 15, 16, 31, 33), max_terms=sizes.terms(2000)),
    st.sampled_from(ROWS),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_random_plans_with_elementwise_paths(plan, rows, shared, seed):
    Problem.random(plan, rows, shared=shared, seed=seed).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul_out", sizes.some([1, 3, 7, 8, 16, 17, 33]))
@pytest.mark.parametrize("mul1, mul2", sizes.one([(1, 1), (7, 1), (3, 5), (17, 3)]))
def test_dense_paths(mul1, mul2, mul_out, shared, layout):
    plan = dense_plan(mul1, mul2, mul_out, layout)
    assert kernel(plan) == kernel(plan, "forward") == "rows"
    assert outputs_in_lanes(plan) == 6 * [mul_out >= 8] or interpretation.enabled()
    Problem.random(plan, 7, shared=shared, seed=mul_out).check_everywhere()


@pytest.mark.not_interpreted("orders of multiplication of the CPU's kernels")
@layouts
@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("muls", [(9, 11, 17), (17, 8, 9), (8, 19, 7), (33, 1, 16), (1, 9, 5), (3, 2, 1)])
def test_orders_of_shared_weights(muls, rows, layout):
    plan = plan_of_orders(*muls, layout)
    if min(muls) >= 8:
        assert meets_shared_weights(plan) == {"pairs", "x", "y"}
    Problem.random(plan, rows, shared=True, seed=rows).check_everywhere()


@pytest.mark.not_interpreted("work space of the CPU's kernels")
def test_orders_with_more_copies_than_fit_the_work_space():
    for muls in ((301, 2, 9), (9, 1, 301), (8, 301, 2)):
        Problem.random(plan_of_orders(*muls), 17, shared=True).check_everywhere()


@pytest.mark.parametrize("rows", sizes.some([0, 1, 19]))
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["uvw", "uuw", "u<vw"])
def test_dense_modes_with_outputs_in_lanes(mode, shared, rows):
    assert outputs_in_lanes(plan_of_mode(mode))[0]
    for plan in (plan_of_mode(mode), DENSE_AMONG_OTHERS):
        Problem.random(plan, rows, shared=shared, seed=2).check_everywhere()


@HIGH
def test_dense_path_of_a_degree_beyond_a_block():
    plan = ProductPlan.from_instructions("4x64e", "1x0e", "1x64e", [(0, 0, 0, "uvw", True)])
    Problem.random(plan, 2, shared=True).check_everywhere()


# A dense path, one too narrow for lanes, others that reach one channel, empty blocks, repeated outputs.
FIVE, NINE, SIXTEEN, THIRTY = map(sizes.copies, (5, 9, 16, 33))
DENSE_AMONG_OTHERS = ProductPlan.from_instructions(
    f"{SIXTEEN}x0e+{NINE}x1o+0x1o",
    f"{SIXTEEN}x0e+{FIVE}x1o+{NINE}x1o",
    f"{THIRTY}x0e+{NINE}x1e+1x0e+0x0e+{SIXTEEN}x0e",
    [
        (0, 0, 0, "uvw", True),
        (1, 1, 0, "uvw", True, 0.5),
        (1, 2, 0, "uuw", True),
        (1, 2, 1, "uuu", True),
        (1, 1, 1, "uvu", True),
        (1, 2, 2, "uuw", False),
        (1, 2, 2, "uuw", True),
        (1, 1, 3, "uvw", True),
        (2, 1, 0, "uvw", True),
        (0, 0, 4, "uvu", False),
    ],
)


@pytest.mark.not_interpreted("what lies in vectors of the CPU's")
def test_which_dense_paths_have_outputs_in_lanes():
    # Paths without channels are not there any more.
    assert outputs_in_lanes(DENSE_AMONG_OTHERS) == [True, True, True] + 5 * [False]
    # Few weights are transposed whole if another path asks for it.
    few = [(0, 0, 0, "uvw", True), (0, 0, 1, "uvu", True)]
    for paths, expected in ((few, [False, False]), (few[:1], [True])):
        plan = ProductPlan.from_instructions("4x0e", "4x0e", "16x0e+4x0e", paths)
        assert outputs_in_lanes(plan) == expected
        Problem.random(plan, 7).check_everywhere()


@pytest.mark.not_interpreted("chunks of the CPU's kernels")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "plan", [wide_plan(16), wide_plan(2), dense_plan(3, 2, 9), plan_of_orders(9, 8, 10)], ids=str
)
def test_rows_in_several_chunks(plan, shared):
    Problem.random(plan, 203, shared=shared).check_everywhere()


@pytest.mark.about_the_cpu("its caches")
@layouts
@pytest.mark.parametrize("make", [elementwise_plan, wide_plan])
def test_results_larger_than_caches_are_those_of_their_parts(make, layout):
    """They are written past the caches, in whole lines where these are whole."""
    for plan in (make(32, layout=layout), make(17, layout=layout)):
        rows = (4 << 20) // (4 * plan.irreps_in1.dim) + 16
        problem = Problem.random(plan, rows, dtype=torch.float32)
        with poisoned_memory():
            for _ in instruction_sets():
                whole = problem.results()
                parts = [
                    problem.part(begin, begin + rows // 4 + 1).results()
                    for begin in range(0, rows, rows // 4 + 1)
                ]
                joined = tuple(torch.cat(some) for some in zip(*parts, strict=True))
                assert whole[0].nbytes > 4 << 20 and same_bits(whole, joined)


def test_all_digits_of_float64():
    """Elsewhere operands hold numbers that float32 holds too."""
    for plan in (wide_plan(33), wide_plan(2), plan_of_mode("uvw")):
        problem = Problem.random(plan, 9)
        doubles = [torch.rand_like(t) + 0.5 for t in (*problem.operands, *problem.tangents)]
        problem = replace(problem, operands=tuple(doubles[:3]), tangents=tuple(doubles[3:]))
        for _ in instruction_sets():
            problem.check()


# How operands lie in memory


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [wide_plan(17), wide_plan(3, "ir_mul"), plan_of_mode("uuw")], ids=str)
def test_operands_that_are_not_contiguous(plan, shared):
    problem = Problem.random(plan, 7, shared=shared, dtype=torch.float32)
    for _ in instruction_sets():
        expected = problem.results()
        for name, elsewhere in moved(problem.given):
            assert all(map(torch.equal, elsewhere, problem.given))
            assert same_bits(problem.with_given(elsewhere).results(), expected), name


@pytest.mark.parametrize("plan", [wide_plan(17), wide_plan(3, "ir_mul"), plan_of_mode("uvv")], ids=str)
def test_rows_that_repeat(plan):
    problem = Problem.random(plan, 7)
    for i in range(7):
        given = list(problem.given)
        given[i] = broadcast(given[i])
        assert given[i].stride(0) == 0
        repeated = problem.with_given(given)
        given[i] = given[i].contiguous()
        assert same_bits(repeated.results(), problem.with_given(given).results())
    problem.with_given(list(map(broadcast, problem.given))).check_everywhere()


def test_operands_are_left_alone():
    for plan in (wide_plan(17), plan_of_mode("uvw")):
        problem = Problem.random(plan, 7)
        given = problem.given
        before = tuple(t.clone() for t in given)
        results = problem.results()
        assert same_bits(given, before)
        assert len({t.data_ptr() for t in (*given, *results)}) == 7 + len(RESULTS)


# What is asked for


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "plan",
    [wide_plan(17), wide_plan(2), plan_of_mode("uuw"), mixed_plan(17), dense_plan(2, 1, 9)],
    ids=str,
)
def test_needs(plan, shared):
    problem = Problem.random(plan, 7, shared=shared)
    with poisoned_memory():
        every = (problem.backward(), problem.double_backward())
        for call, count, all_of_it in zip((problem.backward, problem.double_backward), (3, 4), every):
            for needs in range(2**count):
                for i, (some, whole) in enumerate(zip(call(needs), all_of_it, strict=True)):
                    if needs >> i & 1:
                        assert same_bits((some,), (whole,)), (needs, i)
                    else:
                        assert some.shape == (0,) and some.dtype == whole.dtype


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [wide_plan(17), wide_plan(2), plan_of_mode("uuw"), mixed_plan(17)], ids=str)
def test_tangents_that_are_not_given(plan, shared):
    problem = Problem.random(plan, 7, shared=shared)
    for given_bits in range(8):
        tangents = tuple(t if given_bits >> i & 1 else None for i, t in enumerate(problem.tangents))
        replace(problem, tangents=tangents).check_everywhere()


# Laws


@settings(max_examples=sizes.examples(30), derandomize=True)
@given(
    random_plans(max_terms=sizes.terms(20_000)),
    st.sampled_from((1, 7, 40)),
    st.booleans(),
    st.integers(0, 2**20),
)
@example(wide_plan(128), 40, False, 0)
@example(wide_plan(100), 40, True, 0)
def test_one_form_of_four_operands(plan, rows, shared, seed):
    """<g, out> = <x, grad_x> = <y, grad_y> = <w, grad_w>, the last for the weighted paths alone."""
    problem = Problem.random(plan, rows, shared=shared, seed=seed)
    weighted = replace(
        problem, plan=replace(plan, paths=tuple(path for path in plan.paths if path.has_weight))
    )
    for _ in instruction_sets():
        for case, count in ((problem, 3), (weighted, 4)):
            given = (case.grad, *case.operands)[:count]
            gradients = (case.forward(), *case.backward())[:count]
            products = [float((a * b).sum()) for a, b in zip(given, gradients, strict=True)]
            size = max(float((a * b).abs().sum()) for a, b in zip(given, gradients, strict=True))
            assert max(products) - min(products) <= 1e-13 * size


@settings(max_examples=sizes.examples(30), derandomize=True)
@given(random_plans(l_max=6, layouts=["mul_ir"], max_terms=sizes.terms(20_000)), st.integers(0, 2**20))
@example(wide_plan(33), 0)
def test_equivariance(plan, seed):
    """Where x and y are turned, so is the output, and each gradient with the operand it belongs to."""
    torch.manual_seed(seed)
    problem = Problem.random(plan, 5, seed=seed)
    rotation = (-1) ** seed * o3.rand_matrix(dtype=torch.float64)
    in1, in2, out = (
        o3.Irreps(irreps).D_from_matrix(rotation)
        for irreps in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)
    )
    x, y, weight = problem.operands
    ax, ay, aw = problem.tangents
    turned = replace(
        problem,
        operands=(x @ in1.T, y @ in2.T, weight),
        grad=problem.grad @ out.T,
        tangents=(ax @ in1.T, ay @ in2.T, aw),
    )
    matrices = (out, in1, in2, None, out, in1, in2, None)
    for name, before, after, matrix in zip(
        RESULTS, problem.results(), turned.results(), matrices, strict=True
    ):
        expected = before if matrix is None else before @ matrix.T
        assert relative_error(after, expected) < 1e-12, name


# Derivatives of the operators in autograd: test_multilinear.py; here those of the channelwise kernel.


@pytest.mark.parametrize("shared", [False, True])
def test_autograd_of_the_channelwise_kernel(shared):
    plan = channelwise_plan("16x0e+17x1o", "1x0e+1x1o", 1, unweighted=1)
    assert kernel(plan) == "channels"
    operands = [t.requires_grad_() for t in Problem.random(plan, 3, shared=shared).operands]

    def function(*given):
        return ops.tensor_product(*given, plan)

    def twice(*given):
        first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), given, create_graph=True)

    assert torch.autograd.gradcheck(function, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)
    assert torch.autograd.gradcheck(twice, operands, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_autograd_of_each_mode(mode):
    irreps = {
        "uvw": ("2x1o", "3x1o", "4x1e"),
        "uvu": ("2x1o", "3x1o", "2x1e"),
        "uvv": ("2x1o", "3x1o", "3x1e"),
        "uuw": ("3x1o", "3x1o", "4x1e"),
        "uuu": ("3x1o", "3x1o", "3x1e"),
        "uvuv": ("2x1o", "3x1o", "6x1e"),
        "uvu<v": ("4x1o", "4x1o", "6x1e"),
        "u<vw": ("3x1o", "3x1o", "2x1e"),
    }[mode]
    plan = ProductPlan.from_instructions(*irreps, [(0, 0, 0, mode, True)])
    operands = [t.requires_grad_() for t in Problem.random(plan, 2).operands]

    def function(*given):
        return ops.tensor_product(*given, plan)

    assert torch.autograd.gradcheck(function, operands, fast_mode=sizes.FAST)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=sizes.FAST)


@pytest.mark.not_interpreted("orders of multiplication of the CPU's kernels")
def test_autograd_of_each_order_of_shared_weights():
    plan = ProductPlan.from_instructions(
        "8x0e+1x1o+8x1o",
        "1x1o+8x0e",
        "8x1o+8x0e",
        [(*blocks, "uvw", True) for blocks in ((0, 0, 0), (1, 1, 0), (2, 0, 1))],
    )
    assert meets_shared_weights(plan) == {"pairs", "x", "y"}
    operands = [t.requires_grad_() for t in Problem.random(plan, 2, shared=True).operands]

    def function(*given):
        return ops.tensor_product(*given, plan)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


# The same bits, always


@pytest.fixture(params=["channels", "elementwise", "rows", "dense", "orders"])
def large(request):
    """Problems of several chunks."""
    plan = {
        "channels": wide_plan(32),
        "elementwise": mixed_plan(16),
        "rows": wide_plan(2),
        "dense": dense_plan(3, 2, 9),
        "orders": plan_of_orders(9, 8, 10),
    }[request.param]
    lanes = "rows" if request.param in ("rows", "dense", "orders") else "channels"
    assert kernel(plan) == lanes
    return [Problem.random(plan, 700, shared=shared, dtype=torch.float32) for shared in (False, True)]


@pytest.mark.not_interpreted("threads of the CPU")
def test_same_bits_on_every_run_and_for_any_number_of_threads(large):
    for _ in instruction_sets():
        for problem in large:
            torch.set_num_threads(1)
            expected = problem.results()
            for threads in (1, 2, 4, 1):
                torch.set_num_threads(threads)
                assert same_bits(problem.results(), expected), threads


@pytest.mark.not_interpreted("threads of the CPU")
def test_same_bits_in_concurrent_threads(large):
    torch.set_num_threads(2)
    problems = [*large, Problem.random(plan_of_mode("uvw"), 40), Problem.random(wide_plan(16), 130)]
    expected = [problem.results() for problem in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for results, first in zip(pool.map(Problem.results, problems * 2), expected * 2):
                assert same_bits(results, first)


# Values that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "plan", [wide_plan(16), wide_plan(2), plan_of_mode("uvw"), plan_of_mode("uuu")], ids=str
)
def test_not_finite_values_stay_in_their_row(plan, bad):
    problem = Problem.random(plan, 21)
    rows = len(problem.grad)
    row = rows // 4
    for i, operand in enumerate(problem.operands):
        spoilt = operand.clone()
        spoilt[row] = bad
        operands = tuple(spoilt if j == i else other for j, other in enumerate(problem.operands))
        for _ in instruction_sets():
            for name, result in zip(RESULTS, replace(problem, operands=operands).results(), strict=True):
                assert result[torch.arange(rows) != row].isfinite().all(), name
            assert not replace(problem, operands=operands).forward()[row].isfinite().any()
