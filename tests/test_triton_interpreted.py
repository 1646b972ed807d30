"""Triton's kernels against the reference, in Triton's interpreter: only with ``pytest --interpreted``.

It takes half a millisecond for an operation of a program, so that problems are small; blocks of several
tiles, kernels of several groups of paths and windows of edges are brought about by limits.
"""

import numpy as np
import pytest
import torch

import interpretation
from clebsch import Graph, ops
from clebsch.algebra.plan import MODES, ProductPlan
from clebsch.testing import RandomGraph
from clebsch.triton import schedule, tensor_product, tensor_product_channels, tensor_product_modes
from product_calls import PROMISED, Problem, poisoned_memory, same_bits, wide_plan
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
            modules = (schedule, tensor_product, tensor_product_channels, tensor_product_modes)
            for module in modules:
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


def test_several_tiles():
    with poisoned_memory():
        Problem.random(wide_plan(70), RandomGraph(EDGES.senders[:2], EDGES.receivers[:2], 4)).check()


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


@pytest.mark.parametrize("needs", [1, 2, 4])
def test_needs(needs):
    problem = Problem.random(wide_plan(2), EDGES)
    for some, all_of_them in zip(problem.backward(needs), problem.backward(), strict=True):
        assert some.numel() == 0 or same_bits((some,), (all_of_them,))


def test_derivatives():
    problem = Problem.random(wide_plan(1), EDGES)
    graph = Graph(torch.from_numpy(EDGES.senders), torch.from_numpy(EDGES.receivers), EDGES.num_nodes)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits(dtype):
    """Stored in 16 bits, computed with in 32: off by one rounding of the result."""
    problem = Problem.random(wide_plan(3), EDGES, dtype=torch.float32).to(dtype)
    exact = problem.to(torch.float32)  # the same numbers
    for short, long in zip(problem.results(), exact.results(), strict=True):
        assert short.dtype == dtype
        assert ((short.float() - long).abs() <= torch.finfo(dtype).eps * (long.abs() + 1e-3)).all()


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
