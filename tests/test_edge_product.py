"""Products of edges with what their receivers have, with derivatives, as operators, against the reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import emulation
import sizes
from clebsch import Graph, ops
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import RandomGraph, random_graphs, random_plans, relative_error
from product_calls import (
    RESULTS,
    EdgeProblem,
    broadcast,
    dense_plan,
    elementwise_plan,
    instruction_sets,
    kernel,
    mixed_plan,
    plan_of_mode,
    poisoned_memory,
    random_graph,
    same_bits,
    views,
    wide_plan,
)

layouts = pytest.mark.parametrize("layout", LAYOUTS)
PLANS = [elementwise_plan(16, (0, 1), "ir_mul"), mixed_plan(17), wide_plan(33), wide_plan(2)]
plans = pytest.mark.parametrize("plan", PLANS, ids=["elementwise", "mixed", "channels", "rows"])


def sorted_graph(num_nodes, num_edges, seed=0):
    """Edges of a receiver follow each other."""
    receivers = np.sort(np.random.default_rng(seed).integers(num_nodes, size=num_edges))
    return RandomGraph(receivers[::-1].copy(), receivers, num_nodes)


def test_lanes_of_the_plans():
    assert [kernel(plan) for plan in PLANS] == ["channels", "channels", "channels", "rows"]


@settings(max_examples=60, derandomize=True)
@given(random_plans(max_terms=2000), random_graphs(edges=(0, 1, 7, 40)), st.booleans(), st.integers(0, 2**20))
@example(ProductPlan("3x0e", "1x0e", "", ()), random_graph(4, 7), True, 0)
@example(ProductPlan("", "1x0e", "3x0e+2x1o", (), "ir_mul"), random_graph(4, 7), False, 0)
def test_random_plans_and_graphs(plan, edges, shared, seed):
    EdgeProblem.random(plan, edges, shared=shared, seed=seed).check_everywhere()


@plans
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("make", [sorted_graph, random_graph])
@pytest.mark.parametrize("num_nodes, num_edges", [(0, 0), (5, 0), (9, 1), (3, 70), (1, 200), (90, 140)])
def test_graphs(num_nodes, num_edges, make, shared, plan):
    """More and fewer edges than a block for a receiver, some with none, edges in order and not."""
    EdgeProblem.random(plan, make(num_nodes, num_edges), shared=shared).check_everywhere()


@pytest.mark.skipif(not emulation.enabled(), reason="about the kernels of GPUs")
@plans
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("make", [sorted_graph, random_graph])
def test_windows_of_edges(make, shared, plan):
    """Sums of receivers and of weights go on from window to window."""
    with emulation.workspace(1000):
        EdgeProblem.random(plan, make(5, 150), shared=shared).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_modes_with_many_copies(mode, shared, layout):
    EdgeProblem.random(plan_of_mode(mode, layout), random_graph(3, 11), shared=shared).check_everywhere()


@layouts
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mul", [1, 3, 7, 16, 17, 33])
@pytest.mark.parametrize("make", [elementwise_plan, mixed_plan])
def test_elementwise(make, mul, shared, layout):
    EdgeProblem.random(make(mul, layout=layout), sorted_graph(4, 40), shared=shared).check_everywhere()


@pytest.mark.parametrize("degrees", [(0, 1, 2, 3), (3, 4), (2, 8)], ids=str)
def test_elementwise_of_degrees(degrees):
    """Within and beyond those that have code of their own, and pairs of both kinds."""
    EdgeProblem.random(elementwise_plan(16, degrees), sorted_graph(4, 13)).check_everywhere()


@plans
@pytest.mark.parametrize("shared", [False, True])
def test_is_the_product_of_gathered_rows(plan, shared):
    """Chunks in several waves, results past the caches."""
    problem = EdgeProblem.random(
        plan, sorted_graph(150, sizes.edges(9000)), shared=shared, dtype=torch.float32
    )
    receivers = torch.from_numpy(problem.graph.receivers)

    def gathered(x, y, w):
        return ops.tensor_product(x, y.index_select(0, receivers), w, plan)

    leaves = [operand.double().requires_grad_() for operand in problem.operands]
    grad = problem.grad.double().requires_grad_()
    out = gathered(*leaves)
    first = torch.autograd.grad(out, leaves, grad, create_graph=True)
    second = torch.autograd.grad(first, [grad, *leaves], [t.double() for t in problem.tangents])
    with poisoned_memory():
        results = problem.results()
    for name, found, expected in zip(RESULTS, results, (out, *first, *second), strict=True):
        assert relative_error(found, expected.detach()) < 1e-5, name


@plans
@pytest.mark.parametrize("shared", [False, True])
def test_operands_that_are_not_contiguous(plan, shared):
    problem = EdgeProblem.random(plan, random_graph(4, 9), shared=shared, dtype=torch.float32)
    for _ in instruction_sets():
        expected = problem.results()
        for i in range(7):
            given = [*problem.operands, problem.grad, *problem.tangents]
            for name, view in views(given[i]):
                moved = [*given[:i], view, *given[i + 1 :]]
                other = replace(problem, operands=tuple(moved[:3]), grad=moved[3], tangents=tuple(moved[4:]))
                assert same_bits(other.results(), expected), (i, name)


@plans
@pytest.mark.parametrize("make", [sorted_graph, random_graph])
def test_rows_that_repeat(make, plan):
    problem = EdgeProblem.random(plan, make(5, 19))
    everything = [broadcast(t) for t in (*problem.operands, problem.grad, *problem.tangents)]
    replace(
        problem, operands=tuple(everything[:3]), grad=everything[3], tangents=tuple(everything[4:])
    ).check_everywhere()


@plans
@pytest.mark.parametrize("shared", [False, True])
def test_needs(plan, shared):
    problem = EdgeProblem.random(plan, random_graph(5, 21), shared=shared)
    with poisoned_memory():
        every = (problem.backward(), problem.double_backward())
        for call, count, all_of_it in zip((problem.backward, problem.double_backward), (3, 4), every):
            for needs in range(2**count):
                for i, (some, whole) in enumerate(zip(call(needs), all_of_it, strict=True)):
                    expected = whole if needs >> i & 1 else whole.new_empty(0)
                    assert same_bits((some,), (expected,)), (needs, i)


@plans
def test_tangents_that_are_not_given(plan):
    problem = EdgeProblem.random(plan, random_graph(4, 9))
    for given_bits in range(8):
        tangents = tuple(t if given_bits >> i & 1 else None for i, t in enumerate(problem.tangents))
        replace(problem, tangents=tangents).check_everywhere()


@plans
@pytest.mark.parametrize("shared", [False, True])
def test_same_bits_on_every_run_and_for_any_number_of_threads(plan, shared):
    problem = EdgeProblem.random(
        plan, sorted_graph(300, sizes.edges(3000)), shared=shared, dtype=torch.float32
    )
    for _ in instruction_sets():
        torch.set_num_threads(1)
        expected = problem.results()
        for threads in (1, 2, 4, 1):
            torch.set_num_threads(threads)
            assert same_bits(problem.results(), expected), threads


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [elementwise_plan(5, (0, 1)), dense_plan(2, 1, 3)], ids=["uuu", "uvw"])
def test_autograd(plan, shared):
    problem = EdgeProblem.random(plan, random_graph(4, 9), shared=shared)
    senders, receivers, num_nodes = problem.graph
    edges = Graph(torch.from_numpy(senders), torch.from_numpy(receivers), num_nodes)
    operands = [t.requires_grad_() for t in problem.operands]

    def function(*given):
        return ops.edge_product(*given, edges, plan)

    def twice(*given):
        first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), given, create_graph=True)

    assert torch.autograd.gradcheck(function, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)
    assert torch.autograd.gradcheck(twice, operands, fast_mode=True)


def test_errors_name_the_argument():
    plan = wide_plan(2)
    x, y, weight = EdgeProblem.random(plan, sorted_graph(3, 5)).operands
    edges = Graph(torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"edge_product: y must have shape \(num_nodes, 9\) = \(3, 9\), got"):
        ops.edge_product(x, y[:2], weight, edges, plan)
    with pytest.raises(ValueError, match=r"edge_product: x must have shape \(num_edges, 8\) = \(5, 8\), got"):
        ops.edge_product(x[:2], y, weight, edges, plan)
    with pytest.raises(ValueError, match=r"edge_product: weight must have shape \(num_edges, 10\)"):
        ops.edge_product(x, y, weight[:3], edges, plan)
    with pytest.raises(TypeError, match="edge_product: graph must be"):
        ops.edge_product(x, y, weight, {}, plan)
    order = edges.order
    with pytest.raises(ValueError, match="edge_product: order must come from graph_order"):
        torch.ops.clebsch.edge_product(x, y[:2], weight, order, str(plan))
