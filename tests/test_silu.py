"""The operator silu against the reference, on every instruction set."""

import re

import numpy as np
import pytest
import torch

from clebsch import ops, reference
from product_calls import instruction_sets, poisoned_memory, same_bits

# Of an exponential (argument, series, power of two), a sum, a quotient and the products that follow.
ROUNDINGS = 12


def numbers(dtype, count=4001):
    """Where all that matters happens, and far beyond where exp has a value."""
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(count, generator=generator) * 4
    far = torch.linspace(-1500, 1500, count)
    odd = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 87.9, -87.9, 88.1, -88.1, 1e30, -1e30])
    return torch.cat([near, far, odd]).to(dtype)


def results(x, grad, cotangent):
    raw = torch.ops.clebsch
    return raw.silu(x), raw.silu_backward(grad, x), *raw.silu_double_backward(cotangent, grad, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(dtype):
    x = numbers(dtype)
    generator = torch.Generator().manual_seed(1)
    g, a = (torch.randn(x.shape, generator=generator).to(dtype) for _ in range(2))
    exact, grad, cotangent = (value.double().numpy() for value in (x, g, a))
    expected = (
        reference.silu(exact),
        reference.silu_backward(grad, exact),
        *reference.silu_double_backward(cotangent, grad, exact),
    )
    # Sizes of the terms, which may cancel.
    s, rest = (1 / (1 + np.exp(np.minimum(value, 700))) for value in (-exact, exact))
    first, second = s * (1 + abs(exact) * rest), s * rest * (2 + abs(exact))
    sizes = (abs(expected[0]), abs(grad) * first, abs(cotangent) * first, abs(cotangent * grad) * second)
    info = torch.finfo(dtype)
    # What is less than the smallest normal number may be lost, and is multiplied by x.
    lost = 4 * info.tiny * (1 + abs(exact)) * (1 + abs(grad)) * (1 + abs(cotangent))
    for isa in instruction_sets():
        with poisoned_memory():
            found = results(x, g, a)
        for value, right, size in zip(found, expected, sizes, strict=True):
            assert value.dtype == dtype and value.shape == x.shape
            error = abs(value.double().numpy() - right)
            assert (error <= ROUNDINGS * info.eps / 2 * size + lost).all(), isa


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_do_not_depend_on_the_others(dtype):
    """Kernels for GPUs take 16 bytes at a time of arrays that are aligned, and the rest number by number."""
    x = numbers(dtype, 20)
    g, a = torch.randn(2, x.numel(), dtype=dtype)
    for isa in instruction_sets():
        whole = results(x, g, a)
        for begin, end in ((0, 0), (0, 3), (0, 37), (1, 38), (2, 4), (3, x.numel())):
            with poisoned_memory():
                found = results(x[begin:end], g[begin:end], a[begin:end])
                mixed = results(x[begin:end].clone(), g[begin:end], a[begin:end].clone())
            assert same_bits(found, [value[begin:end] for value in whole]), (isa, begin, end)
            assert same_bits(mixed, found), (isa, begin, end)


def test_what_is_no_number():
    nan, inf = float("nan"), float("inf")
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([nan, inf, -inf], dtype=dtype)
        for isa in instruction_sets():
            assert torch.equal(ops.silu(x).isnan(), torch.tensor([True, False, True])), isa
            assert ops.silu(x)[1] == inf


def test_the_reference_is_torchs():
    x = torch.linspace(-20, 20, 401, dtype=torch.float64, requires_grad=True)
    g, a = torch.randn(2, 401, dtype=torch.float64)
    g.requires_grad_()
    y = torch.nn.functional.silu(x)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    second = torch.autograd.grad(first, (g, x), a)
    given = [value.detach().numpy() for value in (a, g, x)]
    np.testing.assert_allclose(reference.silu(given[2]), y.detach(), rtol=1e-14)
    np.testing.assert_allclose(reference.silu_backward(*given[1:]), first.detach(), rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(reference.silu_double_backward(*given), second, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_derivatives_to_third_order():
    x = torch.tensor([-30.0, -3, -1.3, -0.1, 0, 0.7, 2, 31], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.silu, x)
    assert torch.autograd.gradgradcheck(ops.silu, x)

    def second(x):
        (first,) = torch.autograd.grad(ops.silu(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.cos().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, x)


def test_one_derivative_alone():
    """A cotangent that is not asked for, and one that does not come."""
    x = torch.randn(9, dtype=torch.float64, requires_grad=True)
    g = torch.randn(9, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(ops.silu(x), x, g, create_graph=True)
    (to_g,) = torch.autograd.grad(first.sum(), g, retain_graph=True)
    both = torch.autograd.grad(first.sum(), (g, x))
    torch.testing.assert_close(to_g, both[0], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (3, 5, 7), (2, 33)])
def test_any_shape(shape):
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ops.silu(x), torch.nn.functional.silu(x), rtol=1e-14, atol=1e-15)
    if x.dim() > 1:
        torch.testing.assert_close(ops.silu(x.mT), torch.nn.functional.silu(x.mT), rtol=1e-14, atol=1e-15)
    assert ops.silu(x).shape == x.shape


def test_any_number_of_threads():
    x, g, a = torch.randn(3, 123_457)
    before, expected = torch.get_num_threads(), results(x, g, a)
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert same_bits(results(x, g, a), expected)
    finally:
        torch.set_num_threads(before)


def test_opcheck_and_compile():
    x, g, a = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    x, g, a = (value.detach().requires_grad_() for value in (x, g, a))
    torch.library.opcheck(torch.ops.clebsch.silu, (x,))
    torch.library.opcheck(torch.ops.clebsch.silu_backward, (g, x))
    torch.library.opcheck(torch.ops.clebsch.silu_double_backward, (a, g, x))
    compiled = torch.compile(ops.silu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ops.silu(x))


def test_bad_operands():
    x = torch.randn(4)
    for error, message, given in (
        (TypeError, "x must be a tensor, got list", [1.0]),
        (TypeError, "x must be float32 or float64, got float16", x.half()),
    ):
        with pytest.raises(error, match="^" + re.escape(f"silu: {message}") + "$"):
            ops.silu(given)
    raw = torch.ops.clebsch
    for bad in (x[:3], x.double(), x.view(2, 2)):
        with pytest.raises(ValueError, match=r"^silu: grad must have the shape and dtype of x$"):
            raw.silu_backward(bad, x)
        with pytest.raises(ValueError, match=r"^silu: grad_grad_x must have the shape and dtype of x$"):
            raw.silu_double_backward(bad, x, x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=r"^silu: forward-mode derivatives"):
            ops.silu(dual)
