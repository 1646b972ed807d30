"""How far a result in floating point may be from the reference, before units of rounding are counted.

For a sum of products, |computed - exact| <= gamma_n * (the same sum over absolute values), n being the number
of terms, whatever the order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
sections 3.1 and 3.5). So the magnitude of a product or a linear layer is its own form with every number
replaced by its absolute value, and the number of its terms is the form with every number replaced by 1. Where
a sum is over numbers that are sums themselves, the terms of both count, added and not multiplied, since
(1 + gamma_m)(1 + gamma_n) <= 1 + gamma_(m + n).

A harmonic is one polynomial that can be computed in many ways, and the absolute values of one way say nothing
of the others. Its magnitude is the norm of its degree: |Y^l| for values, the Frobenius norms of the first and
second derivatives of Y^l for gradients, all of which rotations leave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..algebra.plan import ProductPlan
from .convolution import convolution, convolution_backward, convolution_double_backward
from .linear import linear, linear_grad_bias, linear_grad_weight, linear_grad_x, matrices
from .radial_convolution import (
    radial_convolution,
    radial_convolution_backward,
    radial_convolution_double_backward,
)
from .spherical_harmonics import (
    SHORTEST,
    derivatives,
    scale,
    spherical_harmonics,
    spherical_harmonics_backward,
    spherical_harmonics_double_backward,
)
from .tensor_product import terms

Array = NDArray[np.float64]


def magnitude(function: Callable[..., Any], *arguments: Any) -> Any:
    """Magnitudes of ``function(*arguments)``, one of this package's functions: arrays of the same shapes."""
    if isinstance(arguments[0], ProductPlan):
        form = _form(function, arguments[0])
        return function(form._replace(value=np.abs(form.value)), *_numbers(np.abs, arguments[1:]))
    return _HARMONIC_MAGNITUDES[function](*arguments)


def term_counts(function: Callable[..., Any], *arguments: Any) -> Any:
    """How many terms each number of ``function(*arguments)`` sums: arrays of the same shapes."""
    if function in _RADIAL_COUNTS:
        return _RADIAL_COUNTS[function](*arguments)
    if isinstance(arguments[0], ProductPlan):
        form = _form(function, arguments[0])
        return function(form._replace(value=np.ones_like(form.value)), *_numbers(np.ones_like, arguments[1:]))
    ls = arguments[0]
    sizes = _HARMONIC_MAGNITUDES[function](*arguments)
    # A polynomial of degree l takes about 2l products and sums, after the root and the division of normalize;
    # each enters the derivatives too, which sum over all components of all degrees.
    if function is spherical_harmonics:
        return np.broadcast_to(np.repeat([4 * l + 8 for l in ls], [2 * l + 1 for l in ls]), sizes.shape)
    count = sum(2 * l + 1 for l in ls) + 4 * max(ls, default=0) + 16
    if isinstance(sizes, tuple):
        return tuple(np.full(size.shape, count) for size in sizes)
    return np.full(sizes.shape, count)


def _form(function: Callable[..., Any], plan: ProductPlan) -> Any:
    """The numbers of a plan as `function` takes them."""
    of_linear = function in (linear, linear_grad_x, linear_grad_weight, linear_grad_bias)
    return matrices(plan) if of_linear else terms(plan)


def _numbers(change: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """`change` applied to what is a real array; index arrays and None stay."""

    def is_real(argument: Any) -> bool:
        return argument is not None and np.asarray(argument).dtype.kind == "f"

    return [change(np.asarray(argument)) if is_real(argument) else argument for argument in arguments]


# A radial convolution sums over the H columns of hidden first, then as a convolution with such weights does;
# the gradient of hidden sums over weights after that, the gradient of the matrix over edges.


def _weights(hidden: ArrayLike, matrix: ArrayLike) -> tuple[Array, int]:
    """Stand-ins for the weights (edges, numel), and H."""
    return np.ones((len(hidden), np.shape(matrix)[1])), np.shape(matrix)[0]


def _radial(plan: ProductPlan, x: Any, y: Any, hidden: Any, matrix: Any, *edges: Any) -> Array:
    weights, size = _weights(hidden, matrix)
    return term_counts(convolution, plan, x, y, weights, *edges) + size


def _radial_first(
    plan: ProductPlan, grad: Any, x: Any, y: Any, hidden: Any, matrix: Any, *edges: Any
) -> tuple[Array, ...]:
    weights, size = _weights(hidden, matrix)
    *inputs, weight = term_counts(convolution_backward, plan, grad, x, y, weights, *edges)
    return (*(counts + size for counts in inputs), *_of_factors(weight, size))


def _radial_second(
    plan: ProductPlan,
    ax: Any,
    ay: Any,
    ahidden: Any,
    amatrix: Any,
    grad: Any,
    x: Any,
    y: Any,
    hidden: Any,
    matrix: Any,
    *edges: Any,
) -> tuple[Array, ...]:
    weights, size = _weights(hidden, matrix)
    aw = None if ahidden is None and amatrix is None else weights
    given = plan, ax, ay, aw, grad, x, y, weights, *edges
    *inputs, weight = term_counts(convolution_double_backward, *given)
    first = term_counts(convolution_backward, plan, grad, x, y, weights, *edges)[2]
    # of each factor two sums, over the second and the first derivative, added
    factors = (a + b for a, b in zip(_of_factors(weight, size), _of_factors(first, size), strict=True))
    return (*(counts + 2 * size for counts in inputs), *factors)


def _of_factors(weight: Array, size: int) -> tuple[Array, Array]:
    """Counts for hidden and matrix, given those for the weights: the largest that a sum meets counts."""
    edges, numel = weight.shape
    hidden = np.broadcast_to(numel + weight.max(axis=1, initial=0)[:, None], (edges, size))
    return hidden, np.broadcast_to(edges + weight.max(axis=0, initial=0), (size, numel))


_RADIAL_COUNTS: dict[Callable[..., Any], Callable[..., Any]] = {
    radial_convolution: _radial,
    radial_convolution_backward: _radial_first,
    radial_convolution_double_backward: _radial_second,
}


@cache
def _norms(l: int, normalization: str) -> tuple[float, float, float]:
    """Norms of Y^l and of its first and second derivatives anywhere on the unit sphere."""
    first, second = derivatives([l], [0.0, 1.0, 0.0], False, normalization)
    return scale(l, normalization), float(np.linalg.norm(first)), float(np.linalg.norm(second))


def _sizes(
    ls: Sequence[int], points: ArrayLike, normalize: bool, normalization: str
) -> Iterator[tuple[int, Array, Array, Array]]:
    """For each l, the norms (...) of Y^l(points) and of its first and second derivatives, at most."""
    length = np.linalg.norm(np.asarray(points, np.float64), axis=-1)
    divisor = np.maximum(length, SHORTEST) if normalize else np.ones_like(length)
    radius = length / divisor
    for l in ls:
        value, first, second = _norms(l, normalization)
        gradient = first * radius ** max(l - 1, 0) / divisor
        hessian = second * radius ** max(l - 2, 0) / divisor**2
        # the direction itself bends: its second derivative is at most 3 / length^2
        yield l, value * radius**l, gradient, hessian + (3 * gradient / divisor if normalize else 0)


def _values(ls: Sequence[int], *arguments: Any) -> Array:
    shape = (*np.shape(arguments[0])[:-1], 0)
    parts = [np.repeat(value[..., None], 2 * l + 1, -1) for l, value, _, _ in _sizes(ls, *arguments)]
    return np.concatenate([np.zeros(shape), *parts], axis=-1)


def _gradients(ls: Sequence[int], grad: ArrayLike, *arguments: Any) -> Array:
    total = np.zeros(np.shape(arguments[0]))
    for norm, (_, _, gradient, _) in zip(_norms_by_degree(ls, grad), _sizes(ls, *arguments), strict=True):
        total += (norm * gradient)[..., None]
    return total


def _second_gradients(
    ls: Sequence[int], grad_grad_points: ArrayLike, grad: ArrayLike, *arguments: Any
) -> tuple[Array, Array]:
    tangent = np.linalg.norm(np.asarray(grad_grad_points, np.float64), axis=-1)
    grad_points, parts = np.zeros(np.shape(arguments[0])), [np.zeros((*tangent.shape, 0))]
    for norm, (l, _, gradient, hessian) in zip(
        _norms_by_degree(ls, grad), _sizes(ls, *arguments), strict=True
    ):
        parts.append(np.repeat((tangent * gradient)[..., None], 2 * l + 1, -1))
        grad_points += (norm * tangent * hessian)[..., None]
    return np.concatenate(parts, axis=-1), grad_points


def _norms_by_degree(ls: Sequence[int], grad: ArrayLike) -> Iterator[Array]:
    """The norms of the blocks (..., 2l+1) of `grad`."""
    ends = np.cumsum([2 * l + 1 for l in ls])
    blocks = np.split(np.asarray(grad, np.float64), ends[:-1].astype(int), axis=-1) if len(ls) else []
    return (np.linalg.norm(block, axis=-1) for block in blocks)


_HARMONIC_MAGNITUDES: dict[Callable[..., Any], Callable[..., Any]] = {
    spherical_harmonics: _values,
    spherical_harmonics_backward: _gradients,
    spherical_harmonics_double_backward: _second_gradients,
}
