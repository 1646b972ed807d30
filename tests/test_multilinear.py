"""Derivatives of the product operators to any order: finite differences, symmetry, third derivatives."""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck

from clebsch import Graph, o3, ops
from clebsch.ops import multilinear

PLAN = o3.TensorProduct(
    "2x0e+1x1o",
    "1x0e+2x1o",
    "1x1o+2x0e",
    [
        (1, 0, 0, "uvu", True),
        (0, 1, 0, "uvw", True),
        (1, 1, 1, "uvw", True, 0.5),
        (0, 0, 1, "uvu", False),
    ],
).plan
CHANNELWISE = o3.TensorProduct(
    "2x0e+2x1o",
    "1x0e+1x1o",
    "2x0e+2x1o+2x1e",
    [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", True)],
).plan
NUM_NODES, NUM_EDGES, SIZE = 4, 5, 3


def case(noun, plan, shared):
    """The operator as a function of its operands, and the operands."""
    graph = Graph(torch.tensor([0, 1, 1, 3, 3]), torch.tensor([1, 1, 0, 0, 1]), NUM_NODES)
    operator = getattr(ops, noun)
    fixed = (plan,) if noun == "tensor_product" else (graph, plan)

    def function(*operands):
        return operator(*operands, *fixed)

    generator = torch.Generator().manual_seed(1)
    x_rows = NUM_EDGES if noun == "tensor_product" else NUM_NODES
    weights = [(plan.weight_numel,) if shared else (NUM_EDGES, plan.weight_numel)]
    if noun == "radial_convolution":
        weights = [(NUM_EDGES, SIZE), (SIZE, plan.weight_numel)]
    shapes = [(x_rows, plan.irreps_in1.dim), (NUM_EDGES, plan.irreps_in2.dim), *weights]
    return function, [
        torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes
    ]


cases = pytest.mark.parametrize(
    "noun, plan, shared",
    [
        (noun, plan, shared)
        for noun in ("tensor_product", "convolution", "radial_convolution")
        for plan in (PLAN, CHANNELWISE)
        for shared in (False, True)
        if not (shared and noun == "radial_convolution")
    ],
    ids=lambda value: {PLAN: "mixed", CHANNELWISE: "channelwise", True: "shared", False: "per row"}.get(
        value, value
    ),
)


@cases
def test_first_and_second_derivatives(noun, plan, shared):
    function, operands = case(noun, plan, shared)
    assert gradcheck(function, operands, fast_mode=True)
    assert gradgradcheck(function, operands, fast_mode=True)


@cases
def test_derivatives_of_each_operand_alone(noun, plan, shared):
    function, operands = case(noun, plan, shared)
    for i in range(len(operands)):
        given = [operand.detach().requires_grad_(j == i) for j, operand in enumerate(operands)]
        assert gradcheck(function, given, fast_mode=True)
        # linear in each operand: the second derivative, by the cotangent aside, is zero
        out = function(*given)
        cotangent = torch.randn_like(out).requires_grad_()
        (first,) = grad(out, given[i], cotangent, create_graph=True)
        (by_cotangent,) = grad(first.sin().sum(), cotangent, create_graph=True)
        assert by_cotangent.shape == out.shape


@cases
def test_third_derivatives(noun, plan, shared):
    function, operands = case(noun, plan, shared)

    def twice(*given):
        first = grad(function(*given).pow(3).sum(), given, create_graph=True)
        return grad(sum(g.pow(2).sum() for g in first), given, create_graph=True)

    assert gradcheck(twice, operands, fast_mode=True)


@pytest.mark.parametrize("noun", ["tensor_product", "radial_convolution"])
def test_fourth_derivative(noun):
    function, operands = case(noun, PLAN, shared=False)

    def twice(*given):
        first = grad(function(*given).pow(3).sum(), given, create_graph=True)
        return grad(sum(g.pow(2).sum() for g in first), given, create_graph=True)

    assert gradgradcheck(twice, operands, fast_mode=True, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("noun", ["tensor_product", "convolution", "radial_convolution"])
def test_hessian_is_symmetric(noun):
    function, operands = case(noun, PLAN, shared=False)
    sizes = [operand.numel() for operand in operands]

    def scalar(flat):
        parts = [part.view_as(o) for part, o in zip(flat.split(sizes), operands, strict=True)]
        return function(*parts).sin().sum()

    flat = torch.cat([operand.detach().flatten() for operand in operands])
    hessian = torch.autograd.functional.hessian(scalar, flat)
    assert (hessian - hessian.T).norm() < 1e-13 * hessian.norm()


@pytest.mark.parametrize("noun", ["tensor_product", "convolution"])
@pytest.mark.parametrize("needs", range(8))
def test_only_what_is_needed_is_made(noun, needs):
    _, operands = case(noun, PLAN, shared=False)
    x, y, weight = (operand.detach() for operand in operands)
    graph = Graph(torch.tensor([0, 1, 1, 3, 3]), torch.tensor([1, 1, 0, 0, 1]), NUM_NODES)
    fixed = (graph.order, str(PLAN)) if noun == "convolution" else (str(PLAN),)
    operator = getattr(torch.ops.clebsch, f"{noun}_backward")
    out_rows = NUM_NODES if noun == "convolution" else NUM_EDGES
    cotangent = torch.randn(out_rows, PLAN.irreps_out.dim, dtype=torch.float64)
    every = operator(cotangent, x, y, weight, *fixed, 7)
    chosen = operator(cotangent, x, y, weight, *fixed, needs)
    for i, (some, all_of_it) in enumerate(zip(chosen, every, strict=True)):
        if needs >> i & 1:
            torch.testing.assert_close(some, all_of_it, rtol=1e-13, atol=1e-13)
        else:
            assert some.shape == (0,)


@pytest.mark.parametrize("noun", ["tensor_product", "convolution"])
def test_gradients_nobody_asks_for_are_not_made(noun, monkeypatch):
    function, operands = case(noun, CHANNELWISE, False)
    before = [operand.requires_grad_() * 1 for operand in operands]
    made = []
    backward = multilinear._Operators.backward
    monkeypatch.setattr(
        multilinear._Operators,
        "backward",
        lambda self, operands, fixed, needs: made.append(needs) or backward(self, operands, fixed, needs),
    )
    out = function(*before).square().sum()
    for wanted in (before[0], operands[1], operands[2]):
        grad(out, wanted, retain_graph=True)
    (first,) = grad(out, operands[0], create_graph=True)
    first.sum().backward()
    assert made[:4] == [1, 2, 4, 1]
    assert all(operand.grad is not None for operand in operands)


def test_forward_mode_is_refused_and_not_silently_zero():
    function, operands = case("tensor_product", PLAN, shared=False)
    given = tuple(operand.detach() for operand in operands)
    with pytest.raises(NotImplementedError, match="tensor_product: forward-mode derivatives"):
        torch.func.jvp(function, given, given)


@cases
def test_torch_func_is_refused_and_not_silently_zero(noun, plan, shared):
    """Torch has no transforms of registered derivatives; a call that passed autograd by would lose them."""
    function, operands = case(noun, plan, shared)
    given = tuple(operand.detach() for operand in operands)
    for recording in (torch.no_grad, torch.enable_grad):
        with recording(), pytest.raises(NotImplementedError, match=r" under torch\.func"):
            torch.func.grad(lambda *at: function(*at).square().sum(), argnums=tuple(range(len(given))))(
                *given
            )
