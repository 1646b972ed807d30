"""The judge judged: harmonics, products and linear layers in float64 against sympy, quadrature, rotations and
e3nn 0.6."""

import itertools

import numpy as np
import pytest
import sympy
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import reference
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import MODES, ProductPlan
from clebsch.testing import random_graphs, random_linear_plans, random_operands, random_plans

x, y, z = sympy.symbols("x y z", real=True)

NORMALIZATIONS = ("norm", "component", "integral")
ALL_DEGREES = list(range(13))
UNSORTED = [3, 0, 1, 2, 2, 7, 12, 5, 11]


pytestmark = pytest.mark.usefixtures("float64_by_default")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def degrees(Y, ls):
    """The blocks of the last axis."""
    return np.split(Y, np.cumsum([2 * l + 1 for l in ls])[:-1], axis=-1)


def on_sphere(rng, count):
    points = rng.standard_normal((count, 3))
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


# Spherical harmonics: values


def solid_harmonic(l, m):
    """Y_m of degree l in the norm of "component", exactly, as a polynomial of x, y, z with its pole on +y.

    r^(l-|m|) times the |m|-th derivative of the Legendre polynomial at y / r, times Re or Im of (z + ix)^|m|:
    the textbooks' real harmonic, without a phase.
    """
    t, r2 = sympy.Symbol("t"), x**2 + y**2 + z**2
    legendre = sympy.Poly(sympy.diff(sympy.legendre(l, t), t, abs(m)), t)
    polar = sum(c * y**k * r2 ** ((l - abs(m) - k) // 2) for (k,), c in legendre.terms())
    around = sympy.expand((z + sympy.I * x) ** abs(m)).as_real_imag()[0 if m >= 0 else 1]
    square = sympy.Rational(sympy.factorial(l - abs(m)), sympy.factorial(l + abs(m)))
    return sympy.sqrt((2 * l + 1) * (2 if m else 1) * square) * polar * around


@pytest.mark.parametrize("l", range(7))
def test_harmonics_are_sympys_polynomials(l, rng):
    points = rng.standard_normal((3, 3))
    ours = reference.spherical_harmonics([l], points, False, "component")
    for m in range(-l, l + 1):
        polynomial = sympy.lambdify((x, y, z), solid_harmonic(l, m))
        expected = [float(polynomial(*map(float, point))) for point in points]
        np.testing.assert_allclose(ours[:, m + l], expected, rtol=1e-12, atol=1e-13)


def test_harmonics_are_those_of_the_complex_ones(rng):
    """Against sympy's Y_l^m, which has the phase of Condon and Shortley, at a few points."""
    for point in on_sphere(rng, 2):
        theta, phi = float(np.arccos(point[1])), float(np.arctan2(point[0], point[2]))
        for l in (1, 2, 5, 8, 12):
            ours = reference.spherical_harmonics([l], point, True, "integral")
            for m in range(-l, l + 1):
                complex_one = complex(sympy.Ynm(l, abs(m), theta, phi).evalf()) * (-1) ** m
                part = complex_one.real if m >= 0 else complex_one.imag
                assert ours[m + l] == pytest.approx(part * (2**0.5 if m else 1), rel=1e-11, abs=1e-13)


def quadrature(degree):
    """Points (n, 3) and weights (n,) that integrate polynomials up to `degree` over the sphere exactly."""
    heights, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    angles = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    height, angle = (grid.ravel() for grid in np.meshgrid(heights, angles, indexing="ij"))
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.sin(angle), height, radius * np.cos(angle)], axis=-1)
    return points, np.repeat(weights, degree + 1) * 2 * np.pi / (degree + 1)


def test_harmonics_are_orthonormal():
    points, weights = quadrature(24)
    Y = reference.spherical_harmonics(ALL_DEGREES, points, False, "integral")
    np.testing.assert_allclose(Y.T @ (weights[:, None] * Y), np.eye(169), atol=1e-13)


def test_normalizations(rng):
    points = on_sphere(rng, 10)
    Y = {name: reference.spherical_harmonics(ALL_DEGREES, points, True, name) for name in NORMALIZATIONS}
    for l, norm, component, integral in zip(
        ALL_DEGREES, *(degrees(Y[name], ALL_DEGREES) for name in NORMALIZATIONS), strict=True
    ):
        np.testing.assert_allclose(np.linalg.norm(norm, axis=-1), 1, rtol=1e-13)
        np.testing.assert_allclose(np.linalg.norm(component, axis=-1) ** 2, 2 * l + 1, rtol=1e-13)
        np.testing.assert_allclose(integral * np.sqrt(4 * np.pi), component, rtol=1e-13)


def test_lowest_degrees_and_pole(rng):
    points = rng.standard_normal((5, 3))
    Y = reference.spherical_harmonics([0, 1], points, False, "norm")
    np.testing.assert_array_equal(Y, np.concatenate([np.ones((5, 1)), points], axis=1))
    for l, block in zip(
        ALL_DEGREES,
        degrees(reference.spherical_harmonics(ALL_DEGREES, [0, 2.5, 0], True, "norm"), ALL_DEGREES),
        strict=True,
    ):
        np.testing.assert_allclose(block, np.eye(2 * l + 1)[l], atol=1e-15)


def test_harmonics_rotate_with_the_point(rng):
    points = rng.standard_normal((6, 3))
    R = o3.rand_matrix(dtype=torch.float64)
    rotated = points @ R.numpy().T
    irreps = o3.Irreps([(1, (l, (-1) ** l)) for l in range(9)])
    D = irreps.D_from_matrix(-R).numpy()
    Y = reference.spherical_harmonics(range(9), points, False, "norm")
    np.testing.assert_allclose(
        reference.spherical_harmonics(range(9), -rotated, False, "norm"), Y @ D.T, rtol=1e-10, atol=1e-11
    )


def test_points_have_any_leading_shape():
    for shape in ((3,), (0, 3), (2, 0, 3), (2, 4, 3)):
        points = np.ones(shape)
        assert reference.spherical_harmonics([2, 0], points, True, "norm").shape == (*shape[:-1], 6)
        assert reference.spherical_harmonics([], points, True, "norm").shape == (*shape[:-1], 0)
        grad = np.ones((*shape[:-1], 6))
        assert reference.spherical_harmonics_backward([2, 0], grad, points, True, "norm").shape == shape
        grads = reference.spherical_harmonics_double_backward([2, 0], points, grad, points, True, "norm")
        assert [g.shape for g in grads] == [grad.shape, shape]


# Spherical harmonics: derivatives, and e3nn

AWKWARD_POINTS = np.array(
    [
        [0.0, 0.0, 0.0],
        [3e-13, -2e-13, 4e-13],  # shorter than the shortest length that normalize divides by
        [1e-12, 1e-13, -2e-13],  # a little longer
        [0.0, 2.0, 0.0],
        [0.0, -1.0, 0.0],
        [1e-8, 1e-9, -1e-8],
        [1e-9, 3.0, 0.0],
        [0.3, -1.2, 0.7],
        [-40.0, 2.0, 0.01],
    ]
)


def assert_close_rows(actual, expected, bound):
    """Relative to the norm of each row."""
    error = np.linalg.norm(actual - expected, axis=-1)
    assert np.all(error <= bound * np.linalg.norm(expected, axis=-1))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("normalize", [True, False])
def test_harmonics_and_derivatives_are_those_of_e3nn(normalize, normalization, rng):
    points = torch.tensor(AWKWARD_POINTS, requires_grad=True)
    Y = o3.spherical_harmonics(UNSORTED, points, normalize, normalization)
    grad = torch.tensor(rng.standard_normal(Y.shape), requires_grad=True)
    tangent = rng.standard_normal(points.shape)
    (grad_points,) = torch.autograd.grad(Y, points, grad, create_graph=True)
    seconds = torch.autograd.grad(grad_points, (grad, points), torch.tensor(tangent))
    options = (AWKWARD_POINTS, normalize, normalization)
    g = grad.detach().numpy()
    assert_close_rows(reference.spherical_harmonics(UNSORTED, *options), Y.detach().numpy(), 1e-14)
    first = reference.spherical_harmonics_backward(UNSORTED, g, *options)
    assert_close_rows(first, grad_points.detach().numpy(), 1e-14)
    second = reference.spherical_harmonics_double_backward(UNSORTED, tangent, g, *options)
    assert_close_rows(second[0], seconds[0].numpy(), 1e-14)
    # e3nn's second derivative at zero is not a number with normalize
    defined = slice(1 if normalize else 0, None)
    assert np.isnan(seconds[1][:1].numpy()).all() == normalize
    assert_close_rows(second[1][defined], seconds[1][defined].numpy(), 1e-13)


def test_zero_vector():
    Y = reference.spherical_harmonics([0, 1, 2, 3], np.zeros((1, 3)), True, "norm")
    np.testing.assert_array_equal(Y, np.eye(16)[:1])
    tangent, grad = np.ones((1, 3)), np.ones((1, 16))
    assert np.isfinite(
        reference.spherical_harmonics_backward([0, 1, 2, 3], grad, np.zeros((1, 3)), True, "norm")
    ).all()
    second = reference.spherical_harmonics_double_backward(
        [0, 1, 2, 3], tangent, grad, np.zeros((1, 3)), True, "norm"
    )
    assert all(np.isfinite(part).all() for part in second)


def test_below_the_shortest_length_normalize_only_scales(rng):
    points = 1e-13 * rng.standard_normal((4, 3))
    grad, tangent = rng.standard_normal((4, 16)), rng.standard_normal((4, 3))
    ls = [0, 1, 2, 3]
    clamped = reference.spherical_harmonics_double_backward(ls, tangent, grad, points, True, "norm")
    scaled = reference.spherical_harmonics_double_backward(ls, tangent, grad, points * 1e12, False, "norm")
    np.testing.assert_allclose(clamped[0], scaled[0] * 1e12, rtol=1e-12)
    np.testing.assert_allclose(clamped[1], scaled[1] * 1e24, rtol=1e-12)


# Central differences of order 8: along lines of length 1e-2 these functions are polynomials to about 1e-12.
_STEPS = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def derivative(function, step=1e-2):
    """d/dt function(t) at t = 0."""
    return sum(c * (function(k * step) - function(-k * step)) for k, c in _STEPS.items()) / step


@pytest.mark.parametrize("normalize", [True, False])
def test_derivatives_of_harmonics_are_differences(normalize, rng):
    points = on_sphere(rng, 8) * 2
    ls = [0, 1, 2, 3, 4, 6]
    dim = sum(2 * l + 1 for l in ls)
    grad, other = rng.standard_normal((2, 8, dim))
    tangent, direction = rng.standard_normal((2, 8, 3))

    def first(t):
        return np.sum(
            grad * reference.spherical_harmonics(ls, points + t * direction, normalize, "component")
        )

    backward = reference.spherical_harmonics_backward(ls, grad, points, normalize, "component")
    assert np.sum(backward * direction) == pytest.approx(derivative(first), rel=1e-9)

    def second(t):
        moved = reference.spherical_harmonics_backward(
            ls, grad + t * other, points + t * direction, normalize, "component"
        )
        return np.sum(tangent * moved)

    grad_grad, grad_points = reference.spherical_harmonics_double_backward(
        ls, tangent, grad, points, normalize, "component"
    )
    total = np.sum(grad_grad * other) + np.sum(grad_points * direction)
    assert total == pytest.approx(derivative(second), rel=1e-9)


def test_second_derivatives_are_harmonic_and_symmetric(rng):
    points, grad = rng.standard_normal((5, 3)), rng.standard_normal((5, 81))
    ls = range(9)
    hessian = np.stack(
        [
            reference.spherical_harmonics_double_backward(
                ls, np.broadcast_to(e, (5, 3)), grad, points, False, "norm"
            )[1]
            for e in np.eye(3)
        ],
        axis=1,
    )
    scale = np.abs(hessian).max()
    np.testing.assert_allclose(np.trace(hessian, axis1=1, axis2=2), 0, atol=1e-13 * scale)
    np.testing.assert_allclose(hessian, hessian.swapaxes(1, 2), atol=1e-13 * scale)


# Tensor products


def random_tangents(rng, operands):
    return [rng.standard_normal(np.shape(operand)) for operand in operands]


def of_e3nn(plan, instructions, shared, **options):
    irreps = (str(plan.irreps_in1), str(plan.irreps_in2), str(plan.irreps_out))
    return o3.TensorProduct(*irreps, instructions, shared_weights=shared, internal_weights=False, **options)


def with_autograd(product, operands, grad, tangents):
    """What torch finds for a product of e3nn: output, first and second derivatives, as numpy arrays."""
    leaves = [torch.tensor(operand, requires_grad=True) for operand in (grad, *operands)]

    def gradients(value, inputs, seed=None):
        # what depends on no input has derivative zero, and torch would rather raise
        value = value + sum(0 * leaf.sum() for leaf in inputs)
        return torch.autograd.grad(value, inputs, seed, create_graph=True)

    out = product(*leaves[1:])
    first = gradients(out, leaves[1:], leaves[0])
    second = gradients(sum((torch.tensor(a) * g).sum() for a, g in zip(tangents, first, strict=True)), leaves)
    return [tensor.detach().numpy() for tensor in (out, *first, *second)]


def ours(plan, operands, grad, tangents):
    return [
        reference.tensor_product(plan, *operands),
        *reference.tensor_product_backward(plan, grad, *operands),
        *reference.tensor_product_double_backward(plan, *tangents, grad, *operands),
    ]


ONE_OF_EACH = {
    "uvw": ("2x1o", "3x2e", "4x2o"),
    "uvu": ("2x1o", "3x2e", "2x2o"),
    "uvv": ("2x1o", "3x2e", "3x2o"),
    "uuw": ("3x1o", "3x2e", "4x2o"),
    "uuu": ("3x1o", "3x2e", "3x2o"),
    "uvuv": ("2x1o", "3x2e", "6x2o"),
    "uvu<v": ("4x1o", "4x2e", "6x2o"),
    "u<vw": ("4x1o", "4x2e", "5x2o"),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_e3nns(mode, shared, rng):
    irreps = ONE_OF_EACH[mode]
    unweighted = {} if mode in ("uvw", "u<vw", "uuw") else {"unweighted": (0, 0, 0, mode, False)}
    instructions = [(0, 0, 0, mode, True), *unweighted.values(), (0, 0, 0, mode, True, 0.3)]
    for options in ({}, {"irrep_normalization": "norm", "path_normalization": "path"}):
        plan = ProductPlan.from_instructions(*irreps, instructions, **options)
        operands = random_operands(plan, 3, shared=shared)
        grad = rng.standard_normal((3, plan.irreps_out.dim))
        tangents = random_tangents(rng, operands)
        expected = with_autograd(of_e3nn(plan, instructions, shared, **options), operands, grad, tangents)
        for actual, wanted in zip(ours(plan, operands, grad, tangents), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-12)


def test_uuw_without_weights_is_e3nns(rng):
    instructions = [(0, 0, 0, "uuw", False)]
    plan = ProductPlan.from_instructions("3x1o", "3x2e", "1x2o", instructions)
    x1, x2, w = random_operands(plan, 3)
    expected = of_e3nn(plan, instructions, True)(torch.tensor(x1), torch.tensor(x2), torch.empty(0))
    np.testing.assert_allclose(
        reference.tensor_product(plan, x1, x2, w), expected.numpy(), rtol=1e-13, atol=1e-14
    )


@settings(max_examples=30)
@given(random_plans(l_max=3, layouts=("mul_ir",), max_terms=3000), st.booleans(), st.integers(0, 10**6))
def test_mixed_products_are_e3nns(plan, shared, seed):
    # e3nn cannot look at inputs of dimension 0
    if 0 in (plan.irreps_in1.dim, plan.irreps_in2.dim):
        return
    rng = np.random.default_rng(seed)
    instructions = [(p.i_in1, p.i_in2, p.i_out, p.mode, p.has_weight) for p in plan.paths]
    irreps = (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)
    plan = ProductPlan.from_instructions(*irreps, instructions)
    operands = random_operands(plan, 2, shared=shared, seed=seed)
    grad = rng.standard_normal((2, plan.irreps_out.dim))
    tangents = random_tangents(rng, operands)
    expected = with_autograd(of_e3nn(plan, instructions, shared), operands, grad, tangents)
    for actual, wanted in zip(ours(plan, operands, grad, tangents), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-11)


@settings(max_examples=40)
@given(random_plans(max_terms=3000), st.booleans())
def test_gradients_are_adjoint(plan, shared):
    """<g, out> = <x, grad_x> = <y, grad_y>, and = <w, grad_w> plus the paths without weights."""
    operands = random_operands(plan, 2, shared=shared)
    grad = np.random.default_rng(1).standard_normal((2, plan.irreps_out.dim))
    out = reference.tensor_product(plan, *operands)
    value = np.sum(grad * out)
    size = np.sum(np.abs(grad) * reference.magnitude(reference.tensor_product, plan, *operands)) + 1e-300
    grads = reference.tensor_product_backward(plan, grad, *operands)
    unweighted = reference.tensor_product(plan, *operands[:2], np.zeros_like(operands[2]))
    products = [np.sum(a * b) for a, b in zip(operands, grads, strict=True)]
    products[2] += np.sum(grad * unweighted)
    np.testing.assert_allclose(products, value, rtol=0, atol=1e-13 * size)


@settings(max_examples=25)
@given(random_plans(max_terms=3000), st.booleans())
def test_layouts_differ_by_a_permutation(plan, shared):
    def to_mul_ir(features, irreps):
        parts = [
            block.reshape(len(block), ir.dim, mul).swapaxes(1, 2).reshape(len(block), mul * ir.dim)
            for (mul, ir), block in zip(irreps, [features[:, s] for s in irreps.slices()], strict=True)
        ]
        return np.concatenate([features[:, :0], *parts], axis=1)

    one, other = (
        ProductPlan(*(plan.irreps_in1, plan.irreps_in2, plan.irreps_out), plan.paths, layout)
        for layout in ("ir_mul", "mul_ir")
    )
    a, b, w = random_operands(plan, 2, shared=shared)
    out = reference.tensor_product(one, a, b, w)
    permuted = reference.tensor_product(
        other, to_mul_ir(a, plan.irreps_in1), to_mul_ir(b, plan.irreps_in2), w
    )
    np.testing.assert_allclose(to_mul_ir(out, plan.irreps_out), permuted, rtol=1e-12, atol=1e-12)


@settings(max_examples=15)
@given(random_plans(layouts=("mul_ir",), max_terms=3000), st.integers(0, 10**6))
def test_products_rotate_and_invert_with_their_operands(plan, seed):
    torch.manual_seed(seed)
    # Angles, and no matrix: to find them from it loses digits near the pole.
    angles = o3.rand_angles(dtype=torch.float64)

    def D(irreps):
        irreps = o3.Irreps(str(irreps)).remove_zero_multiplicities()
        inversion = torch.ones((), dtype=torch.float64)
        return irreps.D_from_angles(*angles, inversion).numpy() if irreps else np.zeros((0, 0))

    a, b, w = random_operands(plan, 2, seed=seed)
    out = reference.tensor_product(plan, a, b, w)
    rotated = reference.tensor_product(plan, a @ D(plan.irreps_in1).T, b @ D(plan.irreps_in2).T, w)
    bound = 1e-11 * (1 + reference.magnitude(reference.tensor_product, plan, a, b, w).max(initial=0))
    np.testing.assert_allclose(rotated, out @ D(plan.irreps_out).T, rtol=0, atol=bound)


def test_missing_tangents_count_as_zero():
    plan = ProductPlan.from_instructions(
        "2x1o", "1x1o", "2x1e+2x0e", [(0, 0, 0, "uvu", True), (0, 0, 1, "uvu", False)]
    )
    operands = random_operands(plan, 3)
    rng = np.random.default_rng(3)
    grad, tangents = rng.standard_normal((3, 8)), random_tangents(rng, operands)
    zeros = [np.zeros_like(tangent) for tangent in tangents]
    for given_ones in itertools.product((True, False), repeat=3):
        some = [a if is_given else None for a, is_given in zip(tangents, given_ones, strict=True)]
        filled = [
            a if is_given else zero for a, zero, is_given in zip(tangents, zeros, given_ones, strict=True)
        ]
        for actual, expected in zip(
            reference.tensor_product_double_backward(plan, *some, grad, *operands),
            reference.tensor_product_double_backward(plan, *filled, grad, *operands),
            strict=True,
        ):
            np.testing.assert_array_equal(actual, expected)


# Convolutions


def edge_by_edge(plan, x, y, weight, senders, receivers):
    out = np.zeros((len(x), plan.irreps_out.dim))
    for edge, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
        row = weight if weight.ndim == 1 else weight[edge : edge + 1]
        out[receiver] += reference.tensor_product(plan, x[sender : sender + 1], y[edge : edge + 1], row)[0]
    return out


@settings(max_examples=25)
@given(random_plans(max_terms=1000), random_graphs(edges=(0, 1, 7)), st.booleans())
def test_a_convolution_is_its_edges(plan, graph, shared):
    operands = random_operands(plan, len(graph.senders), num_nodes=graph.num_nodes, shared=shared)
    ends = (graph.senders, graph.receivers)
    out = reference.convolution(plan, *operands, *ends)
    np.testing.assert_allclose(out, edge_by_edge(plan, *operands, *ends), rtol=1e-12, atol=1e-12)


@settings(max_examples=25)
@given(random_plans(max_terms=1000), random_graphs(edges=(0, 1, 7)), st.booleans(), st.integers(0, 10**6))
def test_derivatives_of_a_convolution_are_differences(plan, graph, shared, seed):
    rng = np.random.default_rng(seed)
    operands = random_operands(plan, len(graph.senders), num_nodes=graph.num_nodes, shared=shared, seed=seed)
    ends = (graph.senders, graph.receivers)
    grad = rng.standard_normal((graph.num_nodes, plan.irreps_out.dim))
    tangents, directions = random_tangents(rng, operands), random_tangents(rng, (grad, *operands))

    def moved(t):
        return [a + t * d for a, d in zip((grad, *operands), directions, strict=True)]

    def first(t):
        return np.sum(grad * reference.convolution(plan, *moved(t)[1:], *ends))

    def second(t):
        grads = reference.convolution_backward(plan, *moved(t), *ends)
        return sum(np.sum(a * g) for a, g in zip(tangents, grads, strict=True))

    # both are polynomials of degree at most 4 in t: the difference formula is exact
    backward = reference.convolution_backward(plan, grad, *operands, *ends)
    double = reference.convolution_double_backward(plan, *tangents, grad, *operands, *ends)
    for function, pairs in (
        (first, zip(directions[1:], backward, strict=True)),
        (second, zip(directions, double, strict=True)),
    ):
        values = [np.sum(d * g) for d, g in pairs]
        scale = 1 + max(abs(function(t)) for t in (-1, 0, 1)) + sum(map(abs, values))
        assert sum(values) == pytest.approx(derivative(function, step=0.5), rel=1e-10, abs=1e-11 * scale)


def test_a_graph_without_edges_gives_zeros():
    plan = ProductPlan.from_instructions("2x1o", "1x1o", "2x0e", [(0, 0, 0, "uvu", True)])
    for num_nodes in (0, 3):
        operands = random_operands(plan, 0, num_nodes=num_nodes)
        none = np.zeros(0, np.int64)
        np.testing.assert_array_equal(
            reference.convolution(plan, *operands, none, none), np.zeros((num_nodes, 2))
        )
        grads = reference.convolution_backward(plan, np.ones((num_nodes, 2)), *operands, none, none)
        assert [g.shape for g in grads] == [o.shape for o in operands]


# Linear layers


def linear_operands(plan, biased, bias_per_row, rng, rows=3):
    """x, weight, bias and the cotangent of the output."""
    biases = sum(plan.irreps_out[block].mul for block in biased)
    shapes = (
        (rows, plan.irreps_in1.dim),
        (plan.weight_numel,),
        (rows, biases) if bias_per_row else (biases,),
        (rows, plan.irreps_out.dim),
    )
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_a_linear_layer_by_hand(layout, rng):
    """Two blocks of 1o into one, one of 0e with a bias, and 2e, which nothing reaches."""
    paths = ((0, 0, 2, "uvw", True, 2.0), (2, 0, 1, "uvw", True, -0.5), (1, 0, 1, "uvw", True, 1.5))
    plan = ProductPlan("2x0e+3x1o+4x1o", "1x0e", "1x2e+2x1o+5x0e", paths, layout)
    a, w, b, g = linear_operands(plan, (2,), False, rng)
    w0, w2, w1 = w[:10].reshape(2, 5), w[10:18].reshape(4, 2), w[18:].reshape(3, 2)

    def block(features, start, mul):
        part = features[:, start : start + 3 * mul]
        return part.reshape(3, mul, 3) if layout == "mul_ir" else part.reshape(3, 3, mul).swapaxes(1, 2)

    def row(block):
        return (block if layout == "mul_ir" else block.swapaxes(1, 2)).reshape(3, -1)

    x0, x1, x2 = a[:, :2], block(a, 2, 3), block(a, 11, 4)
    g0, g1 = g[:, 11:], block(g, 5, 2)
    c1, c2 = 1.5 / 3**0.5, -0.5 / 3**0.5
    vectors = c1 * np.einsum("rum,uw->rwm", x1, w1) + c2 * np.einsum("rum,uw->rwm", x2, w2)
    expected = {
        "out": np.hstack([np.zeros((3, 5)), row(vectors), 2 * x0 @ w0 + b]),
        "grad_x": np.hstack(
            [
                2 * g0 @ w0.T,
                row(c1 * np.einsum("rwm,uw->rum", g1, w1)),
                row(c2 * np.einsum("rwm,uw->rum", g1, w2)),
            ]
        ),
        "grad_weight": np.hstack(
            [
                2 * np.einsum("ru,rw->uw", x0, g0).ravel(),
                c2 * np.einsum("rum,rwm->uw", x2, g1).ravel(),
                c1 * np.einsum("rum,rwm->uw", x1, g1).ravel(),
            ]
        ),
        "grad_bias": g0.sum(axis=0),
        "grad_bias of each row": g0,
    }
    actual = (
        reference.linear(plan, a, w, b, (2,)),
        reference.linear_grad_x(plan, g, w),
        reference.linear_grad_weight(plan, a, g),
        reference.linear_grad_bias(plan, g, (2,)),
        reference.linear_grad_bias(plan, g, (2,), True),
    )
    for (name, wanted), found in zip(expected.items(), actual, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-14, err_msg=name)


@settings(max_examples=40)
@given(random_linear_plans(), st.integers(0, 10**6))
def test_a_linear_layer_is_the_product_with_one(plan_and_biased, seed):
    plan, _ = plan_and_biased
    a, w, _, g = linear_operands(plan, (), False, np.random.default_rng(seed))
    one = np.ones((3, 1))
    grad_x, _, grad_weight = reference.tensor_product_backward(plan, g, a, one, w)
    for found, wanted in (
        (reference.linear(plan, a, w), reference.tensor_product(plan, a, one, w)),
        (reference.linear_grad_x(plan, g, w), grad_x),
        (reference.linear_grad_weight(plan, a, g), grad_weight),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(random_linear_plans(), st.sampled_from((1, 2, 5)), st.integers(0, 10**6))
def test_a_linear_layer_with_an_index_is_the_product_with_one_hot_rows(plan_and_biased, elements, seed):
    plan, biased = plan_and_biased
    plan = ProductPlan(plan.irreps_in1, f"{elements}x0e", plan.irreps_out, plan.paths, plan.layout)
    rng = np.random.default_rng(seed)
    a, w, b, g = linear_operands(plan, biased, False, rng)
    index = rng.integers(0, elements, 3)
    y = np.eye(elements)[index]
    grad_x, _, grad_weight = reference.tensor_product_backward(plan, g, a, y, w)
    bias = reference.linear(plan, a, np.zeros_like(w), b, biased, index)
    for found, wanted in (
        (reference.linear(plan, a, w, index=index), reference.tensor_product(plan, a, y, w)),
        (reference.linear(plan, a, w, b, biased, index) - bias, reference.tensor_product(plan, a, y, w)),
        (reference.linear_grad_x(plan, g, w, index), grad_x),
        (reference.linear_grad_weight(plan, a, g, index), grad_weight),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(random_linear_plans(), st.booleans(), st.integers(0, 10**6))
def test_derivatives_of_a_linear_layer_are_differences(plan_and_biased, bias_per_row, seed):
    plan, biased = plan_and_biased
    rng = np.random.default_rng(seed)
    *point, g = linear_operands(plan, biased, bias_per_row, rng)
    directions = random_tangents(rng, point)

    def value(t):
        moved = [a + t * d for a, d in zip(point, directions, strict=True)]
        return np.sum(g * reference.linear(plan, *moved, biased))

    gradients = (
        reference.linear_grad_x(plan, g, point[1]),
        reference.linear_grad_weight(plan, point[0], g),
        reference.linear_grad_bias(plan, g, biased, bias_per_row),
    )
    assert [gradient.shape for gradient in gradients] == [a.shape for a in point]
    products = [np.sum(d * gradient) for d, gradient in zip(directions, gradients, strict=True)]
    # a polynomial of degree 2 in t: the central difference is exact
    scale = 1 + max(abs(value(t)) for t in (-1, 0, 1)) + sum(map(abs, products))
    assert sum(products) == pytest.approx((value(1) - value(-1)) / 2, rel=1e-10, abs=1e-11 * scale)


@settings(max_examples=25)
@given(random_linear_plans(l_max=3), st.integers(0, 10**6))
def test_a_linear_layer_is_e3nns(plan_and_biased, seed):
    plan, _ = plan_and_biased
    # e3nn takes no coefficients, and fails at a bias alone in its block
    pairs = [(path.i_in1, path.i_out) for path in plan.paths]
    reached = {i_out for i_in, i_out in pairs if plan.irreps_in1[i_in].mul > 0}
    has_bias = [i in reached and str(ir) == "0e" for i, (_, ir) in enumerate(plan.irreps_out)]
    layer = o3.Linear(
        str(plan.irreps_in1),
        str(plan.irreps_out),
        instructions=pairs,
        biases=has_bias,
        internal_weights=False,
    )
    weighted = [ins for ins in layer.instructions if ins.i_in >= 0]
    paths = tuple(
        (ins.i_in, 0, ins.i_out, "uvw", True, ins.path_weight * plan.irreps_in1[ins.i_in].ir.dim ** 0.5)
        for ins in weighted
    )
    plan = ProductPlan(plan.irreps_in1, "1x0e", plan.irreps_out, paths)
    biased = [i for i, present in enumerate(has_bias) if present]
    a, w, b, _ = linear_operands(plan, biased, False, np.random.default_rng(seed))
    expected = layer(*map(torch.tensor, (a, w, b))).numpy()
    np.testing.assert_allclose(reference.linear(plan, a, w, b, biased), expected, rtol=1e-12, atol=1e-12)


# Magnitudes


def test_magnitude_and_term_counts_of_a_linear_layer():
    plan = ProductPlan("2x1o", "1x0e", "1x1o+1x0e", ((0, 0, 0, "uvw", True, -(3**0.5)),))
    a, w, g = [[1.0, 0.0, 0.0, -3.0, 0.0, 0.0]], [2.0, 5.0], [[1.0, -1.0, 1.0, 4.0]]
    for function, arguments, value, magnitude, count in (
        (reference.linear, (a, w, [-7.0], (1,)), [13, 0, 0, -7], [17, 0, 0, 7], [2, 2, 2, 1]),
        (reference.linear_grad_x, (g, w), [-2, 2, -2, -5, 5, -5], [2, 2, 2, 5, 5, 5], [1] * 6),
        (reference.linear_grad_weight, (a, g), [-1, 3], [1, 3], [3, 3]),
        (reference.linear_grad_bias, (g, (1,)), [4], [4], [1]),
    ):
        for found, wanted in (
            (function(plan, *arguments), value),
            (reference.magnitude(function, plan, *arguments), magnitude),
            (reference.term_counts(function, plan, *arguments), count),
        ):
            np.testing.assert_allclose(found.ravel(), wanted, rtol=1e-13)


@settings(max_examples=25)
@given(random_linear_plans(), st.booleans(), st.integers(0, 10**6))
def test_no_result_of_a_linear_layer_exceeds_its_magnitude(plan_and_biased, bias_per_row, seed):
    plan, biased = plan_and_biased
    a, w, b, g = linear_operands(plan, biased, bias_per_row, np.random.default_rng(seed))
    for function, arguments in (
        (reference.linear, (a, w, b, biased)),
        (reference.linear_grad_x, (g, w)),
        (reference.linear_grad_weight, (a, g)),
        (reference.linear_grad_bias, (g, biased, bias_per_row)),
    ):
        result = function(plan, *arguments)
        magnitude = reference.magnitude(function, plan, *arguments)
        count = reference.term_counts(function, plan, *arguments)
        assert result.shape == magnitude.shape == count.shape
        assert np.all(np.abs(result) <= magnitude * (1 + 1e-12))
        assert np.all((count > 0) | (result == 0)) and np.array_equal(count, np.round(count))


def test_magnitude_and_term_counts_of_a_product():
    plan = ProductPlan.from_instructions("1x1o", "1x1o", "1x0e", [(0, 0, 0, "uuu", True)])
    a, b, w = [[1.0, -2.0, 3.0]], [[1.0, 1.0, -1.0]], [[-2.0]]
    value = reference.tensor_product(plan, a, b, w)[0, 0]
    assert value == pytest.approx(8 / 3**0.5)  # -2 (1 - 2 - 3) / sqrt 3
    assert reference.magnitude(reference.tensor_product, plan, a, b, w)[0, 0] == pytest.approx(12 / 3**0.5)
    assert reference.term_counts(reference.tensor_product, plan, a, b, w)[0, 0] == 3
    counts = reference.term_counts(reference.tensor_product_backward, plan, [[1.0]], a, b, w)
    assert [count.tolist() for count in counts] == [[[1.0] * 3], [[1.0] * 3], [[3.0]]]


@settings(max_examples=25)
@given(random_plans(max_terms=1000), random_graphs(edges=(0, 1, 7)), st.booleans())
def test_no_result_exceeds_its_magnitude(plan, graph, shared):
    operands = random_operands(plan, len(graph.senders), num_nodes=graph.num_nodes, shared=shared)
    rng = np.random.default_rng(2)
    grad = rng.standard_normal((graph.num_nodes, plan.irreps_out.dim))
    arguments = (plan, *random_tangents(rng, operands), grad, *operands, graph.senders, graph.receivers)
    results = reference.convolution_double_backward(*arguments)
    magnitudes = reference.magnitude(reference.convolution_double_backward, *arguments)
    counts = reference.term_counts(reference.convolution_double_backward, *arguments)
    for result, magnitude, count in zip(results, magnitudes, counts, strict=True):
        assert result.shape == magnitude.shape == count.shape
        assert np.all(np.abs(result) <= magnitude * (1 + 1e-12))
        assert np.all((count > 0) | (result == 0)) and np.array_equal(count, np.round(count))


@pytest.mark.parametrize("normalize", [True, False])
def test_no_harmonic_exceeds_its_magnitude(normalize, rng):
    points = np.concatenate([rng.standard_normal((50, 3)), AWKWARD_POINTS])
    dim = sum(2 * l + 1 for l in UNSORTED)
    grad, tangent = rng.standard_normal((len(points), dim)), rng.standard_normal(points.shape)
    options = (points, normalize, "component")
    for function, arguments in (
        (reference.spherical_harmonics, ()),
        (reference.spherical_harmonics_backward, (grad,)),
        (reference.spherical_harmonics_double_backward, (tangent, grad)),
    ):
        results, magnitudes, counts = (
            made if isinstance(made, tuple) else (made,)
            for made in (
                function(UNSORTED, *arguments, *options),
                reference.magnitude(function, UNSORTED, *arguments, *options),
                reference.term_counts(function, UNSORTED, *arguments, *options),
            )
        )
        for result, magnitude, count in zip(results, magnitudes, counts, strict=True):
            assert result.shape == magnitude.shape == count.shape
            assert np.all(np.abs(result) <= magnitude * (1 + 1e-12))


def test_the_irreps_of_harmonics_have_their_dimension():
    assert (
        Irreps.spherical_harmonics(12).dim
        == reference.spherical_harmonics(ALL_DEGREES, [1, 2, 3], True, "norm").size
    )
