"""Spherical harmonics and two derivatives of them, as operators, against the reference and e3nn."""

import concurrent.futures
import math

import numpy as np
import pytest
import torch

import interpretation
import sizes
from clebsch import o3, ops, reference
from clebsch.ops.spherical_harmonics import _double_backward
from clebsch.testing import assert_close_to_reference, poison, relative_error
from product_calls import PROMISED, broadcast, instruction_sets, poisoned_memory, same_bits, views

NORMALIZATIONS = ("component", "norm", "integral")
COUNTS = (0, 130) if interpretation.enabled() else (0, 1, 7, 16, 17, 40)
# In order from 0, with every width that has a kernel of its own; one degree; ranges; repeated; in no order.
LISTS = [
    [0],
    [0, 1],
    [0, 1, 2],
    [0, 1, 2, 3],
    list(range(5)),
    list(range(6)),
    list(range(sizes.degree(12) + 1)),
    [1],
    [2],
    [1, 2],
    [3, 4, 5, 6],
    [sizes.degree(12)],
    [2, 0, 2, 1],
    [sizes.degree(9), 4, 4, sizes.degree(12), 4],
    [0, 0, 0],
    [],
]
forward = torch.ops.clebsch.spherical_harmonics
backward = torch.ops.clebsch.spherical_harmonics_backward
double_backward = torch.ops.clebsch.spherical_harmonics_double_backward
both_dtypes = pytest.mark.parametrize("dtype", PROMISED)
normalized_or_not = pytest.mark.parametrize("normalize", [True, False])


def columns(ls):
    return sum(2 * l + 1 for l in ls)


def random_problem(ls, rows, dtype=torch.float64, seed=0):
    """Points, a cotangent and a tangent."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, width, generator=generator, dtype=torch.float32).to(dtype)
        for width in (3, columns(ls), 3)
    ]


def results(points, grad, tangent, *fixed):
    """Harmonics, the gradient of points, and both results of the double backward."""
    return (
        forward(points, *fixed),
        backward(grad, points, *fixed),
        *double_backward(tangent, grad, points, *fixed),
    )


def check(points, grad, tangent, *fixed):
    """Everything against the reference: each number, and each result by its norm."""
    ls, *rest = fixed
    y, gradient, *second = results(points, grad, tangent, *fixed)
    assert_close_to_reference(y, reference.spherical_harmonics, ls, points, *rest)
    assert_close_to_reference(gradient, reference.spherical_harmonics_backward, ls, grad, points, *rest)
    function = reference.spherical_harmonics_double_backward
    assert_close_to_reference(tuple(second), function, ls, tangent, grad, points, *rest)
    return y, gradient, *second


# Against the reference


@both_dtypes
@normalized_or_not
@pytest.mark.parametrize("ls", LISTS, ids=str)
def test_equals_the_reference(ls, normalize, dtype):
    for normalization in NORMALIZATIONS:
        for rows in COUNTS if normalization == "component" else (17,):
            points, grad, tangent = random_problem(ls, rows, dtype)
            # |x|^l stays within the range where numbers compare
            points = points if normalize else points / points.norm(dim=1, keepdim=True).clamp_min(1)
            for _ in instruction_sets():
                with poisoned_memory():
                    check(points, grad, tangent, ls, normalize, normalization)


@both_dtypes
@normalized_or_not
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_norms_of_results(normalization, normalize, dtype):
    ls = list(range(sizes.degree(12) + 1))
    fixed = (normalize, normalization)
    points, grad, tangent = random_problem(ls, 200, dtype)
    double = [tensor.double().numpy() for tensor in (tangent, grad, points)]
    expected = (
        reference.spherical_harmonics(ls, double[2], *fixed),
        reference.spherical_harmonics_backward(ls, *double[1:], *fixed),
        *reference.spherical_harmonics_double_backward(ls, *double, *fixed),
    )
    for _ in instruction_sets():
        for a, b in zip(results(points, grad, tangent, ls, *fixed), expected, strict=True):
            assert relative_error(a, b) < PROMISED[dtype]


@both_dtypes
def test_rounding_stays_below_the_bound_of_the_kernel(dtype):
    """(8 l + 4) u |Y^l|, from the head of csrc/cpu/spherical_harmonics.inl.h, most of it at the poles."""
    ls = list(range(sizes.degree(20) + 1))
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[1, 1, 1], [1e-3, 1, 1e-3], [3e-2, 1, 3e-2], [1, 1e-4, 1], [1, 1e-6, 1e-6]])
    points = (torch.randn(5, 400, 3, generator=generator) * shapes[:, None]).reshape(-1, 3).to(dtype)
    expected = reference.spherical_harmonics(ls, points.numpy(), True, "norm")
    unit = torch.finfo(dtype).eps / 2
    reference_unit = 2.0**-53 * 20 if dtype == torch.float64 else 0.0  # the judge's own rounding
    for _ in instruction_sets():
        error = np.abs(forward(points, ls, True, "norm").double().numpy() - expected)
        for l in ls:
            bound = (8 * l + 4) * unit + (l + 1) * reference_unit
            assert error[:, l * l : (l + 1) ** 2].max() <= bound, l


@pytest.mark.not_interpreted("degrees above 21, which Triton's kernels refuse: test_triton_interpreted.py")
def test_degrees_without_end():
    points = torch.randn(40, 3, dtype=torch.float64)
    for _ in instruction_sets():
        for l in (13, 32, 33, 64, 150):
            y = forward(points, [l], True, "component")
            assert torch.allclose(y.square().sum(1) / (2 * l + 1), torch.ones(40, dtype=torch.float64))
            close = forward(points.float(), [l], True, "norm").double()
            # A direction in float32 is off by up to 3 roundings, Y^l turns l times as fast.
            assert (close - forward(points, [l], True, "norm")).abs().max() < (10 * l + 10) * 2.0**-24


# Memory


@both_dtypes
@pytest.mark.parametrize("ls", [[0, 1], [0, 1, 2], list(range(5)), [3, 1, 3]], ids=str)
def test_other_strides(ls, dtype):
    operands = random_problem(ls, 21, dtype)
    for _ in instruction_sets():
        expected = results(*operands, ls, True, "component")
        for i in range(3):
            for name, view in views(operands[i]):
                moved = [*operands[:i], view, *operands[i + 1 :]]
                assert same_bits(results(*moved, ls, True, "component"), expected), (i, name)
            one = broadcast(operands[i])
            assert one.stride(0) == 0
            assert same_bits(
                results(*operands[:i], one, *operands[i + 1 :], ls, True, "component"),
                results(*operands[:i], one.contiguous(), *operands[i + 1 :], ls, True, "component"),
            ), i


@both_dtypes
@pytest.mark.parametrize("ls", [[0, 1], [0, 1, 2], list(range(7)), [4, 0, 4]], ids=str)
def test_a_row_does_not_depend_on_the_others(ls, dtype):
    points, grad, tangent = random_problem(ls, 37, dtype)
    for _ in instruction_sets():
        whole = results(points, grad, tangent, ls, True, "component")
        for part in (slice(0, 1), slice(3, 10), slice(5, 37), slice(20, 36)):
            assert same_bits(
                results(points[part], grad[part], tangent[part], ls, True, "component"),
                tuple(tensor[part] for tensor in whole),
            )


@pytest.mark.not_interpreted("threads of the CPU")
def test_any_number_of_threads_gives_the_same_bits():
    ls = [0, 1, 2, 3]
    operands = random_problem(ls, 50_001, torch.float32)
    torch.set_num_threads(1)
    expected = results(*operands, ls, True, "component")
    for threads in (2, 4):
        torch.set_num_threads(threads)
        assert same_bits(results(*operands, ls, True, "component"), expected)
    torch.set_num_threads(1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(results, *operands, ls, True, "component") for _ in range(8)]
        assert all(same_bits(future.result(), expected) for future in futures)


# Points that are not ordinary


@both_dtypes
def test_zero_and_tiny_vectors(dtype):
    ls = [0, 1, 2, 3]
    points = torch.tensor([[0.0, 0, 0], [1e-13, 0, -3e-14], [0, 9e-13, 0], [0, -2e-12, 1e-11]], dtype=dtype)
    _, grad, tangent = random_problem(ls, 4, dtype)
    for _ in instruction_sets():
        for normalization in NORMALIZATIONS:
            y, *derivatives = check(points, grad, tangent, ls, True, normalization)
            assert y[0, 0] == y[3, 0] != 0 and (y[0, 1:] == 0).all()
            assert all(tensor.isfinite().all() for tensor in derivatives)
        for tensor in check(torch.zeros_like(points), grad, tangent, ls, False, "component"):
            assert tensor.isfinite().all()


def test_gradient_at_zero_is_that_of_normalize():
    points = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    y = ops.spherical_harmonics(points, [1], True, "component")
    ours = torch.autograd.grad(y[:, 1].sum(), points)[0]
    y = math.sqrt(3) * torch.nn.functional.normalize(points, dim=-1)
    theirs = torch.autograd.grad(y[:, 1].sum(), points)[0]
    assert torch.allclose(ours, theirs, rtol=1e-15)


@pytest.mark.parametrize(
    "size, dtype", [(1e25, torch.float32), (3e37, torch.float32), (1e250, torch.float64)]
)
def test_long_vectors_have_a_direction(size, dtype):
    points, grad, tangent = random_problem([0, 1, 2], 17, dtype)
    for _ in instruction_sets():
        expected = results(points, grad, tangent, [0, 1, 2], True, "component")
        actual = results(points * size, grad, tangent, [0, 1, 2], True, "component")
        torch.testing.assert_close(actual[0], expected[0])
        if size < 1e30:
            torch.testing.assert_close(actual[1] * size, expected[1])


@both_dtypes
@normalized_or_not
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_points_stay_in_their_row(bad, normalize, dtype):
    ls = [0, 1, 2, 3]
    for _ in instruction_sets():
        for rows in (5, 37):
            points, grad, tangent = random_problem(ls, rows, dtype)
            expected = results(points, grad, tangent, ls, normalize, "component")
            points[3, 1] = bad
            others = torch.arange(rows) != 3
            for a, b in zip(
                results(points, grad, tangent, ls, normalize, "component"), expected, strict=True
            ):
                assert same_bits((a[others],), (b[others],))
                assert not a[3].isfinite().all()


# Derivatives


@normalized_or_not
@pytest.mark.parametrize(
    "ls, normalization",
    [
        (list(range(sizes.derived_degree(3) + 1)), "component"),
        ([2, 0, 2], "norm"),
        ([sizes.derived_degree(5), 1], "integral"),
    ],
)
def test_derivatives_of_any_order(ls, normalization, normalize):
    points, grad, tangent = (t.requires_grad_() for t in random_problem(ls, 1 if sizes.FAST else 2))
    fixed = (ls, normalize, normalization)
    for function, operands in (
        (lambda x: ops.spherical_harmonics(x, *fixed), points),
        (lambda *given: double_backward(*given, *fixed), (tangent, grad, points)),
    ):
        assert torch.autograd.gradcheck(function, operands, fast_mode=sizes.FAST)
        assert torch.autograd.gradgradcheck(function, operands, fast_mode=sizes.FAST)


@normalized_or_not
@pytest.mark.parametrize("ls", [[0, 1, 2, 3, 4], [3, 0, 3, 1], [0], []], ids=str)
def test_double_backward_is_the_same_written_out(ls, normalize):
    for normalization in NORMALIZATIONS:
        points, grad, tangent = random_problem(ls, 9)
        fixed = (ls, normalize, normalization)
        operator = double_backward(tangent, grad, points, *fixed)
        for a, b in zip(operator, _double_backward(tangent, grad, points, *fixed), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_third_derivative_equals_e3nns():
    e3nn_o3 = pytest.importorskip("e3nn.o3")
    ls = [0, 1, 2, 3]
    values = []
    for function in (o3.spherical_harmonics, e3nn_o3.spherical_harmonics):
        x = random_problem(ls, 5)[0].requires_grad_()
        energy = function(ls, x, True, "component").sin().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
            energy = gradient.pow(3).sum()
        values.append(gradient.detach())
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)


def test_zero_vectors_have_finite_third_derivatives():
    points = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    for normalize in (True, False):
        energy = ops.spherical_harmonics(points, [0, 1, 2, 3], normalize, "component").sin().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(energy, points, create_graph=True)
            assert gradient.isfinite().all()
            energy = gradient.sum()


@both_dtypes
def test_derivatives_are_adjoint(dtype):
    """<tangent, J^T grad> = <grad, J tangent>, whatever the harmonics are."""
    ls = list(range(9))
    points, grad, tangent = random_problem(ls, 100, dtype)
    for _ in instruction_sets():
        gradient = backward(grad, points, ls, True, "component")
        grad_grad, _ = double_backward(tangent, grad, points, ls, True, "component")
        left, right = (tangent * gradient).double().sum(1), (grad * grad_grad).double().sum(1)
        scale = grad.double().norm(dim=1) * grad_grad.double().norm(dim=1)
        assert ((left - right).abs() <= 10 * PROMISED[dtype] * scale).all()


@pytest.mark.parametrize("rows", [0, 5])
def test_opcheck(rows):
    ls = [0, 2, 1]
    points, grad, tangent = (tensor.requires_grad_() for tensor in random_problem(ls, rows))
    fixed = (ls, True, "component")
    torch.library.opcheck(forward, (points, *fixed))
    torch.library.opcheck(backward, (grad, points, *fixed))
    torch.library.opcheck(double_backward, (tangent, grad, points, *fixed))


# What harmonics are


def test_equivariance():
    ls = list(range(9))
    points, grad, _ = random_problem(ls, 20)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotation = rotation * rotation.det()
    for inversion in (1, -1):
        matrix = inversion * rotation
        turn = o3.Irreps.spherical_harmonics(8).D_from_matrix(matrix)
        y = ops.spherical_harmonics(points @ matrix.T, ls, True, "component")
        expected = ops.spherical_harmonics(points, ls, True, "component") @ turn.T
        assert relative_error(y, expected) < 1e-12
        gradient = backward(grad @ turn.T, points @ matrix.T, ls, True, "component")
        assert relative_error(gradient, backward(grad, points, ls, True, "component") @ matrix.T) < 1e-12


def test_degree_one_is_the_vector():
    points = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(ops.spherical_harmonics(points, [1], False, "norm"), points)


@normalized_or_not
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equals_e3nn(normalization, normalize):
    e3nn_o3 = pytest.importorskip("e3nn.o3")
    ls = list(range(sizes.degree(11) + 1))
    points, grad, tangent = random_problem(ls, 20)
    points = (points / points.norm(dim=1, keepdim=True) if not normalize else points).requires_grad_()
    grad.requires_grad_()
    y = e3nn_o3.spherical_harmonics(ls, points, normalize, normalization)
    (gradient,) = torch.autograd.grad(y, points, grad, create_graph=True)
    expected = (y, gradient, *torch.autograd.grad(gradient, (grad, points), tangent))
    for actual, theirs in zip(
        results(points, grad, tangent, ls, normalize, normalization), expected, strict=True
    ):
        assert relative_error(actual, theirs) < 1e-12


# The wrapper


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,), (2, 0, 3)])
def test_leading_dimensions(batch):
    points = torch.randn(*batch, 3, requires_grad=True)
    y = ops.spherical_harmonics(points, (2, 0), True, "norm")
    assert y.shape == (*batch, 6)
    rows = points.detach().reshape(-1, 3)
    assert torch.equal(y.reshape(-1, 6), forward(rows, [2, 0], True, "norm"))
    (gradient,) = torch.autograd.grad(y.sum(), points)
    assert gradient.shape == points.shape


@pytest.mark.parametrize("view", [lambda t: t.transpose(0, 1), lambda t: t[:, :1].expand(-1, 4, -1)])
def test_leading_dimensions_that_are_not_contiguous(view):
    """Forward and two derivatives, through a view of the points."""
    values = []
    for make in (view, lambda t: view(t).contiguous()):
        points = torch.linspace(-1, 2, 60, dtype=torch.float64).reshape(5, 4, 3).requires_grad_()
        y = ops.spherical_harmonics(make(points), [0, 1, 2], True, "norm")
        (first,) = torch.autograd.grad(y.sin().sum(), points, create_graph=True)
        values.append((y, first, *torch.autograd.grad(first.square().sum(), points)))
    assert same_bits(*([t.detach().contiguous() for t in each] for each in values))


@pytest.mark.parametrize(
    "points, ls, normalization, error, message",
    [
        (
            torch.ones(4, 3, dtype=torch.int64),
            [1],
            "norm",
            TypeError,
            "points must be a float32 or float64 tensor, got int64",
        ),
        (
            torch.ones(4, 3, dtype=torch.float16),
            [1],
            "norm",
            TypeError,
            "points must be a float32 or float64 tensor, got float16",
        ),
        (np.ones((4, 3)), [1], "norm", TypeError, "points must be a float32 or float64 tensor, got ndarray"),
        (torch.ones(4, 2), [1], "norm", ValueError, "points must have shape (..., 3), got (4, 2)"),
        (torch.tensor(1.0), [1], "norm", ValueError, "points must have shape (..., 3), got ()"),
        (torch.ones(4, 3), [0, -1], "norm", ValueError, "ls must be >= 0, got -1"),
        (torch.ones(4, 3), [0, 1.0], "norm", TypeError, "ls must be integers, got 1.0"),
        (
            torch.ones(4, 3),
            [0],
            "unit",
            ValueError,
            "normalization must be one of 'integral', 'component', 'norm', got 'unit'",
        ),
    ],
)
def test_bad_arguments(points, ls, normalization, error, message):
    with pytest.raises(error) as caught:
        ops.spherical_harmonics(points, ls, True, normalization)
    assert str(caught.value) == f"spherical_harmonics: {message}"


@pytest.mark.not_interpreted(
    "the words of the CPU's operators; those of Triton's: test_triton_interpreted.py"
)
def test_operators_check_what_reaches_them():
    points, grad, tangent = random_problem([1], 4)
    fixed = ([1], True, "norm")
    for message, operator, *arguments in (
        ("points must have 3 columns, got 2", forward, points[:, :2], *fixed),
        ("points must have 2 dimensions, got 1", forward, points[0], *fixed),
        ("ls must be >= 0, got -1", forward, points, [-1], True, "norm"),
        ("ls must be <= 1000, got 1001", forward, points, [0, 1001], True, "norm"),
        (
            "normalization must be 'integral', 'component' or 'norm', got 'unit'",
            *(forward, points, [1], True, "unit"),
        ),
        ("grad must have 4 rows, got 3", backward, grad[:3], points, *fixed),
        ("grad must have 3 columns, got 2", backward, grad[:, :2], points, *fixed),
        ("grad must have the dtype of points", backward, grad.float(), points, *fixed),
        ("grad must have 2 dimensions, got 1", backward, grad[0], points, *fixed),
        ("grad must have 3 columns, got 2", double_backward, tangent, grad[:, :2], points, *fixed),
        ("grad_grad_points must have 4 rows, got 1", double_backward, tangent[:1], grad, points, *fixed),
        (
            "grad_grad_points must have the dtype of points",
            *(double_backward, tangent.float(), grad, points, *fixed),
        ),
    ):
        tensors = tuple(argument for argument in arguments if isinstance(argument, torch.Tensor))
        before = tuple(tensor.clone() for tensor in tensors)
        with pytest.raises(ValueError) as caught:
            operator(*arguments)
        assert str(caught.value) == f"spherical_harmonics: {message}"
        assert same_bits(tensors, before)


@pytest.mark.about_the_cpu("kernels for GPUs take 16 bits too: test_storage.py")
def test_operators_check_dtypes():
    points, grad, _ = random_problem([1], 4)
    fixed = ([1], True, "norm")
    for operator, *arguments in ((forward, points.long()), (backward, grad, points.half())):
        with pytest.raises(ValueError, match=r"^spherical_harmonics: points must be float32 or float64$"):
            operator(*arguments, *fixed)


def test_forward_mode_is_refused():
    points = torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="spherical_harmonics: forward-mode derivatives"):
        torch.func.jvp(lambda x: ops.spherical_harmonics(x, [1], True, "norm"), (points,), (points,))


def test_nothing_is_read_beyond_the_rows():
    """NaN lies on both sides of every row and of every tensor."""
    ls = [0, 1, 2]
    for rows in (1, 16, 17, 33):
        operands = random_problem(ls, rows)
        expected = results(*operands, ls, True, "component")
        inside = []
        for tensor in operands:
            wide = poison(torch.empty(rows + 2, tensor.shape[1], dtype=tensor.dtype))
            inside.append(wide[1:-1].copy_(tensor))
        for _ in instruction_sets():
            actual = results(*inside, ls, True, "component")
            assert all(
                torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(actual, expected, strict=True)
            )
