"""Triton's kernels against the reference, in Triton's interpreter: only with ``pytest --interpreted``.

It takes half a millisecond for an operation of a program, so that problems are small; blocks of several
tiles, kernels of several groups of paths and windows of edges are brought about by limits.
"""

import mmap
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import interpretation
from clebsch import Graph, ops
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import RandomGraph, random_graphs, random_plans
from clebsch.triton import (
    launch,
    schedule,
    source,
    spherical_harmonics,
    tensor_product,
    tensor_product_channels,
    tensor_product_modes,
)
from product_calls import PROMISED, Problem, broadcast, poisoned_memory, same_bits, views, wide_plan
from test_spherical_harmonics import check, random_problem

pytestmark = pytest.mark.skipif(not interpretation.enabled(), reason="only with --interpreted")

EDGES = RandomGraph(np.array([0, 3, 1, 1]), np.array([1, 1, 3, 0]), 4)
# A few copies, all of them different in number.
SMALL = {
    "uvw": ("2x1o", "3x1o", "4x2e"),
    "uvu": ("3x1o", "2x1o", "3x2e"),
    "uvv": ("2x1o", "3x1o", "3x2e"),
    "uuw": ("3x1o", "3x1o", "2x1e"),
    "uuu": ("3x1o", "3x1o", "3x2e"),
    "uvuv": ("2x1o", "3x1o", "6x1e"),
    "uvu<v": ("4x1o", "4x1o", "6x1e"),
    "u<vw": ("4x1o", "4x1o", "3x1e"),
}


def small_plan(mode, layout):
    paths = [(0, 0, 0, mode, True)]
    if mode not in ("uvw", "u<vw", "uuw"):
        paths.append((0, 0, 0, mode, False, 0.3))
    in1, in2, out = SMALL[mode]
    return ProductPlan.from_instructions(in1 + "+2x0e", in2, out + "+1x0e", paths, layout=layout)


@pytest.fixture
def limits(monkeypatch):
    """Sets limits of generators, whose sources are made anew."""

    def forget():
        for made in (
            tensor_product.forward_sources,
            tensor_product.together_sources,
            tensor_product.target_sources,
        ):
            made.cache_clear()

    def set_limits(**values):
        forget()
        for name, value in values.items():
            generators = (tensor_product_channels, tensor_product_modes)
            for module in (launch, schedule, source, tensor_product, *generators):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)

    yield set_limits
    forget()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [2, EDGES], ids=["rows", "graph"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, rows, shared):
    layout = "ir_mul" if shared else "mul_ir"
    with poisoned_memory():
        Problem.random(small_plan(mode, layout), rows, shared=shared).check()


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize("rows", [2, EDGES], ids=["rows", "graph"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_channels(layout, rows, dtype):
    with poisoned_memory():
        Problem.random(wide_plan(5, layout), rows, dtype=dtype).check()


@hypothesis.settings(max_examples=12, derandomize=True, deadline=None)
@hypothesis.given(
    random_plans(l_max=3, max_paths=3, multiplicities=(0, 1, 2, 3), max_terms=40),
    st.one_of(st.sampled_from((0, 2)), random_graphs(edges=(0, 1, 3), max_nodes=3)),
    st.booleans(),
    st.sampled_from(list(PROMISED)),
)
def test_random_plans(plan, rows, shared, dtype):
    with poisoned_memory():
        Problem.random(plan, rows, shared=shared, dtype=dtype).check()


def test_several_tiles():
    with poisoned_memory():
        Problem.random(wide_plan(70), RandomGraph(EDGES.senders[:2], EDGES.receivers[:2], 4)).check()


def test_more_tiles_than_an_axis_has(limits):
    """Pairs of 7 copies meet 7: 343 weights, 3 tiles, on two axes of which one may be 2."""
    limits(MOST_TILES=2)
    plan = ProductPlan("7x0e", "7x0e", "7x0e", ((0, 0, 0, "uvw", True, 1.0),))
    with poisoned_memory():
        Problem.random(plan, 2, shared=True).check()


@pytest.mark.parametrize("rows", [2, EDGES], ids=["rows", "graph"])
def test_paths_in_several_kernels_which_add(limits, rows):
    limits(MOST_VALUES=1, MOST_COEFFICIENTS=12)
    call = tensor_product.Call(str(wide_plan(3)), "float64", rows is EDGES, False)
    assert len(tensor_product.forward_sources(call)) == 6
    with poisoned_memory():
        Problem.random(wide_plan(3), rows).check()


def test_modes_in_several_kernels_which_add(limits):
    limits(MOST_COEFFICIENTS=12)
    with poisoned_memory():
        Problem.random(small_plan("uvu", "mul_ir"), EDGES).check()


@pytest.mark.parametrize("mode", MODES)
def test_coefficients_from_a_table(limits, mode):
    """As those of paths of high degrees are; rows or a graph, with shared weights or with a row for each."""
    limits(MOST_COEFFICIENTS=1)
    plan = small_plan(mode, LAYOUTS[MODES.index(mode) % 2])
    call = tensor_product.Call(str(plan), "float64", False, False)
    assert all(one.table for one in tensor_product.forward_sources(call))
    for rows, shared in ((2, True), (RandomGraph(EDGES.senders[:2], EDGES.receivers[:2], 4), False)):
        with poisoned_memory():
            Problem.random(plan, rows, shared=shared).check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_with_coefficients_from_a_table(limits, layout):
    """Paths that fit into straight code take it."""
    limits(MOST_COEFFICIENTS=8)
    plan = wide_plan(2, layout)
    call = tensor_product.Call(str(plan), "float64", False, False)
    assert len({bool(one.table) for one in tensor_product.forward_sources(call)}) == 2
    with poisoned_memory():
        Problem.random(plan, EDGES, dtype=torch.float32).check()


def test_windows_of_edges(limits):
    limits(WORK_SPACE=1)
    with poisoned_memory():
        Problem.random(wide_plan(2), EDGES).check()


@pytest.mark.parametrize("senders", [[], [1]], ids=["no edges", "one edge"])
def test_graphs_with_next_to_nothing(senders):
    graph = RandomGraph(np.array(senders, np.int64), np.array(senders, np.int64), 2)
    for plan in (wide_plan(2), small_plan("uuu", "mul_ir")):
        for shared in (False, True):
            with poisoned_memory():
                Problem.random(plan, graph, shared=shared).check()


def test_plans_with_next_to_nothing():
    for plan in (
        ProductPlan("", "", "", ()),
        ProductPlan("3x0e", "1x0e", "2x1o", ()),
        ProductPlan(
            "0x0e+2x0e", "1x0e", "0x0e+2x0e", ((0, 0, 0, "uvu", True, 1.0), (1, 0, 1, "uvu", True, 0.0))
        ),
    ):
        with poisoned_memory():
            Problem.random(plan, 3).check()


@pytest.mark.parametrize("missing", range(3))
def test_tangents_that_are_not_given(missing):
    problem = Problem.random(wide_plan(2), EDGES)
    tangents = tuple(None if i == missing else t for i, t in enumerate(problem.tangents))
    zeros = tuple(torch.zeros_like(t) if i == missing else t for i, t in enumerate(problem.tangents))
    call = torch.ops.clebsch.convolution_double_backward
    given = problem.grad, *problem.operands, *problem.fixed, -1
    for a, b in zip(call(*tangents, *given), call(*zeros, *given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    for result in call(None, None, None, *given):
        assert (result == 0).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [2, EDGES], ids=["rows", "graph"])
@pytest.mark.parametrize("given", range(3))
@pytest.mark.parametrize(
    "plan", [small_plan("uuw", "mul_ir"), small_plan("uvu", "mul_ir"), wide_plan(2)], ids=str
)
def test_one_tangent_alone(plan, given, rows, shared):
    problem = Problem.random(plan, rows, shared=shared)
    tangents = tuple(t if i == given else None for i, t in enumerate(problem.tangents))
    zeros = tuple(t if i == given else torch.zeros_like(t) for i, t in enumerate(problem.tangents))
    call = problem.operator("_double_backward")
    operands = problem.grad, *problem.operands, *problem.fixed, -1
    with poisoned_memory():
        for a, b in zip(call(*tangents, *operands), call(*zeros, *operands), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [wide_plan(2), small_plan("uuu", "mul_ir")], ids=str)
def test_needs(plan, shared):
    problem = Problem.random(plan, EDGES, shared=shared)
    with poisoned_memory():
        every = problem.backward(), problem.double_backward()
        for call, whole in zip((problem.backward, problem.double_backward), every, strict=True):
            for bit in range(len(whole)):
                some = call(1 << bit)
                assert same_bits(some[bit : bit + 1], whole[bit : bit + 1])
                assert all(part.shape == (0,) for i, part in enumerate(some) if i != bit)


# How operands lie in memory, and what is in them


def elsewhere(problem, place):
    """The same problem with operands that `place` puts elsewhere."""
    moved = [place(t) for t in (*problem.operands, problem.grad, *problem.tangents)]
    return replace(problem, operands=tuple(moved[:3]), grad=moved[3], tangents=tuple(moved[4:]))


@pytest.mark.parametrize("rows", [2, EDGES], ids=["rows", "graph"])
@pytest.mark.parametrize("plan", [wide_plan(2), small_plan("uvv", "ir_mul")], ids=str)
def test_operands_that_are_not_contiguous(plan, rows):
    problem = Problem.random(plan, rows, dtype=torch.float32)
    expected = problem.results()
    for kind in dict(views(problem.grad)):
        assert same_bits(elsewhere(problem, lambda t, kind=kind: dict(views(t))[kind]).results(), expected), (
            kind
        )
    once = elsewhere(problem, broadcast)
    assert same_bits(once.results(), elsewhere(once, torch.Tensor.contiguous).results())


def test_operands_are_left_alone():
    for plan in (wide_plan(2), small_plan("uvw", "mul_ir")):
        problem = Problem.random(plan, EDGES)
        given = (*problem.operands, problem.grad, *problem.tangents, problem.order)
        before = tuple(t.clone() for t in given)
        results = problem.results()
        assert same_bits(given, before)
        assert len({t.data_ptr() for t in (*given, *results)}) == len(given) + len(results)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "plan", [wide_plan(2), small_plan("uuu", "mul_ir"), small_plan("uvw", "mul_ir")], ids=str
)
def test_not_finite_values_stay_with_their_nodes(plan, bad):
    """A spoilt edge reaches its receiver, in the backward pass its sender, and nothing else."""
    problem = Problem.random(plan, EDGES)
    edge = 2
    sender, receiver = EDGES.senders[edge], EDGES.receivers[edge]
    for i in (1, 2):
        operands = list(problem.operands)
        operands[i] = operands[i].clone()
        operands[i][edge] = bad
        spoilt = replace(problem, operands=tuple(operands))
        places = receiver, sender, edge, edge
        for result, row in zip((spoilt.forward(), *spoilt.backward()), places, strict=True):
            assert result[torch.arange(len(result)) != row].isfinite().all()
        assert not spoilt.forward()[receiver].isfinite().all()


def sparse(count, dtype):
    """Zeros; of memory they take what is written."""
    size = count * dtype.itemsize
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python 3.10 does not name
    return torch.frombuffer(mmap.mmap(-1, size, flags=private), dtype=dtype)


def far_apart(rows):
    """The same rows; the last one begins beyond 2^31 numbers."""
    if rows.dim() < 2:
        return rows
    stride = (1 << 31) // (len(rows) - 1) + 16
    memory = sparse(stride * len(rows), rows.dtype)
    return memory.as_strided(rows.shape, (stride, 1)).copy_(rows)


@pytest.mark.parametrize("rows", [3, EDGES], ids=["rows", "graph"])
@pytest.mark.parametrize("plan", [wide_plan(1), small_plan("uvu", "mul_ir")], ids=str)
def test_rows_beyond_32_bits(plan, rows):
    problem = Problem.random(plan, rows, dtype=torch.float32)
    operands, tangents = (tuple(map(far_apart, given)) for given in (problem.operands, problem.tangents))
    far = Problem(plan, operands, far_apart(problem.grad), tangents, problem.graph)
    assert same_bits(far.results(), problem.results())


def test_points_beyond_32_bits():
    points, grad, tangent = random_problem([0, 1, 2], 3, torch.float32)
    call = torch.ops.clebsch.spherical_harmonics_double_backward
    fixed = ([0, 1, 2], True, "component")
    near, far = (call(*map(place, (tangent, grad, points)), *fixed) for place in (lambda t: t, far_apart))
    assert same_bits(far, near)


@pytest.mark.parametrize("mode", ["uvu", "uuu"])
def test_lists_of_edges_beyond_32_bits(mode):
    """The last two of 2^30 edges; the others belong to no node."""
    plan = ProductPlan("1x0e", "1x0e", "1x0e", ((0, 0, 0, mode, True, 1.0),))
    near = Problem.random(plan, RandomGraph(np.array([1, 0]), np.array([0, 1]), 2), dtype=torch.float32)
    edges = 1 << 30
    order = sparse(6 * edges + 5 + 3 * 2, torch.int64)
    order[:2] = -1
    order[2:8] = torch.tensor([edges - 2, edges - 1, edges] * 2)  # of receivers, of senders
    lists = (edges - 2, edges - 1), (1, 0), (0, 1), (edges - 1, edges - 2)  # edge, sender, receiver, outgoing
    for i, values in enumerate(lists):
        begin = 11 + i * edges + edges - 2
        order[begin : begin + 2] = torch.tensor(values)
    x, y, weight = near.operands
    given = x, *(far_edges(rows, edges) for rows in (y, weight)), order, str(plan)
    assert same_bits((torch.ops.clebsch.convolution(*given),), (near.forward(),))
    gx = torch.ops.clebsch.convolution_backward(near.grad, *given, 1)[0]
    assert same_bits((gx,), (near.backward(1)[0],))


def far_edges(rows, edges):
    """As the last of so many."""
    memory = sparse(edges * rows.shape[1], rows.dtype).view(edges, rows.shape[1])
    memory[-len(rows) :] = rows
    return memory


def test_derivatives():
    plan = ProductPlan("1x1o", "1x1o", "1x0e", ((0, 0, 0, "uvu", True, 1.0),))
    ends = RandomGraph(np.array([0, 1, 1]), np.array([1, 1, 0]), 2)
    problem = Problem.random(plan, ends)
    graph = Graph(torch.from_numpy(ends.senders), torch.from_numpy(ends.receivers), ends.num_nodes)
    operands = [t.detach().requires_grad_() for t in problem.operands]

    def energy(*given):
        return ops.convolution(*given, graph, problem.plan).pow(2).sum(1)

    assert torch.autograd.gradcheck(energy, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, operands, fast_mode=True)


def test_opcheck_and_compile():
    problem = Problem.random(wide_plan(2), EDGES)
    given = [t.detach().requires_grad_() for t in problem.operands]
    torch.library.opcheck(torch.ops.clebsch.convolution, (*given, *problem.fixed))
    text = str(problem.plan)

    def function(x, y, weight, order):
        return torch.ops.clebsch.convolution(x, y, weight, order, text) * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert same_bits((compiled(*given, problem.order).detach(),), (problem.forward() * 2,))
    exported = torch.export.export(_Module(function), (*problem.operands, problem.order))
    assert same_bits((exported.module()(*problem.operands, problem.order),), (problem.forward() * 2,))


class _Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


SHORT = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def assert_rounded_once(short, long):
    """Results stored in 16 bits are those of 32 bits, off by one rounding."""
    for a, b in zip(short, long, strict=True):
        assert a.dtype in (torch.float16, torch.bfloat16) and b.dtype == torch.float32
        assert ((a.float() - b).abs() <= torch.finfo(a.dtype).eps * (b.abs() + 1e-3)).all()


@SHORT
@pytest.mark.parametrize("rows", [2, EDGES], ids=["rows", "graph"])
@pytest.mark.parametrize(
    "plan, shared",
    [(wide_plan(3), False), (wide_plan(3), True), (small_plan("uvw", "ir_mul"), True)],
    ids=str,
)
def test_numbers_of_16_bits(plan, shared, rows, dtype):
    problem = Problem.random(plan, rows, shared=shared, dtype=torch.float32).to(dtype)
    with poisoned_memory():
        assert_rounded_once(problem.results(), problem.to(torch.float32).results())  # of the same numbers


@SHORT
def test_harmonics_of_16_bits(dtype):
    points, grad, tangent = (t.to(dtype) for t in random_problem([0, 1, 2, 3], 5, torch.float32))
    fixed = [0, 1, 2, 3], True, "component"

    def results(*given):
        forward, double_backward = (
            getattr(torch.ops.clebsch, f"spherical_harmonics{step}") for step in ("", "_double_backward")
        )
        return forward(given[-1], *fixed), *double_backward(*given, *fixed)

    given = tangent, grad, points
    with poisoned_memory():
        assert_rounded_once(results(*given), results(*(t.float() for t in given)))


@pytest.mark.parametrize("place", ["begin", "edge", "sender", "receiver", "outgoing", "head"])
def test_an_order_that_is_wrong_reads_nothing_out_of_bounds(place):
    problem = Problem.random(wide_plan(2), EDGES)
    edges, nodes = len(EDGES.senders), EDGES.num_nodes
    lists = 5 + 3 * nodes
    at = {
        "head": 0,
        "begin": 2 + 1,
        "edge": lists,
        "sender": lists + edges,
        "receiver": lists + 2 * edges,
        "outgoing": lists + 3 * edges,
    }[place]
    for bad in (-(1 << 40), 1 << 40):
        order = problem.order.clone()
        order[at] = bad
        problem.__dict__["order"] = order
        out, (gx, gy, gw) = problem.forward(), problem.backward()
        assert out.shape == (nodes, problem.plan.irreps_out.dim) and gx.shape == problem.operands[0].shape
        if place in ("edge", "sender", "receiver", "head"):
            assert out.isnan().any()  # it shows
        assert gy.shape == problem.operands[1].shape and gw.shape == problem.operands[2].shape
        del problem.__dict__["order"]


def test_bad_arguments():
    x, y, weight = Problem.random(wide_plan(2), 3).operands
    plan, call = str(wide_plan(2)), torch.ops.clebsch.tensor_product
    for given, sentence in (
        ((x[:, 1:], y, weight), "x must have 8 columns, got 7"),
        ((x, y.float(), weight), "y must have the dtype of x"),
        ((x, y, weight[:2]), "weight must have 3 rows, got 2"),
        ((x[:2], y, weight), "x and y must have the same number of rows, got 2 and 3"),
    ):
        with pytest.raises(ValueError) as error:
            call(*given, plan)
        assert str(error.value) == f"tensor_product: {sentence}"
    with pytest.raises(ValueError) as error:
        torch.ops.clebsch.convolution(x, y, weight, torch.zeros(3, dtype=torch.int64), plan)
    assert str(error.value) == "convolution: order must come from graph_order with 3 edges and 3 nodes"


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("ls", [[0, 1, 2, 3], [5], [2, 0, 2, 1], []], ids=str)
def test_harmonics(ls, normalize, dtype):
    for normalization in ("component", "norm", "integral") if len(ls) == 4 else ("component",):
        for rows in (0, 7):
            points, grad, tangent = random_problem(ls, rows, dtype)
            points = points if normalize else points / points.norm(dim=1, keepdim=True).clamp_min(1)
            with poisoned_memory():
                check(points, grad, tangent, ls, normalize, normalization)


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize("ls", [[0, 1, 2, 3, 4], [4, 6, 0, 6]], ids=str)
def test_harmonics_in_several_kernels(monkeypatch, ls, dtype):
    """Of degrees and, for high ones, of orders, which add up."""
    monkeypatch.setattr(spherical_harmonics, "MOST_LINES", 60)
    spherical_harmonics.sources.cache_clear()
    made = spherical_harmonics.sources("float32", tuple(ls), True, "component", "double_backward")
    assert len(made) > 3 and {name for one in made for name in one.text.splitlines() if "orders 2 to" in name}
    for normalize in (True, False):
        points, grad, tangent = random_problem(ls, 7, dtype)
        points = points if normalize else points / points.norm(dim=1, keepdim=True).clamp_min(1)
        with poisoned_memory():
            check(points, grad, tangent, ls, normalize, "component")
    spherical_harmonics.sources.cache_clear()


def test_harmonics_of_a_high_degree():
    points, grad, tangent = random_problem([24], 5, torch.float64)
    with poisoned_memory():
        check(points, grad, tangent, [24], True, "component")
