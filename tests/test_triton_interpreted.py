"""What is of Triton's kernels alone, in Triton's interpreter: only with ``pytest --interpreted``.

Blocks of several tiles, kernels of several groups of paths and windows of edges, brought about by limits;
rows and lists beyond 32 bits; wrong orders; messages. The operator tests of the CPU's kernels run there too.
"""

import mmap

import numpy as np
import pytest
import torch

import interpretation
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import RandomGraph
from clebsch.triton import (
    launch,
    schedule,
    source,
    spherical_harmonics,
    tensor_product,
    tensor_product_channels,
    tensor_product_modes,
)
from product_calls import PROMISED, Problem, plan_of_mode, poisoned_memory, same_bits, wide_plan
from test_spherical_harmonics import check, random_problem

pytestmark = pytest.mark.skipif(not interpretation.enabled(), reason="only with --interpreted")

EDGES = RandomGraph(np.array([0, 3, 1, 1]), np.array([1, 1, 3, 0]), 4)


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
        Problem.random(plan_of_mode("uvu"), EDGES).check()


@pytest.mark.parametrize("mode", MODES)
def test_coefficients_from_a_table(limits, mode):
    """As those of paths of high degrees are; rows or a graph, with shared weights or with a row for each."""
    limits(MOST_COEFFICIENTS=1)
    plan = plan_of_mode(mode, LAYOUTS[MODES.index(mode) % 2])
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


# How operands lie in memory, and what is in them


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
@pytest.mark.parametrize("plan", [wide_plan(1), plan_of_mode("uvu")], ids=str)
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
    x, y, weight = Problem.random(wide_plan(2), 2).operands
    plan, call = str(wide_plan(2)), torch.ops.clebsch.tensor_product
    for given, sentence in (
        ((x[:, 1:], y, weight), "x must have 8 columns, got 7"),
        ((x, y.float(), weight), "y must have the dtype of x"),
        ((x, y, weight[:1]), "weight must have 2 rows, got 1"),
        ((x[:1], y, weight), "x and y must have the same number of rows, got 1 and 2"),
    ):
        with pytest.raises(ValueError) as error:
            call(*given, plan)
        assert str(error.value) == f"tensor_product: {sentence}"
    with pytest.raises(ValueError) as error:
        torch.ops.clebsch.convolution(x, y, weight, torch.zeros(3, dtype=torch.int64), plan)
    assert str(error.value) == "convolution: order must come from graph_order with 2 edges and 2 nodes"


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


def test_bad_arguments_of_harmonics():
    points, grad, tangent = random_problem([1], 4)
    fixed = [1], True, "norm"
    forward, backward, double_backward = (
        getattr(torch.ops.clebsch, f"spherical_harmonics{step}")
        for step in ("", "_backward", "_double_backward")
    )
    for sentence, operator, *given in (
        ("points must have 3 columns, got 2", forward, points[:, :2], *fixed),
        ("points must have 2 dimensions, got 1", forward, points[0], *fixed),
        ("points must be float32, float64, float16 or bfloat16", forward, points.long(), *fixed),
        ("ls must be >= 0, got -1", forward, points, [-1], True, "norm"),
        (
            "normalization must be 'integral', 'component' or 'norm', got 'unit'",
            *(forward, points, [1], True, "unit"),
        ),
        ("grad must have 4 rows, got 3", backward, grad[:3], points, *fixed),
        ("grad must have the dtype of points", backward, grad.float(), points, *fixed),
        ("grad must have 3 columns, got 2", double_backward, tangent, grad[:, :2], points, *fixed),
        ("grad_grad_points must have 4 rows, got 1", double_backward, tangent[:1], grad, points, *fixed),
    ):
        with pytest.raises(ValueError) as error:
            operator(*given)
        assert str(error.value) == f"spherical_harmonics: {sentence}"
