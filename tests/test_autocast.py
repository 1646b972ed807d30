"""Under autocast operators give the same bits, of the dtype of their operands, whether it is on where they
are called or where they are differentiated."""

import contextlib
import re
from pathlib import Path

import pytest
import torch

from clebsch import Graph, ops
from contraction_calls import Problem as ContractionProblem
from linear_calls import LinearProblem, mixing_plan, with_elements
from product_calls import dense_plan, same_bits, wide_plan

CSRC = Path(__file__).parents[1] / "csrc"
NODES, EDGES = 5, 23
PLANS = {"wide": wide_plan(8), "dense": dense_plan(3, 2, 5)}


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def product(operator, plan, rows, *weights, device):
    """`rows` of x and y; a call has a graph, unless they are the same."""
    ends = torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(0)).to(device)
    edges = () if rows[0] == rows[1] else (Graph(ends[0], ends[1], NODES),)
    x, y = numbers(rows[0], plan.irreps_in1.dim), numbers(rows[1], plan.irreps_in2.dim)
    return lambda *given: operator(*given, *edges, plan), (x, y, *weights)


def linear(present, device):
    plan = mixing_plan("4x0e+3x1o", "5x0e+2x1o")
    plan = plan if present is None else with_elements(plan, 3)
    problem = LinearProblem.random(plan, EDGES, (0,), present=present, dtype=torch.float32)
    index = None if present is None else problem.index.to(device)
    return lambda *given: ops.linear(*given, plan, problem.biased, index), problem.operands[:3]


def contraction(device):
    problem = ContractionProblem("1x0e+1x1o", "1x0e+1x1o", 3, dtype=torch.float32)
    index, *table = problem.constants
    index, operands = index.to(device), (problem.operands["x"], problem.operands["weight"])
    return lambda *given: ops.symmetric_contraction(*given, index, *table), operands


def calls(device="cpu"):
    """By name a function of tensors on a device that calls one operator, and tensors to be moved there."""
    for name, plan in PLANS.items():
        each, hidden = numbers(EDGES, plan.weight_numel), (numbers(EDGES, 6), numbers(6, plan.weight_numel))
        for noun, operator, rows, weights in (
            ("product", ops.tensor_product, (EDGES, EDGES), (each,)),
            ("shared", ops.tensor_product, (EDGES, EDGES), (numbers(plan.weight_numel),)),
            ("convolution", ops.convolution, (NODES, EDGES), (each,)),
            ("edges", ops.edge_product, (EDGES, NODES), (each,)),
            ("radial", ops.radial_convolution, (NODES, EDGES), hidden),
        ):
            yield f"{noun} {name}", product(operator, plan, rows, *weights, device=device)
    yield "linear", linear(None, device)
    yield "linear of elements", linear(3, device)
    yield "contraction", contraction(device)
    gate = tuple(numbers(EDGES, columns) for columns in (2, 5, 19))
    yield "gate", (lambda *given: ops.gate(*given, ((3, 2), (3, 5))), gate)
    yield "silu", (ops.silu, (numbers(EDGES),))
    points = (numbers(EDGES, 3),)
    yield "harmonics", (lambda x: ops.spherical_harmonics(x, [0, 1, 2, 3], True, "component"), points)


CALLS = dict(calls())
everywhere = pytest.mark.parametrize(
    "where",
    [("forward",), ("backward",), ("double backward",), ("forward", "backward", "double backward")],
    ids=", ".join,
)


def results(call, operands, where=(), device="cpu"):
    """The value, first and second derivatives; `where` says in which of these three steps autocast is on."""

    def step(name):
        return torch.autocast(device, torch.bfloat16) if name in where else contextlib.nullcontext()

    def made(*shape):
        return numbers(*shape).to(device)

    leaves = [operand.clone().to(device).requires_grad_() for operand in operands]
    with step("forward"):
        out = call(*leaves)
    grad = made(*out.shape).requires_grad_()
    with step("backward"):
        first = torch.autograd.grad(out, leaves, grad, create_graph=True, materialize_grads=True)
    with step("double backward"):
        tangents = [made(*each.shape) for each in first]
        second = torch.autograd.grad(
            first, [grad, *leaves], tangents, allow_unused=True, materialize_grads=True
        )
    return tuple(each.detach().cpu() for each in (out, *first, *second))


@everywhere
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits(name, where):
    expected, found = results(*CALLS[name]), results(*CALLS[name], where)
    assert {each.dtype for each in found} == {torch.float32}
    assert same_bits(found, expected)


def operations():
    """Those of torch that kernels call: the name with all overloads, or one of them."""
    known = set(torch._C._dispatch_get_all_op_names())
    for path in [*CSRC.glob("*.h"), *CSRC.glob("*.cpp"), *CSRC.glob("cuda/*.*")]:
        text = path.read_text()
        for name, overload in re.findall(r'torch_call_dispatcher\(\s*"([\w:]+)",\s*"(\w*)"', text):
            yield f"{name}.{overload}".rstrip(".")
        for name in re.findall(r"torch::stable::(\w+)\(", text):
            yield from (each for each in known if re.fullmatch(rf"aten::{name}(\..*)?", each))


def test_kernels_call_nothing_that_autocast_casts():
    """Autocast is on within kernels too, and what it gives would be read as numbers of another dtype."""
    found = set(operations())
    assert {"aten::mm.out", "aten::sort.stable", "aten::new_empty", "aten::contiguous"} <= found
    for name in found:
        for key in ("AutocastCPU", "AutocastCUDA"):
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, key), (name, key)
    for name in ("aten::mm", "aten::matmul"):  # what such a rule looks like
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCPU")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
