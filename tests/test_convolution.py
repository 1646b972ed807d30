"""Gather - product - scatter over a graph, with its derivatives, as operators, against the reference."""

import concurrent.futures
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import interpretation
import sizes
from clebsch import Graph, o3, ops
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import RandomGraph, random_graphs, random_plans, relative_error
from product_calls import (
    RESULTS,
    Problem,
    broadcast,
    channelwise_plan,
    dense_plan,
    elementwise_plan,
    graph,
    instruction_sets,
    kernel,
    meets_shared_weights,
    mixed_plan,
    moved,
    outputs_in_lanes,
    plan_of_mode,
    plan_of_orders,
    poisoned_memory,
    random_graph,
    same_bits,
    wide_plan,
)

layouts = pytest.mark.parametrize("layout", LAYOUTS)
HIGH = pytest.mark.not_interpreted("high degrees, for their time")
# One for each of the two kinds of kernels that there are, of the CPU's and of Triton's.
CHANNELS, ROWS = wide_plan(17), plan_of_mode("uvv") if interpretation.enabled() else wide_plan(2)

EDGES, MANY = sizes.distinct(sizes.edges, (0, 1, 7, 40)), sizes.edges(37)
GRAPHS = {
    "nothing": graph([], [], 0),
    "no edges": graph([], [], 5),
    "one edge": graph([1], [2], 4),
    "self loop": graph([0], [0], 1),
    "self loops and isolated nodes": graph([6, 2, 2], [6, 2, 2], 9),
    "duplicate edges": graph([1, 1, 1, 0, 1], [2, 2, 2, 2, 0], 3),
    "unsymmetric": graph([0, 0, 1, 2, 0, 4, 4], [1, 2, 2, 3, 3, 3, 0], 6),
    "one receives all": graph(np.arange(MANY) % 5, [3] * MANY, 5),
    "one sends all": graph([2] * MANY, np.arange(MANY) % 5, 5),
    "one loop, many times": graph([1] * sizes.edges(19), [1] * sizes.edges(19), 2),
    "last node idle": graph([0, 1, 2], [1, 2, 0], 7),
}


# Against the reference


@settings(max_examples=sizes.examples(80), derandomize=True)
@given(
    random_plans(max_terms=sizes.terms(2000)),
    random_graphs(edges=EDGES),
    st.booleans(),
    st.integers(0, 2**20),
)
@example(ProductPlan("", "", "", ()), GRAPHS["unsymmetric"], False, 0)
@example(ProductPlan("3x0e", "1x0e", "", ()), GRAPHS["unsymmetric"], True, 0)
@example(ProductPlan("", "1x0e", "3x0e+2x1o", (), "ir_mul"), GRAPHS["unsymmetric"], False, 0)
def test_random_plans_and_graphs(plan, edges, shared, seed):
    Problem.random(plan, edges, shared=shared, seed=seed).check_everywhere()


@settings(max_examples=sizes.examples(40), derandomize=True)
@given(
    random_plans(["uvu"], l_max=5, multiplicities=(1, 16, 17, 31, 33, 48), max_terms=sizes.terms(2000)),
    random_graphs(edges=EDGES),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_random_plans_with_wide_blocks(plan, edges, shared, seed):
    Problem.random(plan, edges, shared=shared, seed=seed).check_everywhere()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [CHANNELS, ROWS], ids=kernel)
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, plan, shared):
    Problem.random(plan, GRAPHS[name], shared=shared).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul", sizes.one([16, 31, 32, 33, 100, 128]))
def test_wide_multiplicities(mul, shared, layout):
    plan = wide_plan(mul, layout)
    assert kernel(plan) == "channels"
    Problem.random(plan, random_graph(4, 19), shared=shared, seed=mul).check_everywhere()


@layouts
@pytest.mark.parametrize("mul", sizes.some([1, 2, 3, 5]))
def test_narrow_multiplicities(mul, layout):
    plan = wide_plan(mul, layout)
    assert kernel(plan, "forward") == "rows"
    assert kernel(plan) == ("rows" if mul <= 2 else "channels")
    Problem.random(plan, random_graph(4, 40), seed=mul).check_everywhere()


@layouts
@pytest.mark.parametrize(
    "irreps_in1, irreps_in2, l_max",
    [
        ("16x0e+17x1o", "1x0e+1x1o+1x2e+1x3o", 3),
        ("31x2e+16x3o", "1x0e+1x1o+1x2e", 3),
        ("16x4e", "1x0e+1x3o+1x4e", 4),
        ("16x1o+17x5o", "1x4e+1x5o", 5),
        ("16x8e", "1x0e+1x1o+1x8e", 8),
        ("17x12e", "1x0e+1x1o+1x12e", 12),
        ("16x14e", "1x14e", 2),
        # More sums than a block of a GPU has room for with four channels a thread, here of derivatives alone.
        ("66x0e+64x1o+65x2e+64x3o", "1x0e+1x1o", 4),
        ("66x0e+64x1o+65x2e+64x3o", "1x0e+1x1o+1x2e", 4),
    ],
)
def test_degrees_in_channels(irreps_in1, irreps_in2, l_max, layout):
    plan = channelwise_plan(irreps_in1, irreps_in2, l_max, layout, unweighted=1)
    assert kernel(plan) == "channels"
    Problem.random(plan, random_graph(4, 13), seed=l_max).check_everywhere()


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
    Problem.random(plan, random_graph(4, 21), seed=l_max).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul_out", sizes.one([8, 17, 33]))
@pytest.mark.parametrize("mul1, mul2", sizes.one([(7, 1), (3, 5)]))
def test_dense_paths(mul1, mul2, mul_out, shared, layout):
    plan = dense_plan(mul1, mul2, mul_out, layout)
    assert all(outputs_in_lanes(plan)) or interpretation.enabled()
    for edges in sizes.some((random_graph(4, 0), random_graph(1, 1), random_graph(3, 21))):
        Problem.random(plan, edges, shared=shared, seed=mul_out).check_everywhere()


@pytest.mark.not_interpreted("orders of multiplication of the CPU's kernels")
@layouts
@pytest.mark.parametrize("muls", [(9, 11, 17), (17, 8, 9), (33, 1, 16), (3, 2, 1)])
def test_orders_of_shared_weights(muls, layout):
    plan = plan_of_orders(*muls, layout)
    if min(muls) >= 8:
        assert meets_shared_weights(plan) == {"pairs", "x", "y"}
    for edges in (random_graph(4, 0), random_graph(1, 1), random_graph(3, 21)):
        Problem.random(plan, edges, shared=True).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_modes_with_many_copies(mode, shared, layout):
    plan = plan_of_mode(mode, layout)
    assert kernel(plan) == ("channels" if mode == "uuu" else "rows")
    Problem.random(plan, random_graph(3, 11), shared=shared, seed=1).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul", sizes.one([1, 3, 7, 16, 17, 33]))
@pytest.mark.parametrize("make", [elementwise_plan, mixed_plan])
def test_elementwise(make, mul, shared, layout):
    plan = make(mul, layout=layout)
    assert kernel(plan) == ("channels" if mul >= 16 else "rows")
    for edges in sizes.some(
        (GRAPHS["no edges"], GRAPHS["one edge"], random_graph(5, 7), random_graph(4, 40))
    ):
        Problem.random(plan, edges, shared=shared, seed=mul).check_everywhere()


@pytest.mark.not_interpreted("chunks of the CPU's kernels")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "plan", [channelwise_plan("16x0e", "1x0e+1x1o", 1), channelwise_plan("2x0e", "1x0e+1x1o", 1)], ids=kernel
)
@pytest.mark.parametrize("nodes", [3, 400])
def test_graphs_of_several_chunks(nodes, plan, shared):
    """Senders have sums in many chunks; receivers of three nodes are longer than a chunk."""
    Problem.random(plan, random_graph(nodes, sizes.edges(1400)), shared=shared).check_everywhere()


@pytest.mark.not_interpreted("work space of the CPU's kernels")
@layouts
@pytest.mark.parametrize("shared", [False, True])
def test_graphs_larger_than_the_work_space(shared, layout):
    """Chunks in several waves, panels of x for the senders of a chunk: as the product of rows, gathered."""
    problem = Problem.random(wide_plan(129, layout), random_graph(1200, sizes.edges(3000)), shared=shared)
    for dtype in (torch.float32, torch.float64):
        at = problem.to(dtype)
        senders, receivers = map(torch.from_numpy, (at.graph.senders, at.graph.receivers))

        def gathered(x, y, w):
            product = ops.tensor_product(x[senders], y, w, at.plan)  # noqa: B023
            return torch.zeros_like(at.grad).index_add(0, receivers, product)  # noqa: B023

        leaves = [operand.clone().requires_grad_() for operand in at.operands]
        grad = at.grad.clone().requires_grad_()
        out = gathered(*leaves)
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        second = torch.autograd.grad(first, [grad, *leaves], at.tangents)
        with poisoned_memory():
            results = at.results()
        for name, found, expected in zip(RESULTS, results, (out, *first, *second), strict=True):
            assert relative_error(found, expected.detach()) < {4: 1e-5, 8: 1e-13}[dtype.itemsize], name


def test_order_of_edges_does_not_matter():
    for plan in (CHANNELS, ROWS):
        problem = Problem.random(plan, random_graph(6, 40))
        order = torch.randperm(len(problem.graph.senders))
        x, y, weight = problem.operands
        shuffled = replace(
            problem,
            operands=(x, y[order], weight[order]),
            tangents=(problem.tangents[0], problem.tangents[1][order], problem.tangents[2][order]),
            graph=RandomGraph(
                problem.graph.senders[order.numpy()], problem.graph.receivers[order.numpy()], 6
            ),
        )
        for name, a, b in zip(RESULTS, problem.results(), shuffled.results(), strict=True):
            expected = a[order] if name.endswith(("_y", "_weight")) else a
            assert relative_error(b, expected) < 1e-14, name


# How operands lie in memory


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(3, "ir_mul"), plan_of_mode("uuw")], ids=str)
def test_operands_that_are_not_contiguous(plan, shared):
    problem = Problem.random(plan, random_graph(4, 9), shared=shared, dtype=torch.float32)
    for _ in instruction_sets():
        expected = problem.results()
        for name, elsewhere in moved(problem.given):
            assert same_bits(problem.with_given(elsewhere).results(), expected), name


@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(32, "ir_mul"), ROWS], ids=str)
def test_rows_that_repeat(plan):
    problem = Problem.random(plan, random_graph(5, 9))
    problem.with_given(list(map(broadcast, problem.given))).check_everywhere()


@pytest.mark.not_interpreted("chunks of the CPU's kernels")
def test_tangents_that_repeat_where_chunks_make_their_own_panels():
    """A stride of 0 stands for a tangent that is not given, in no place that a user can reach."""
    problem = Problem.random(wide_plan(129), random_graph(1200, sizes.edges(1500)))
    tangents = tuple(broadcast(t) for t in problem.tangents)
    whole = replace(problem, tangents=tuple(t.contiguous() for t in tangents))
    for dtype in (torch.float32, torch.float64):
        assert same_bits(replace(problem, tangents=tangents).to(dtype).results(), whole.to(dtype).results())


def test_order_that_is_not_contiguous():
    problem = Problem.random(CHANNELS, random_graph(5, 9))
    expected = problem.results()
    spread = torch.full((2 * len(problem.order),), -1)
    spread[::2] = problem.order
    problem.__dict__["order"] = spread[::2]
    assert same_bits(problem.results(), expected)


def test_operands_are_left_alone():
    for plan in (CHANNELS, wide_plan(32, "ir_mul"), ROWS):
        problem = Problem.random(plan, random_graph(5, 9))
        given = *problem.given, problem.order
        before = tuple(t.clone() for t in given)
        problem.results()
        assert same_bits(given, before)


# What is asked for


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(32, "ir_mul"), ROWS], ids=str)
def test_needs(plan, shared):
    problem = Problem.random(plan, random_graph(5, 21), shared=shared)
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
@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(32, "ir_mul"), ROWS], ids=str)
def test_tangents_that_are_not_given(plan, shared):
    problem = Problem.random(plan, random_graph(4, 9), shared=shared)
    for given_bits in range(8):
        tangents = tuple(t if given_bits >> i & 1 else None for i, t in enumerate(problem.tangents))
        replace(problem, tangents=tangents).check_everywhere()


# Laws


@settings(max_examples=sizes.examples(30), derandomize=True)
@given(
    random_plans(max_terms=sizes.terms(20_000)),
    random_graphs(edges=EDGES[1:]),
    st.booleans(),
    st.integers(0, 2**20),
)
@example(wide_plan(128), random_graph(20, 300), False, 0)
@example(wide_plan(100), random_graph(20, 300), True, 0)
def test_one_form_of_four_operands(plan, edges, shared, seed):
    """<g, out> = <x, grad_x> = <y, grad_y> = <w, grad_w>, the last for the weighted paths alone."""
    problem = Problem.random(plan, edges, shared=shared, seed=seed)
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


@settings(max_examples=sizes.examples(20), derandomize=True)
@given(
    random_plans(l_max=6, layouts=["mul_ir"], max_terms=sizes.terms(20_000)),
    random_graphs(edges=EDGES),
    st.integers(0, 2**20),
)
@example(wide_plan(33), random_graph(5, 40), 1)
def test_equivariance(plan, edges, seed):
    torch.manual_seed(seed)
    problem = Problem.random(plan, edges, seed=seed)
    rotation = (-1) ** seed * o3.rand_matrix(dtype=torch.float64)
    in1, in2, out = (
        o3.Irreps(irreps).D_from_matrix(rotation)
        for irreps in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)
    )
    x, y, weight = problem.operands
    turned = replace(problem, operands=(x @ in1.T, y @ in2.T, weight), grad=problem.grad @ out.T)
    assert relative_error(turned.forward(), problem.forward() @ out.T) < 1e-12
    matrices = (in1, in2, None)
    for before, after, matrix in zip(problem.backward(), turned.backward(), matrices, strict=True):
        assert relative_error(after, before if matrix is None else before @ matrix.T) < 1e-12


@pytest.mark.parametrize("shared", [False, True])
def test_autograd_of_the_channelwise_kernel(shared):
    plan = channelwise_plan("16x0e+17x1o", "1x0e+1x1o", 1, unweighted=1)
    assert kernel(plan) == "channels"
    senders, receivers, num_nodes = GRAPHS["unsymmetric"]
    edges = Graph(torch.from_numpy(senders), torch.from_numpy(receivers), num_nodes)
    problem = Problem.random(plan, GRAPHS["unsymmetric"], shared=shared)
    operands = [t.requires_grad_() for t in problem.operands]

    def function(*given):
        return ops.convolution(*given, edges, plan)

    def twice(*given):
        first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), given, create_graph=True)

    assert torch.autograd.gradcheck(function, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)
    assert torch.autograd.gradcheck(twice, operands, fast_mode=True)


# The same bits, always


@pytest.fixture(params=["channels", "elementwise", "rows", "dense", "orders", "waves"])
def large(request):
    """Problems of several chunks, with nodes that receive in one of them alone and send in all."""
    plan = {
        "channels": wide_plan(32),
        "elementwise": mixed_plan(16),
        "rows": wide_plan(2),
        "dense": dense_plan(3, 2, 9),
        "orders": plan_of_orders(9, 8, 10),
        "waves": wide_plan(128),
    }[request.param]
    lanes = "rows" if request.param in ("rows", "dense", "orders") else "channels"
    assert kernel(plan) == lanes
    edges = random_graph(1200 if request.param == "waves" else 300, sizes.edges(3000))
    edges.receivers[: len(edges.receivers) // 6] = 7
    return [Problem.random(plan, edges, shared=shared, dtype=torch.float32) for shared in (False, True)]


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
    problems = [*large, Problem.random(plan_of_mode("uvw"), random_graph(5, 40))]
    expected = [problem.results() for problem in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for results, first in zip(pool.map(Problem.results, problems * 2), expected * 2):
                assert same_bits(results, first)


# Values that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(32, "ir_mul"), ROWS], ids=str)
def test_not_finite_values_stay_with_their_nodes(plan, bad):
    """A spoilt edge reaches its receiver, in the backward pass its sender, and nothing else."""
    problem = Problem.random(plan, random_graph(6, 25))
    edge = len(problem.graph.senders) // 2
    sender, receiver = problem.graph.senders[edge], problem.graph.receivers[edge]
    for i in (1, 2):
        spoilt = problem.operands[i].clone()
        spoilt[edge] = bad
        operands = tuple(spoilt if j == i else other for j, other in enumerate(problem.operands))
        for _ in instruction_sets():
            other = replace(problem, operands=operands)
            out, (grad_x, grad_y, grad_weight) = other.forward(), other.backward()
            assert not out[receiver].isfinite().any()
            for result, spoilt_row in (
                (out, receiver),
                (grad_x, sender),
                (grad_y, edge),
                (grad_weight, edge),
            ):
                good = torch.arange(len(result)) != spoilt_row
                assert result[good].isfinite().all()
