"""Convolutions whose weights are hidden @ matrix, with their derivatives, against the reference."""

import concurrent.futures
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import emulation
import sizes
from clebsch import Graph, ops
from clebsch.algebra.plan import LAYOUTS, MODES, Path, ProductPlan
from clebsch.testing import random_graphs, random_plans, relative_error
from product_calls import (
    RadialProblem,
    broadcast,
    channelwise_plan,
    dense_plan,
    elementwise_plan,
    graph,
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
CHANNELS, ROWS = wide_plan(17), wide_plan(2)
SIZES = (0, 1, 7, 64, 65)  # of hidden


def star(num_edges, num_nodes=5):
    """One node receives everything."""
    return graph(np.arange(num_edges) % num_nodes, [num_nodes - 2] * num_edges, num_nodes)


UNSYMMETRIC = graph([0, 0, 1, 2, 0, 4, 4], [1, 2, 2, 3, 3, 3, 0], 6)


# Against the reference


@settings(max_examples=60, derandomize=True)
@given(
    random_plans(max_terms=2000),
    random_graphs(edges=(0, 1, 7, 40)),
    st.sampled_from(SIZES),
    st.integers(0, 2**20),
)
@example(ProductPlan("", "", "", ()), UNSYMMETRIC, 3, 0)
@example(ProductPlan("3x0e", "1x0e", "", ()), UNSYMMETRIC, 7, 0)
@example(ProductPlan("", "1x0e", "3x0e+2x1o", (), "ir_mul"), UNSYMMETRIC, 0, 0)
def test_random_plans_and_graphs(plan, edges, size, seed):
    RadialProblem.random(plan, edges, size, seed=seed).check_everywhere()


@layouts
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mul", [16, 33])
def test_sizes_of_hidden(mul, size, layout):
    plan = wide_plan(mul, layout)
    assert kernel(plan) == "channels"
    RadialProblem.random(plan, random_graph(4, 19), size, seed=mul).check_everywhere()


@pytest.mark.parametrize("plan", [CHANNELS, ROWS], ids=kernel)
@pytest.mark.parametrize("num_nodes, num_edges", [(0, 0), (5, 0), (1, 1), (400, 30)])
def test_few_edges(plan, num_nodes, num_edges):
    edges = graph([], [], num_nodes) if num_edges == 0 else random_graph(num_nodes, num_edges)
    RadialProblem.random(plan, edges, 7).check_everywhere()


@layouts
@pytest.mark.parametrize("mode", MODES)
def test_modes_with_many_copies(mode, layout):
    RadialProblem.random(plan_of_mode(mode, layout), random_graph(3, 11), 7, seed=1).check_everywhere()


@layouts
@pytest.mark.parametrize(
    "make", [lambda layout: dense_plan(3, 5, 17, layout), lambda layout: mixed_plan(17, layout)]
)
def test_other_kernels(make, layout):
    RadialProblem.random(make(layout), random_graph(4, 40), 7).check_everywhere()


@pytest.mark.parametrize("mul", [3, 16])
def test_elementwise(mul):
    RadialProblem.random(elementwise_plan(mul), random_graph(5, 40), 9).check_everywhere()


# 16 edges is the least that a block holds, 96 the most; then a receiver is met in parts.
@pytest.mark.parametrize("num_edges", [15, 16, 17, 95, 96, 97, 192, 193])
def test_receivers_as_long_as_a_block(num_edges):
    plan = channelwise_plan("16x0e", "1x0e+1x1o", 1, unweighted=1)
    RadialProblem.random(plan, star(num_edges), 7).check_everywhere()


@pytest.mark.parametrize("plan", [CHANNELS, ROWS, dense_plan(3, 2, 5)], ids=["channels", "rows", "dense"])
@pytest.mark.parametrize("edges", [random_graph(5, 23), star(13)], ids=["random", "star"])
def test_windows_of_edges(plan, edges):
    """On a GPU weights exist for a window of edges; here of one and of several."""
    if not emulation.enabled():
        pytest.skip("windows are those of the kernels for GPUs: pytest --emulated")
    for rows in (1, 5):
        with emulation.workspace(4 * rows * plan.weight_numel * 8):
            RadialProblem.random(plan, edges, 3).check_everywhere()


def as_convolution(problem):
    """What the operator must give, from a convolution with weights that exist whole."""
    edges = Graph(*map(torch.from_numpy, problem.graph[:2]), problem.graph.num_nodes)
    leaves = [operand.clone().requires_grad_() for operand in problem.operands]
    grad = problem.grad.clone().requires_grad_()
    x, y, hidden, matrix = leaves
    out = ops.convolution(x, y, hidden @ matrix, edges, problem.plan)
    first = torch.autograd.grad(out, leaves, grad, create_graph=True)
    second = torch.autograd.grad(first, [grad, *leaves], problem.tangents)
    return [result.detach() for result in (out, *first, *second)]


@pytest.mark.parametrize(
    "plan", [wide_plan(129), wide_plan(2), dense_plan(5, 3, 33)], ids=["channels", "rows", "dense"]
)
@pytest.mark.parametrize(
    "edges",
    [
        star(sizes.edges(1000)),
        random_graph(1200, sizes.edges(3000)),
        random_graph(40, sizes.edges(1400)),
    ],
    ids=["star", "sparse", "dense"],
)
def test_graphs_of_many_blocks(edges, plan):
    problem = RadialProblem.random(plan, edges, 33)
    for dtype in (torch.float32, torch.float64):
        for _ in instruction_sets():
            at = problem.to(dtype)
            with poisoned_memory():
                results = at.results()
            for name, found, expected in zip(at.names, results, as_convolution(at), strict=True):
                assert relative_error(found, expected) < {4: 2e-5, 8: 4e-14}[dtype.itemsize], name


# How operands lie in memory


@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(3, "ir_mul"), plan_of_mode("uuw")], ids=str)
def test_operands_that_are_not_contiguous(plan):
    problem = RadialProblem.random(plan, random_graph(4, 9), 7, dtype=torch.float32)
    for _ in instruction_sets():
        expected = problem.results()
        for i in range(9):
            given = [*problem.operands, problem.grad, *problem.tangents]
            for name, view in views(given[i]):
                moved = [*given[:i], view, *given[i + 1 :]]
                other = replace(problem, operands=tuple(moved[:4]), grad=moved[4], tangents=tuple(moved[5:]))
                assert same_bits(other.results(), expected), (i, name)


@pytest.mark.parametrize("plan", [CHANNELS, ROWS], ids=kernel)
def test_rows_that_repeat(plan):
    problem = RadialProblem.random(plan, random_graph(5, 9), 7)
    everything = [broadcast(t) for t in (*problem.operands, problem.grad, *problem.tangents)]
    replace(
        problem, operands=tuple(everything[:4]), grad=everything[4], tangents=tuple(everything[5:])
    ).check_everywhere()


def test_operands_are_left_alone():
    problem = RadialProblem.random(CHANNELS, random_graph(5, 9), 7)
    given = (*problem.operands, problem.grad, *problem.tangents, problem.order)
    before = tuple(t.clone() for t in given)
    problem.results()
    assert same_bits(given, before)


# What is asked for


@pytest.mark.parametrize("plan", [CHANNELS, wide_plan(32, "ir_mul"), ROWS], ids=str)
@pytest.mark.parametrize("edges", [random_graph(5, 21), star(120)], ids=["random", "star"])
def test_needs(plan, edges):
    problem = RadialProblem.random(plan, edges, 7)
    with poisoned_memory():
        every = (problem.backward(), problem.double_backward())
        for call, count, all_of_it in zip((problem.backward, problem.double_backward), (4, 5), every):
            for needs in range(2**count):
                for i, (some, whole) in enumerate(zip(call(needs), all_of_it, strict=True)):
                    if needs >> i & 1:
                        assert same_bits((some,), (whole,)), (needs, i)
                    else:
                        assert some.shape == (0,) and some.dtype == whole.dtype


@pytest.mark.parametrize("plan", [CHANNELS, ROWS], ids=kernel)
@pytest.mark.parametrize("given_bits", range(16))
def test_tangents_that_are_not_given(plan, given_bits):
    problem = RadialProblem.random(plan, random_graph(4, 9), 5)
    tangents = tuple(t if given_bits >> i & 1 else None for i, t in enumerate(problem.tangents))
    some = replace(problem, tangents=tangents)
    some.check_everywhere()
    with poisoned_memory():
        every = some.double_backward()
        for i in range(5):
            alone = some.double_backward(1 << i)[i]
            assert np.array_equal(alone.numpy(), every[i].numpy()), i  # but for signs of zeros


@pytest.mark.skipif(not emulation.enabled(), reason="about the kernels of GPUs: pytest --emulated")
@pytest.mark.parametrize("given_bits", range(4))
def test_needs_of_the_first_derivative_in_the_second(given_bits):
    """Its gradient of the weights costs a pass: made only where the tangent of one factor meets the gradient
    of the other."""
    problem = RadialProblem.random(CHANNELS, random_graph(4, 9), 5)
    tangents = (None, None, *(t if given_bits >> i & 1 else None for i, t in enumerate(problem.tangents[2:])))

    def taken(needs, tangents):
        """Tensors that are neither results of products nor others than without tangents."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            replace(problem, tangents=tangents).double_backward(needs)
        names = [event.name for event in profile.events()]
        return names.count("aten::new_empty") - names.count("aten::mm")

    problem.double_backward()  # sorts the edges
    for factors in range(4):
        crossed = bool((factors & 1 and given_bits & 2) or (factors & 2 and given_bits & 1))
        needs = factors << 3
        assert taken(needs, tangents) - taken(needs, (None,) * 4) == crossed, needs


# Laws


@settings(max_examples=20, derandomize=True)
@given(random_plans(max_terms=20_000), random_graphs(edges=(1, 7, 40)), st.integers(0, 2**20))
@example(wide_plan(128), random_graph(20, 300), 0)
def test_one_form_of_five_operands(plan, edges, seed):
    """<g, out> = <x, grad_x> = <y, grad_y> = <hidden, grad_hidden> = <matrix, grad_matrix>, the last two for
    the weighted paths alone."""
    problem = RadialProblem.random(plan, edges, 13, seed=seed)
    weighted = replace(
        problem, plan=replace(plan, paths=tuple(path for path in plan.paths if path.has_weight))
    )
    for _ in instruction_sets():
        for case, count in ((problem, 3), (weighted, 5)):
            given = (case.grad, *case.operands)[:count]
            gradients = (case.forward(), *case.backward())[:count]
            products = [float((a * b).sum()) for a, b in zip(given, gradients, strict=True)]
            size = max(float((a * b).abs().sum()) for a, b in zip(given, gradients, strict=True))
            assert max(products) - min(products) <= 1e-13 * size


# The same bits, always

# Weights of emulated kernels are a product of torch's, whose bits depend on its threads.
THREADS = (1, 1) if emulation.enabled() else (1, 2, 4, 1)


@pytest.fixture(params=["channels", "rows", "dense", "waves", "star"])
def large(request):
    plan = {"rows": wide_plan(2), "dense": dense_plan(3, 2, 9), "waves": wide_plan(128)}.get(
        request.param, wide_plan(32)
    )
    many = sizes.edges(3000)
    edges = star(many // 2) if request.param == "star" else random_graph(300, many)
    if request.param != "star":
        edges.receivers[: many // 6] = 7
    # sums of the matrix's gradient in several waves
    return RadialProblem.random(plan, edges, 257 if request.param == "waves" else 7, dtype=torch.float32)


def test_same_bits_on_every_run_and_for_any_number_of_threads(large):
    for _ in instruction_sets():
        torch.set_num_threads(1)
        expected = large.results()
        for threads in THREADS:
            torch.set_num_threads(threads)
            assert same_bits(large.results(), expected), threads


def test_same_bits_in_concurrent_threads(large):
    torch.set_num_threads(2)
    expected = large.results()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for results in pool.map(RadialProblem.results, [large] * 4):
            assert same_bits(results, expected)


# Nodes whose scalars are the same bits


def scalar_plan(mul, layout="mul_ir", others=0):
    """Scalars with harmonics: a block of y twice, one not at all, results in another order, one that nothing
    reaches; `others` more channels in a block of their own."""
    blocks = f"{mul}x0e+{others}x0o" if others else f"{mul}x0e"
    paths = [
        Path(0, 2, 0, "uvu", True, 0.5),
        Path(0, 0, 1, "uvu", True, -1.5),
        Path(0, 1, 3, "uvu", True, 1.25),
        Path(0, 2, 4, "uvu", True, 2.0),
        Path(0, 2, 0, "uvu", True, 0.75),
    ]
    out = f"{mul}x2e+{mul}x0e+5x1e+{mul}x1o+{mul}x2e"
    if others:
        paths.append(Path(1, 1, 5, "uvu", True, -0.5))
        out += f"+{others}x1e"
    return ProductPlan(blocks, "1x0e+1x1o+1x2e+1x3o", out, tuple(paths), layout)


def of_kinds(problem, kinds):
    """The same with x of node n that of node n mod `kinds`."""
    x = problem.operands[0]
    return replace(problem, operands=(x[torch.arange(len(x)) % kinds], *problem.operands[1:]))


def with_other_nodes(problem):
    """The same and twenty nodes without edges, each of a kind of its own."""
    x, *rest = problem.operands
    more = torch.randn(20, x.shape[1], dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    grad = torch.cat([problem.grad, problem.grad.new_ones(20, problem.grad.shape[1])])
    tangents = (torch.cat([problem.tangents[0], more]), *problem.tangents[1:])
    edges = problem.graph._replace(num_nodes=len(x) + 20)
    operands = (torch.cat([x, more]), *rest)
    return replace(problem, operands=operands, grad=grad, tangents=tangents, graph=edges)


@layouts
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mul, others, kinds", [(16, 0, 1), (17, 0, 3), (33, 2, 2), (129, 17, 1), (2, 1, 1)])
def test_nodes_in_common(mul, others, kinds, size, layout):
    problem = RadialProblem.random(
        scalar_plan(mul, layout, others), random_graph(6, sizes.edges(500)), size, seed=mul
    )
    of_kinds(problem, kinds).check_everywhere()


@pytest.mark.parametrize(
    "edges",
    [
        star(sizes.edges(1000)),
        random_graph(60, sizes.edges(6000)),
        random_graph(300, sizes.edges(3000)),
    ],
)
@pytest.mark.parametrize("kinds", [1, 5, 40])
def test_nodes_in_common_of_many_blocks(edges, kinds):
    problem = of_kinds(RadialProblem.random(scalar_plan(32), edges, 64, dtype=torch.float32), kinds)
    for _ in instruction_sets():
        with poisoned_memory():
            results = problem.results()
        expected = as_convolution(problem)
        for name, found, other in zip(problem.names, results, expected, strict=True):
            assert relative_error(found, other) < 2e-5, name


@pytest.mark.not_emulated("only the CPU's kernels take the density")
@pytest.mark.parametrize("kinds", [1, 3])
def test_nodes_in_common_take_the_density_of_neighbours(kinds):
    """Its sums have another order, so other bits, of the results that it gives and of no others."""
    problem = of_kinds(RadialProblem.random(scalar_plan(32), random_graph(20, 2000), 64), kinds)
    other = with_other_nodes(problem)
    for _ in instruction_sets():
        found = (problem.forward(), *problem.backward())
        expected = (other.forward(), *other.backward())
        by_density = dict(zip(problem.names, (True, False, True, True, False), strict=False))
        for name, left, right in zip(problem.names, found, expected, strict=False):
            right = right[: len(left)]
            assert relative_error(left, right) < 1e-14, name
            assert torch.equal(left, right) != by_density[name], name


def test_nodes_in_common_have_the_same_bits_whatever_is_asked_for():
    problem = of_kinds(RadialProblem.random(scalar_plan(17), random_graph(5, sizes.edges(300)), 7), 2)
    with poisoned_memory():
        every = problem.backward()
        for needs in range(16):
            for i, (some, whole) in enumerate(zip(problem.backward(needs), every, strict=True)):
                assert same_bits((some,), (whole,)) if needs >> i & 1 else some.shape == (0,), (needs, i)


def test_nodes_in_common_have_the_same_bits_for_any_number_of_threads():
    problem = of_kinds(
        RadialProblem.random(
            scalar_plan(32), random_graph(300, sizes.edges(20_000)), 33, dtype=torch.float32
        ),
        2,
    )
    for _ in instruction_sets():
        torch.set_num_threads(1)
        expected = problem.results()
        for threads in THREADS[1:3]:
            torch.set_num_threads(threads)
            assert same_bits(problem.results(), expected), threads


def test_operands_of_nodes_in_common_that_are_not_contiguous():
    problem = of_kinds(RadialProblem.random(scalar_plan(17), random_graph(4, sizes.edges(200)), 7), 2)
    for _ in instruction_sets():
        expected = (problem.forward(), *problem.backward())
        for i in range(5):
            given = [*problem.operands, problem.grad]
            for name, view in views(given[i]):
                moved = [*given[:i], view, *given[i + 1 :]]
                other = replace(problem, operands=tuple(moved[:4]), grad=moved[4])
                assert same_bits((other.forward(), *other.backward()), expected), (i, name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("operand", [0, 2, 3])
def test_not_finite_values_of_nodes_in_common(operand, bad):
    """What one kind of node, one edge or the matrix spoils is what it reaches, as for any other nodes."""
    plan = scalar_plan(16)
    problem = of_kinds(RadialProblem.random(plan, random_graph(9, sizes.edges(600)), 5), 3)
    given = [operand.clone() for operand in problem.operands]
    where = (torch.arange(9) % 3 == 1) if operand == 0 else slice(4, 5)
    given[operand][where] = bad
    if operand == 3:
        given[0] *= 1e10  # 1e300 times this is not finite
    at = replace(problem, operands=tuple(given))
    other = with_other_nodes(at)
    for _ in instruction_sets():
        with np.errstate(all="ignore"):
            pairs = zip((at.forward(), *at.backward()), (other.forward(), *other.backward()), strict=True)
        for left, right in pairs:
            assert torch.equal(left.isfinite(), right[: len(left)].isfinite())


# Values that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("plan", [CHANNELS, ROWS], ids=kernel)
def test_not_finite_values_stay_with_their_edges(plan, bad):
    """A spoilt edge reaches its receiver, its sender, the gradient of the matrix, and nothing else."""
    problem = RadialProblem.random(plan, random_graph(6, 25), 7)
    edge = 11
    sender, receiver = problem.graph.senders[edge], problem.graph.receivers[edge]
    hidden = problem.operands[2].clone()
    hidden[edge] = bad
    other = replace(problem, operands=(*problem.operands[:2], hidden, problem.operands[3]))
    for _ in instruction_sets():
        out, (grad_x, grad_y, grad_hidden, _) = other.forward(), other.backward()
        assert not out[receiver].isfinite().all()
        spoilt = ((out, receiver), (grad_x, sender), (grad_y, edge))
        for result, row in (*spoilt, (grad_hidden, -1)):
            assert result[torch.arange(len(result)) != row].isfinite().all()


# Bad input


class TestMessages:
    edges = Graph(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]), 2)
    plan = wide_plan(2)

    def operands(self, **changes):
        given = {
            "x": torch.zeros(2, 8),
            "y": torch.zeros(3, 9),
            "hidden": torch.zeros(3, 4),
            "matrix": torch.zeros(4, 10),
            "graph": self.edges,
        }
        return given | changes

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"x": torch.zeros(3, 8)}, "x must have shape (num_nodes, 8) = (2, 8), got (3, 8)"),
            ({"y": torch.zeros(3, 8)}, "y must have shape (num_edges, 9) = (3, 9), got (3, 8)"),
            ({"hidden": torch.zeros(2, 4)}, "hidden must have shape (num_edges, H) = (3, 4), got (2, 4)"),
            ({"hidden": torch.zeros(4)}, "hidden must have shape (num_edges, H) = (3, H), got (4,)"),
            ({"matrix": torch.zeros(4, 9)}, "matrix must have shape (H, 10) = (4, 10), got (4, 9)"),
            ({"matrix": torch.zeros(5, 10)}, "matrix must have shape (H, 10) = (4, 10), got (5, 10)"),
            (
                {"matrix": torch.zeros(4, 10, device="meta")},
                "matrix must be on the device of x, cpu, got meta",
            ),
        ],
    )
    def test_values(self, changes, message):
        with pytest.raises(ValueError) as caught:
            ops.radial_convolution(**self.operands(**changes), plan=self.plan)
        assert str(caught.value) == f"radial_convolution: {message}"

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"graph": None}, "graph must be a clebsch.Graph, got NoneType"),
            ({"hidden": None}, "hidden must be a tensor, got NoneType"),
            ({"x": torch.zeros(2, 8).half()}, "x must be float32 or float64, got float16"),
            (
                {"matrix": torch.zeros(4, 10).double()},
                "matrix must have the dtype of x, float32, got float64",
            ),
        ],
    )
    def test_types(self, changes, message):
        with pytest.raises(TypeError) as caught:
            ops.radial_convolution(**self.operands(**changes), plan=self.plan)
        assert str(caught.value) == f"radial_convolution: {message}"

    @pytest.mark.parametrize(
        "name, value, message",
        [
            ("hidden", torch.zeros(2, 4), "hidden must have 3 rows, got 2"),
            ("hidden", torch.zeros(4), "hidden must have 2 dimensions, got 1"),
            ("matrix", torch.zeros(3, 10), "matrix must have 4 rows, got 3"),
            ("matrix", torch.zeros(4, 11), "matrix must have 10 columns, got 11"),
            ("matrix", torch.zeros(4, 10).double(), "matrix must have the dtype of x"),
            ("order", torch.zeros(7), "order must come from graph_order with 3 edges and 2 nodes"),
        ],
    )
    def test_operators_check_for_themselves(self, name, value, message):
        given = self.operands()
        given["order"] = given.pop("graph").order
        given[name] = value
        operators = torch.ops.clebsch
        grad = torch.zeros(2, self.plan.irreps_out.dim)
        for call in (
            lambda: operators.radial_convolution(**given, plan=str(self.plan)),
            lambda: operators.radial_convolution_backward(grad, **given, plan=str(self.plan), needs=15),
        ):
            with pytest.raises((ValueError, RuntimeError)) as caught:
                call()
            assert f"radial_convolution: {message}" in str(caught.value)

    @pytest.mark.parametrize("i, name", list(enumerate(["ax", "ay", "ahidden", "amatrix"])))
    def test_tangents_have_the_shape_of_their_operands(self, i, name):
        problem = RadialProblem.random(self.plan, UNSYMMETRIC, 4)
        tangents = list(problem.tangents)
        tangents[i] = tangents[i][1:]
        with pytest.raises((ValueError, RuntimeError), match=f"{name} must have the shape of its operand"):
            replace(problem, tangents=tuple(tangents)).double_backward()
