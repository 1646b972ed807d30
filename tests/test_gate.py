"""The operators of gates against the reference, on every instruction set."""

import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clebsch import nn, ops, reference
from product_calls import instruction_sets, poisoned_memory, same_bits

blocks = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 5, 7, 16, 17, 33]), st.sampled_from([1, 3, 5, 7, 9, 11, 13, 15, 17])),
    max_size=4,
)


def operands(copies, rows, scalars, dtype=torch.float64):
    """Scalars, gates, gated and a cotangent, with numbers that float32 holds."""
    generator = torch.Generator().manual_seed(3)
    gates, gated = sum(mul for mul, _ in copies), sum(mul * width for mul, width in copies)
    return [
        torch.randn(rows, columns, generator=generator).to(dtype)
        for columns in (scalars, gates, gated, scalars + gated)
    ]


def widths(copies):
    return tuple(mul for mul, _ in copies), tuple(width for _, width in copies)


def results(copies, scalars, gates, gated, grad):
    arguments = (gates, gated, *widths(copies))
    return (
        torch.ops.clebsch.gate(scalars, *arguments),
        *torch.ops.clebsch.gate_backward(grad, *arguments),
    )


@settings(max_examples=40, derandomize=True)
@given(blocks, st.sampled_from([0, 1, 5, 7]), st.sampled_from([0, 1, 6, 19]))
# Many copies, rows that begin at multiples of 16 bytes, and rows that do not.
@example([(66, 3), (130, 1)], 5, 0)
@example([(128, 1), (71, 5)], 5, 132)
@example([(96, 3), (64, 9)], 3, 67)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(dtype, copies, rows, scalars):
    given = operands(copies, rows, scalars, dtype)
    s, a, x, g = (operand.double().numpy() for operand in given)
    expected = (reference.gate(s, a, x, copies), *reference.gate_backward(g, a, x, copies))
    # A gate's gradient sums as many products as its irrep has components; all else is rounded once.
    size = reference.gate_backward(abs(g), a, abs(x), copies)[0]
    terms = np.repeat([width for _, width in copies] or [0], [mul for mul, _ in copies] or [0])
    eps = torch.finfo(dtype).eps
    bounds = (eps / 2 * abs(expected[0]), eps * (terms + 1) * size, eps / 2 * abs(expected[2]))
    for isa in instruction_sets():
        with poisoned_memory():
            found = results(copies, *given)
        for value, exact, bound in zip(found, expected, bounds, strict=True):
            assert value.dtype == dtype and value.shape == exact.shape
            assert (abs(value.double().numpy() - exact) <= bound).all(), isa


def test_the_reference_is_the_gradient():
    copies = [(2, 3), (1, 5), (3, 1)]
    s, a, x, g = (operand.numpy() for operand in operands(copies, 2, 4))
    grad_gates, grad_gated = reference.gate_backward(g, a, x, copies)
    direction = np.random.default_rng(0).normal(size=a.shape), np.random.default_rng(1).normal(size=x.shape)
    change = reference.gate(0 * s, direction[0], x, copies) + reference.gate(0 * s, a, direction[1], copies)
    by_hand = np.concatenate((s, np.repeat(a, [3, 3, 5, 1, 1, 1], axis=1) * x), axis=1)
    assert np.allclose(reference.gate(s, a, x, copies), by_hand, rtol=1e-15)
    by_gradient = (grad_gates * direction[0]).sum() + (grad_gated * direction[1]).sum()
    assert np.isclose(by_gradient, (g * change).sum())


@pytest.mark.parametrize("copies", [[(3, 3), (2, 5)], [(17, 1), (2, 15)], []])
def test_derivatives_to_third_order(copies):
    *given, _ = (operand.requires_grad_() for operand in operands(copies, 2, 3))

    def function(scalars, gates, gated):
        return ops.gate(scalars, gates, gated, widths(copies))

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)
    first = torch.autograd.grad(function(*given).sin().sum(), given, create_graph=True)
    second = torch.autograd.grad(sum(g.cos().sum() for g in first), given, create_graph=True)
    assert torch.autograd.grad(sum(g.sum() for g in second), given)


def test_opcheck():
    copies = [(3, 3), (2, 5)]
    scalars, gates, gated, grad = (operand.requires_grad_() for operand in operands(copies, 2, 3))
    arguments = (gates, gated, *map(list, widths(copies)))
    torch.library.opcheck(torch.ops.clebsch.gate, (scalars, *arguments))
    torch.library.opcheck(torch.ops.clebsch.gate_backward, (grad, *arguments))


def test_operands_that_are_not_contiguous():
    copies = [(5, 3), (2, 5)]
    given = operands(copies, 6, 4)
    wide = [torch.randn(6, 2 * operand.shape[1] + 3, dtype=torch.float64) for operand in given]
    for strided, operand in zip(wide, given, strict=True):
        strided[:, 1 : 1 + operand.shape[1]] = operand
    views = [strided[:, 1 : 1 + operand.shape[1]] for strided, operand in zip(wide, given, strict=True)]
    assert same_bits(results(copies, *views), results(copies, *given))
    turned = [operand.t().contiguous().t() for operand in given]
    assert same_bits(results(copies, *turned), results(copies, *given))
    one = [operand[:1].expand(6, -1) for operand in given]
    assert same_bits(results(copies, *one), results(copies, *(operand.contiguous() for operand in one)))


def test_any_number_of_threads():
    copies = [(32, 3), (16, 5)]
    given = operands(copies, 3_000, 64, torch.float32)
    before, expected = torch.get_num_threads(), results(copies, *given)
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert same_bits(results(copies, *given), expected)
    finally:
        torch.set_num_threads(before)


def test_bad_operands():
    scalars, gates, gated, _ = operands([(2, 3)], 4, 1)
    of = widths([(2, 3)])
    bad = [
        (TypeError, "gates must be a tensor, got list", (scalars, [1.0], gated)),
        (TypeError, "scalars must be float32 or float64, got int64", (scalars.long(), gates, gated)),
        (
            TypeError,
            "gated must have the dtype of scalars, float64, got float32",
            (scalars, gates, gated.float()),
        ),
        (ValueError, "gates must have shape (4, 2), got (4, 1)", (scalars, gates[:, :1], gated)),
        (ValueError, "gated must have shape (4, 6), got (3, 6)", (scalars, gates, gated[:3])),
        (
            ValueError,
            "gates must be on the device of scalars, cpu, got meta",
            (scalars, gates.to("meta"), gated),
        ),
    ]
    for error, message, arguments in bad:
        with pytest.raises(error, match="^" + re.escape(f"gate: {message}") + "$"):
            ops.gate(*arguments, of)
    raw = torch.ops.clebsch.gate
    for muls, components in (([2], [3, 3]), ([-2], [3]), ([2], [0]), ([1 << 62], [3]), ([2], [4])):
        with pytest.raises(ValueError, match="gate: "):
            raw(scalars, gates, gated, muls, components)


def test_layer_without_kernels_computes_the_same():
    """Torch's operations take over for other types and under transforms."""
    gate = nn.Gate("4x0e", [torch.tanh], "3x0e", [torch.sigmoid], "2x1o+1x2e").double()
    x = torch.randn(5, gate.irreps_in.dim, dtype=torch.float64)
    assert torch.allclose(torch.vmap(gate)(x), gate(x), rtol=1e-14)
    half = gate(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), gate(x), atol=0.05)
    tangent = torch.randn_like(x)
    _, derivative = torch.func.jvp(gate, (x,), (tangent,))
    x.requires_grad_()
    cotangent = torch.randn_like(derivative)
    (gradient,) = torch.autograd.grad(gate(x), x, cotangent)
    assert torch.allclose((derivative * cotangent).sum(), (gradient * tangent).sum(), rtol=1e-12)
