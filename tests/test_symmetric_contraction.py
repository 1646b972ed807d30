"""The operators of symmetric contractions against the reference, on every instruction set."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import emulation
from clebsch import ops, reference
from contraction_calls import Problem, assert_close
from product_calls import instruction_sets, poisoned_memory, same_bits, views

PROBLEMS = [
    Problem("0e+1o+2e+3o", "0e+1o", 3),
    Problem("0e+1o+2e", "0e+1o+2e", 3, channels=16),
    Problem("0e+1o", "0e+1o+2e", 4, channels=1),
    Problem("0e+0o+1e+1o", "1o+0o+0e+1e", 3, nodes=3, channels=37),
    Problem("0e+1o+2e+3o+4e", "4e+0e+1e", 2, channels=128, nodes=2),
    Problem("0e+1o+2e", "0e+0o+2o", 1, channels=33),
    Problem("0e", "0e", 4, channels=65),
    Problem("0e+1o", "0e+1o", 2, nodes=150, channels=5, species=7),
    Problem("0e+1o", "0e+1o", 2, nodes=1, channels=16, species=1),
    Problem("0e+1o", "0e+1o", 3, nodes=33, channels=132, species=4),  # four channels a thread of a GPU
    Problem("0e+1o", "0e+1o", 1, nodes=37, channels=36, species=2),  # and in their derivatives
    Problem("0e+1o", "0e+1o", 1, nodes=37, channels=34, species=2),  # two of float32
]
REPR = [f"{p.irreps}->{p.targets}, {p.correlation}, {p.nodes}x{p.channels}" for p in PROBLEMS]


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def check(problem):
    dtype = problem.dtype
    expected, bounds = problem.expected(), problem.bounds()
    for isa in instruction_sets():
        with poisoned_memory():
            results = problem.results()
        assert all(result.dtype == dtype for result in results)
        assert_close(results, expected, bounds, isa)


@dtypes
@pytest.mark.parametrize("problem", PROBLEMS, ids=REPR)
def test_equals_the_reference(problem, dtype):
    check(replace(problem, dtype=dtype))


@pytest.mark.skipif(not emulation.enabled(), reason="about the kernels of GPUs")
@dtypes
def test_blocks_without_shared_memory(dtype):
    """What belongs to a channel lies in work space, in each step."""
    with emulation.shared_limit(1):
        check(replace(PROBLEMS[3], dtype=dtype))


@pytest.mark.parametrize(("ax", "aw"), [(True, False), (False, True), (False, False)])
def test_a_tangent_that_is_absent_is_zero(ax, aw):
    problem = PROBLEMS[0]
    expected, bounds = problem.expected(ax, aw)[3:], problem.bounds(ax, aw)[3:]
    for isa in instruction_sets():
        with poisoned_memory():
            assert_close(problem.double_backward(ax=ax, aw=aw), expected, bounds, isa)


def test_what_is_not_wanted_is_empty_and_changes_nothing_else():
    problem = PROBLEMS[1]
    for function, count in ((problem.backward, 2), (problem.double_backward, 3)):
        whole = function()
        for needs in range(1 << count):
            with poisoned_memory():
                parts = function(needs)
            for i, (part, full) in enumerate(zip(parts, whole, strict=True)):
                assert same_bits([part], [full]) if needs >> i & 1 else part.shape == (0,)


def test_the_reference_is_its_own_derivative():
    """In a direction, by differences of the polynomials, exact to rounding for a step of 2^-20."""
    problem = replace(PROBLEMS[2], channels=2, nodes=2)
    o = {name: value.numpy() for name, value in problem.operands.items()}
    u, x, w, index = problem.u_matrices, o["x"], o["weight"], o["index"]
    h = 2.0**-20

    def slope(function):
        return (function(h) - function(-h)) / (2 * h)

    gx, gw = reference.symmetric_contraction_backward(o["grad"], u, x, w, index)
    along = slope(
        lambda t: (
            o["grad"] * reference.symmetric_contraction(u, x + t * o["ax"], w + t * o["aw"], index)
        ).sum()
    )
    assert np.isclose(along, (gx * o["ax"]).sum() + (gw * o["aw"]).sum(), rtol=1e-8)
    second = reference.symmetric_contraction_double_backward(o["ax"], o["aw"], o["grad"], u, x, w, index)
    rng = np.random.default_rng(1)
    dg, dx, dw = (rng.normal(size=operand.shape) for operand in (o["grad"], x, w))

    def gradient(t):
        parts = reference.symmetric_contraction_backward(o["grad"] + t * dg, u, x + t * dx, w + t * dw, index)
        return (parts[0] * o["ax"]).sum() + (parts[1] * o["aw"]).sum()

    assert np.isclose(
        slope(gradient), sum((a * b).sum() for a, b in zip(second, (dg, dx, dw), strict=True)), rtol=1e-8
    )


def test_the_reference_sums_by_hand():
    u = [np.arange(12.0).reshape(1, 2, 2, 3)]
    x, w = np.array([[[2.0, 3.0]]]), np.array([[[1.0], [10.0], [100.0]]])
    total = sum(
        u[0][0, i, j, k] * x[0, 0, i] * x[0, 0, j] * w[0, k, 0]
        for i in range(2)
        for j in range(2)
        for k in range(3)
    )
    assert reference.symmetric_contraction([u], x, w, [0]).tolist() == [[total]]


@pytest.mark.parametrize(
    "problem",
    [
        Problem("0e+1o", "0e+1o", 3, nodes=3, channels=2, species=2),
        Problem("0e+1o", "2e+0e", 4, nodes=2, channels=1, species=2),
        Problem("0e+1o+2e", "1o", 2, nodes=2, channels=2),
        Problem("0e+1o", "0e+1o", 1, nodes=2, channels=2),
    ],
    ids=["correlation 3", "correlation 4", "correlation 2", "correlation 1"],
)
def test_derivatives_to_second_order(problem):
    x, weight = (problem.operands[name].requires_grad_() for name in ("x", "weight"))

    def function(x, weight):
        return ops.symmetric_contraction(x, weight, *problem.constants)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))
    for constant in (x, weight):  # one of them alone
        constant.requires_grad_(False)
        assert torch.autograd.gradcheck(function, (x, weight))
        assert torch.autograd.gradgradcheck(function, (x, weight))
        constant.requires_grad_()


def test_third_derivatives_are_refused():
    problem = replace(PROBLEMS[1])
    x = problem.operands["x"].clone().requires_grad_()
    out = ops.symmetric_contraction(x, problem.operands["weight"], *problem.constants)
    (first,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
    message = "symmetric_contraction: derivatives are there to second order, got a request for third ones"
    with pytest.raises(NotImplementedError, match="^" + re.escape(message) + "$"):
        torch.autograd.grad(second.sum(), x)


def test_species_that_are_absent_have_no_gradient():
    problem = PROBLEMS[0]
    assert problem.species - 1 not in problem.operands["index"]
    with poisoned_memory():
        for gradient in (problem.backward()[1], problem.double_backward()[2]):
            assert (gradient[-1] == 0).all() and (gradient[0] != 0).any()


def test_weights_of_every_node():
    """As many species as nodes: the same numbers as weights of the species, gathered."""
    problem = PROBLEMS[0]
    o, (index, table, widths) = problem.operands, problem.constants
    of_nodes = o["weight"][index]
    every = torch.arange(problem.nodes)
    out = ops.symmetric_contraction(o["x"], of_nodes, every, table, widths)
    assert same_bits([out], [problem.forward()])
    backward = torch.ops.clebsch.symmetric_contraction_backward
    _, own = backward(o["grad"], o["x"], of_nodes, every, table, widths, 3)
    summed = torch.zeros_like(o["weight"]).index_add_(0, index, own)
    bound = problem.bounds()[2]
    assert (abs((summed - problem.backward()[1]).numpy()) <= bound).all()


def test_no_nodes_no_channels():
    for problem in (replace(PROBLEMS[0], nodes=0), replace(PROBLEMS[0], channels=0)):
        with poisoned_memory():
            out, grad_x, grad_weight, *second = problem.results()
        assert out.shape == (problem.nodes, problem.channels * 4)
        assert grad_x.shape == problem.operands["x"].shape
        assert (grad_weight == 0).all() and (second[2] == 0).all()


def test_any_number_of_threads_and_any_order_of_tasks():
    problem = Problem("0e+1o+2e", "0e+1o", 3, nodes=700, channels=20, species=5, dtype=torch.float32)
    expected = problem.results()
    for threads in (2, 4, 1):
        torch.set_num_threads(threads)
        assert same_bits(problem.results(), expected)


def test_operands_that_are_not_contiguous():
    problem = PROBLEMS[1]
    o, constants = problem.operands, problem.constants
    backward = torch.ops.clebsch.symmetric_contraction_backward
    expected = backward(o["grad"], o["x"], o["weight"], *constants, 3)
    for name in ("grad", "x", "weight"):
        for label, view in views(o[name]):
            given = {**o, name: view}
            found = backward(given["grad"], given["x"], given["weight"], *constants, 3)
            assert same_bits(found, expected), (name, label)
    index = torch.stack((o["index"], -1 + 0 * o["index"]), dim=1)[:, 0]
    assert same_bits(backward(o["grad"], o["x"], o["weight"], index, *constants[1:], 3), expected)


def test_opcheck():
    problem = replace(PROBLEMS[1], channels=3)
    o = problem.operands
    x, weight, grad, ax, aw = (o[name].requires_grad_() for name in ("x", "weight", "grad", "ax", "aw"))
    index, table, widths = problem.constants
    constants = index, table, list(widths)
    torch.library.opcheck(torch.ops.clebsch.symmetric_contraction, (x, weight, *constants))
    torch.library.opcheck(torch.ops.clebsch.symmetric_contraction_backward, (grad, x, weight, *constants, 3))
    # third derivatives are refused, and no check of theirs is meant
    detached = [operand.detach() for operand in (ax, aw, grad, x, weight)]
    torch.library.opcheck(torch.ops.clebsch.symmetric_contraction_double_backward, (*detached, *constants, 7))
    none = (None, *detached[1:], *constants, 5)
    torch.library.opcheck(torch.ops.clebsch.symmetric_contraction_double_backward, none)


def test_compiled():
    problem = PROBLEMS[1]
    x, weight = (problem.operands[name].clone().requires_grad_() for name in ("x", "weight"))

    def loss(x, weight):
        out = ops.symmetric_contraction(x, weight, *problem.constants)
        return out.square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(x, weight), (x, weight))
    found = torch.autograd.grad(compiled(x, weight), (x, weight))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def refusal(error, message, function, *arguments):
    with pytest.raises(error, match="^" + re.escape(f"symmetric_contraction: {message}") + "$"):
        function(*arguments)


def test_bad_operands():
    problem = PROBLEMS[1]
    o, (index, table, widths) = problem.operands, problem.constants
    x, weight = o["x"], o["weight"]
    outside = index.clone()
    outside[3] = 3
    bad = [
        (TypeError, "x must be a tensor, got list", ([1.0], weight, index)),
        (TypeError, "x must be float32 or float64, got int64", (x.long(), weight, index)),
        (TypeError, "weight must have the dtype of x, float64, got float32", (x, weight.float(), index)),
        (TypeError, "index must be a tensor, got list", (x, weight, [0])),
        (TypeError, "index must be int64, got int32", (x, weight, index.int())),
        (
            ValueError,
            "x must have shape (nodes, channels, components), got (5, 16)",
            (x[..., 0], weight, index),
        ),
        (ValueError, "x must have shape (nodes, channels, 9)", (x[..., 1:], weight, index)),
        (
            ValueError,
            f"weight must have shape (species, paths, 16), got (3, {weight.shape[1]}, 15)",
            (x, weight[..., 1:], index),
        ),
        (
            ValueError,
            f"weight must have shape (3, {weight.shape[1]}, 16)",
            (x, weight[:, 1:], index),
        ),
        (ValueError, "index must have shape (5,), got (4,)", (x, weight, index[1:])),
        (ValueError, "index must lie in [0, 3), got 3 for node 3", (x, weight, outside)),
        (ValueError, "index must lie in [0, 3), got -3 for node 3", (x, weight, outside * -1)),
        (ValueError, "weight must be on the device of x, cpu, got meta", (x, weight.to("meta"), index)),
        (ValueError, "index must be on the device of x, cpu, got meta", (x, weight, index.to("meta"))),
    ]
    refusal(
        ValueError,
        "table must be on the CPU, got meta",
        ops.symmetric_contraction,
        *(x, weight, index, table.to("meta"), widths),
    )
    for error, message, arguments in bad:
        if message.endswith("-3 for node 3"):
            arguments = (x, weight, torch.tensor([0, 0, 0, -3, 0]))
        refusal(error, message, ops.symmetric_contraction, *arguments, table, widths)


def test_a_refused_index_writes_nothing():
    problem = PROBLEMS[1]
    o, (index, table, widths) = problem.operands, problem.constants
    outside = index.clone()
    outside[-1] = 99
    for needs in (1, 2, 3):
        refusal(
            ValueError,
            "index must lie in [0, 3), got 99 for node 4",
            torch.ops.clebsch.symmetric_contraction_backward,
            *(o["grad"], o["x"], o["weight"], outside, table, widths, needs),
        )


def test_bad_tables():
    problem = PROBLEMS[1]
    o, (index, table, widths) = problem.operands, problem.constants
    raw = torch.ops.clebsch.symmetric_contraction
    message = "table must be that of a ContractionTable"
    for bad in (table[:5], table[:-1], torch.cat((table, table[:1])), torch.zeros(0, dtype=torch.int64)):
        refusal(ValueError, message, raw, o["x"], o["weight"], index, bad, widths)
    integers = len(table) - 2 * int(table[7]) - int(table[9])
    for place in range(integers):  # of every count and index: far outside, and just outside
        for value in (-1, 1 << 40, (1 << 31) - 1):
            bad = table.clone()
            bad[place] = value
            with pytest.raises(ValueError, match=r"^symmetric_contraction: "):
                raw(o["x"], o["weight"], index, bad, widths)
    refusal(
        ValueError, "table must be a vector of int64", raw, o["x"], o["weight"], index, table.int(), widths
    )
    refusal(ValueError, "widths must be those of table", raw, o["x"], o["weight"], index, table, [1, 3])


def test_forward_mode_is_refused():
    problem = PROBLEMS[1]
    o = problem.operands
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(o["x"], o["ax"])
        with pytest.raises(NotImplementedError, match=r"^symmetric_contraction: "):
            ops.symmetric_contraction(x, o["weight"], *problem.constants)


@pytest.mark.parametrize("widths", [[5, -1], [3, 1], [4], [2**63 - 1, 1, 2**63 - 1, 5]], ids=str)
def test_widths_are_those_of_the_table(widths):
    problem = Problem("0e+1o", "0e+1o", 2)
    given = problem.operands
    operands = given["x"], given["weight"], given["index"], problem.table.tensor
    with pytest.raises(ValueError, match="symmetric_contraction: widths must be those of table"):
        torch.ops.clebsch.symmetric_contraction(*operands, widths)


def test_a_table_of_more_components_than_kernels_count():
    """Words that are consistent, for an output of 2^31 numbers."""
    targets, width = 33_000, 65_535
    table = torch.tensor([1, 1, 0, 0, 0, targets, 0, 0, 0, 0, *[width] * targets, *[0] * targets, 0, 0])
    operands = torch.ones(1, 1, 1), torch.empty(1, 0, 1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="symmetric_contraction: table must be that of a ContractionTable"):
        torch.ops.clebsch.symmetric_contraction(*operands, table, [width] * targets)
