"""Numbers of 16 bits: kernels for GPUs compute in float32 and round each result once; others refuse them.

The kernels run on the emulator, ``pytest --emulated``, or are Triton's, ``pytest --interpreted``.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import emulation
import interpretation
import sizes
from another_device import pretend_built
from clebsch import ops, reference
from clebsch.algebra.plan import LAYOUTS, MODES, ProductPlan
from clebsch.testing import RandomGraph, tolerance
from contraction_calls import Problem as ContractionProblem
from product_calls import (
    EdgeProblem,
    Problem,
    RadialProblem,
    channelwise_plan,
    dense_plan,
    graph,
    instruction_sets,
    mixed_plan,
    moved,
    plan_of_mode,
    poisoned_memory,
    same_bits,
    wide_plan,
)
from test_spherical_harmonics import random_problem, results

DTYPES = (torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
for_gpus = pytest.mark.skipif(
    not (emulation.enabled() or interpretation.enabled()),
    reason="kernels for GPUs: pytest --emulated or --interpreted",
)
emulated = pytest.mark.skipif(not emulation.enabled(), reason="only on the emulator: pytest --emulated")
MANY = sizes.edges(7)
GRAPH = graph([0, 3, 1, 1, 4, 0, 0][:MANY], [1, 1, 3, 0, 1, 1, 4][:MANY], 6)
NO_EDGES = graph([], [], 3)
DENSE = plan_of_mode("uvw") if interpretation.enabled() else dense_plan(2, 1, 2)


def assert_rounded_once(label, actual, expected, bound, dtype):
    """Within `bound`, that of float32, of what is expected, and then the nearest number that dtype has."""
    assert actual.dtype == dtype and actual.shape == expected.shape, label
    half_a_place = torch.finfo(dtype).eps / 2
    smallest = torch.finfo(dtype).smallest_normal * half_a_place
    allowed = bound + half_a_place * (np.abs(expected) + bound) + smallest
    error = np.abs(actual.double().numpy() - expected)
    assert (error <= allowed).all(), f"{label}: {np.nanmax(error / allowed)} of what is allowed"


def check_product(problem):
    """All results of a problem in 16 bits, on poisoned memory and in every order of threads."""
    for order in instruction_sets():
        with poisoned_memory():
            found = problem.results()
        for name, actual, (expected, magnitude, terms) in zip(
            problem.names, found, problem.expected, strict=True
        ):
            bound = tolerance(magnitude, terms, torch.float32)
            assert_rounded_once(f"{name} of {problem.plan}, {order}", actual, expected, bound, problem.dtype)


def random_product(plan, rows, dtype, **more):
    return Problem.random(plan, rows, dtype=torch.float32, **more).to(dtype)


PLANS = {
    "narrow": wide_plan(5),
    "four channels a thread": wide_plan(66, "ir_mul"),
    "two tiles": wide_plan(132),
    "high degrees": channelwise_plan("3x2e+5x4e", "1x4e+1x1o", 5, unweighted=1),
    "high degrees, four channels a thread": channelwise_plan("65x1o+67x4e", "1x3o", 4),
    "mixed": mixed_plan(3),
    "zero multiplicities": channelwise_plan("64x1o+0x2e", "1x0e+1x1o", 1),
}


@for_gpus
@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [3, GRAPH], ids=["rows", "graph"])
@pytest.mark.parametrize("name", PLANS)
def test_products(name, rows, shared, dtype):
    check_product(random_product(PLANS[name], rows, dtype, shared=shared))


@for_gpus
@dtypes
@pytest.mark.parametrize("rows", [2, GRAPH], ids=["rows", "graph"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, rows, dtype):
    layout = LAYOUTS[MODES.index(mode) % 2]
    check_product(random_product(plan_of_mode(mode, layout), rows, dtype, shared=rows is GRAPH))


@emulated
@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_edge_products(name, shared, dtype):
    check_product(EdgeProblem.random(PLANS[name], GRAPH, shared=shared, dtype=torch.float32).to(dtype))


@emulated
@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", [wide_plan(3), DENSE], ids=["channels", "rows"])
def test_sums_of_several_windows(plan, shared, dtype):
    """Sums go on in float32 from window to window."""
    edges = np.arange(150)
    graph = RandomGraph(edges % 7, edges // 40, 7)
    with emulation.workspace(3000):
        check_product(random_product(plan, graph, dtype, shared=shared))
        check_product(random_product(plan, 70, dtype, shared=shared))
        check_product(EdgeProblem.random(plan, graph, shared=shared, dtype=torch.float32).to(dtype))


@for_gpus
@dtypes
@pytest.mark.parametrize("plan", [wide_plan(3), DENSE, ProductPlan("", "", "", ())], ids=str)
def test_next_to_nothing(plan, dtype):
    for rows in (0, NO_EDGES, 1):
        for shared in (False, True):
            check_product(random_product(plan, rows, dtype, shared=shared))


@for_gpus
@dtypes
@pytest.mark.parametrize("plan", [wide_plan(64), wide_plan(3, "ir_mul"), DENSE], ids=str)
def test_operands_that_are_not_contiguous(plan, dtype):
    problem = random_product(plan, GRAPH, dtype)
    expected = problem.results()
    for name, elsewhere in moved(problem.given):
        found = problem.with_given(elsewhere).results()
        assert same_bits(bits_of(found), bits_of(expected)), name


def bits_of(tensors):
    """numpy has no bfloat16."""
    return tuple(tensor.view(torch.int16) for tensor in tensors)


@for_gpus
@dtypes
@pytest.mark.parametrize("plan", [wide_plan(5), DENSE], ids=["channels", "rows"])
@pytest.mark.parametrize("rows", [3, GRAPH], ids=["rows", "graph"])
def test_what_is_not_wanted_or_not_given(rows, plan, dtype):
    problem = random_product(plan, rows, dtype)
    for function, count in ((problem.backward, 3), (problem.double_backward, 4)):
        whole = function()
        for needs in range(1 << count):
            with poisoned_memory():
                parts = function(needs)
            for i, (part, full) in enumerate(zip(parts, whole, strict=True)):
                if needs >> i & 1:
                    assert same_bits(bits_of([part]), bits_of([full]))
                else:
                    assert part.shape == (0,)
    for missing in range(3):
        tangents = [None if i == missing else t for i, t in enumerate(problem.tangents)]
        zeros = [torch.zeros_like(t) if i == missing else t for i, t in enumerate(problem.tangents)]
        given = problem.grad, *problem.operands, *problem.fixed, -1
        call = problem.operator("_double_backward")
        for a, b in zip(call(*tangents, *given), call(*zeros, *given), strict=True):
            assert torch.equal(a, b)


@for_gpus
@dtypes
def test_autograd_calls_the_operators(dtype):
    problem = random_product(wide_plan(5), GRAPH, dtype)
    grad, *leaves = (t.clone().requires_grad_() for t in (problem.grad, *problem.operands))
    out = torch.ops.clebsch.convolution(*leaves, *problem.fixed)
    first = torch.autograd.grad(out, leaves, grad, create_graph=True)
    second = torch.autograd.grad(first, [grad, *leaves], problem.tangents)
    found = [t.detach() for t in (out, *first, *second)]
    assert same_bits(bits_of(found), bits_of(problem.results()))


@for_gpus
@dtypes
def test_conversions(dtype):
    """Every number there is comes back as it was, and products are rounded as torch rounds them."""
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).reshape(-1, 128)
    plan = ProductPlan("128x0e", "1x0e", "128x0e", ((0, 0, 0, "uvu", False, 1.0),))
    for factor in (1.0, 1 / 3, -0.7, 1.5, 2.0**-9, 4096.0):
        y = torch.full((len(x), 1), factor, dtype=dtype)
        found = torch.ops.clebsch.tensor_product(x, y, x.new_empty(0), str(plan))
        expected = (x.float() * y.float()).to(dtype)
        numbers = ~expected.isnan()
        assert torch.equal(found[numbers], expected[numbers])  # 0 is -0: a sum begins at 0
        assert found[~numbers].isnan().all()


@for_gpus
@dtypes
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "ls", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [2, 0, 2, 1], [9], []], ids=str
)
def test_harmonics(ls, normalize, dtype):
    for rows in (0, 7, 130):
        points, grad, tangent = (t.to(dtype) for t in random_problem(ls, rows))
        points = points if normalize else points / points.norm(dim=1, keepdim=True).clamp_min(1)
        p, g, t = (tensor.double().numpy() for tensor in (points, grad, tangent))
        fixed = normalize, "component"
        for order in instruction_sets():
            with poisoned_memory():
                found = results(points, grad, tangent, ls, *fixed)
            expected = []
            for function, given in (
                (reference.spherical_harmonics, (ls, p)),
                (reference.spherical_harmonics_backward, (ls, g, p)),
                (reference.spherical_harmonics_double_backward, (ls, t, g, p)),
            ):
                triple = [
                    part if isinstance(part, tuple) else (part,)
                    for part in (
                        function(*given, *fixed),
                        reference.magnitude(function, *given, *fixed),
                        reference.term_counts(function, *given, *fixed),
                    )
                ]
                expected += zip(*triple, strict=True)
            for actual, (exact, magnitude, terms) in zip(found, expected, strict=True):
                bound = tolerance(magnitude, terms, torch.float32)
                assert_rounded_once(f"{ls}, {order}", actual, exact, bound, dtype)


CONTRACTIONS = [
    ContractionProblem("0e+1o+2e", "0e+1o", 3, channels=7),
    ContractionProblem("0e+1o", "0e+1o", 2, nodes=40, channels=5, species=7),
    ContractionProblem("0e+1o", "0e+1o", 3, nodes=9, channels=132, species=4),
    ContractionProblem("0e+1o", "0e+1o", 1, nodes=37, channels=36, species=2),
    ContractionProblem("0e+1o+2e+3o", "0e+1o", 3, nodes=2, channels=3),  # columns in work space
]


def check_contraction(long, dtype):
    stored = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in long.operands.items()
    }
    short, long = replace(long, dtype=dtype), replace(long, dtype=torch.float32)
    short.__dict__["operands"] = stored
    long.__dict__["operands"] = {
        name: value.float() if value.is_floating_point() else value for name, value in stored.items()
    }
    doubles = replace(long, dtype=torch.float64)
    doubles.__dict__["operands"] = {
        name: value.double() if value.is_floating_point() else value for name, value in stored.items()
    }
    expected, bounds = doubles.expected(), long.bounds()
    for order in instruction_sets():
        with poisoned_memory():
            found = short.results()
        for actual, exact, bound in zip(found, expected, bounds, strict=True):
            assert_rounded_once(f"{short}, {order}", actual, exact, bound, dtype)
    with poisoned_memory():
        for needs in range(8):
            for part, full in zip(short.double_backward(needs), found[3:], strict=True):
                assert part.shape == (0,) or same_bits(bits_of([part]), bits_of([full]))


@emulated
@dtypes
@pytest.mark.parametrize("long", CONTRACTIONS, ids=lambda p: f"{p.irreps}, {p.nodes}x{p.channels}")
def test_symmetric_contractions(long, dtype):
    check_contraction(long, dtype)


@emulated
@dtypes
def test_contractions_of_blocks_without_shared_memory(dtype):
    with emulation.shared_limit(1):
        check_contraction(CONTRACTIONS[0], dtype)


@emulated
@dtypes
def test_a_contraction_of_no_nodes(dtype):
    problem = ContractionProblem("0e+1o", "0e+1o", 2, nodes=0, channels=4, dtype=dtype)
    with poisoned_memory():
        found = problem.results()
    assert all(result.dtype == dtype and (result == 0).all() for result in found)
    assert [result.numel() > 0 for result in found] == [False, False, True, False, False, True]


# What takes float32 and float64 alone


@pytest.mark.about_the_cpu("what its kernels refuse")
@dtypes
def test_the_cpu_refuses(dtype):
    x, y, w = random_product(wide_plan(2), 3, dtype).operands
    with pytest.raises(ValueError, match=r"^tensor_product: x must be float32 or float64$"):
        torch.ops.clebsch.tensor_product(x, y, w, str(wide_plan(2)))
    with pytest.raises(ValueError, match=r"^spherical_harmonics: points must be float32 or float64$"):
        torch.ops.clebsch.spherical_harmonics(x[:, :3], [1], True, "norm")
    contraction = ContractionProblem("0e+1o", "0e", 1, dtype=dtype)
    with pytest.raises(ValueError, match=r"^symmetric_contraction: x must be float32 or float64$"):
        contraction.forward()


@dtypes
def test_other_operators_refuse(dtype):
    x = torch.ones(2, 3, dtype=dtype)
    with pytest.raises(ValueError, match=r"^silu: x must be float32 or float64$"):
        torch.ops.clebsch.silu(x)
    problem = RadialProblem.random(wide_plan(2), GRAPH, 3, dtype=torch.float32).to(dtype)
    with pytest.raises(ValueError, match=r"^radial_convolution: x must be float32 or float64$"):
        problem.forward()


@for_gpus
def test_other_types_are_refused():
    x, y, w = (operand.long() for operand in Problem.random(wide_plan(2), 3).operands)
    message = "^tensor_product: x must be float32, float64, float16 or bfloat16$"
    with pytest.raises(ValueError, match=message):
        torch.ops.clebsch.tensor_product(x, y, w, str(wide_plan(2)))


@dtypes
def test_on_a_gpu_the_same_nouns_take_them(dtype, monkeypatch):
    pretend_built(monkeypatch)
    with FakeTensorMode():
        x, y, w, points = (torch.empty(5, n, device="cuda", dtype=dtype) for n in (12, 9, 15, 3))
        assert ops.tensor_product(x, y, w, wide_plan(3)).dtype == dtype
        assert ops.spherical_harmonics(points, [0, 1], True, "norm").dtype == dtype
        with pytest.raises(TypeError, match=r"^silu: x must be float32 or float64, got "):
            ops.silu(x)
