"""silu(x) = x / (1 + exp(-x)), number by number, with its derivatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def silu(x: ArrayLike) -> Array:
    """x s(x), with s(x) = 1 / (1 + exp(-x))."""
    x = np.asarray(x, np.float64)
    return x * _sigmoid(x)


def silu_backward(grad: ArrayLike, x: ArrayLike) -> Array:
    """grad silu'(x): since s' = s(x) s(-x), silu' = s(x) + x s(x) s(-x)."""
    x = np.asarray(x, np.float64)
    s, rest = _sigmoid(x), _sigmoid(-x)
    return np.asarray(grad, np.float64) * (s + x * s * rest)


def silu_double_backward(grad_grad_x: ArrayLike, grad: ArrayLike, x: ArrayLike) -> tuple[Array, Array]:
    """Gradients of <grad_grad_x, silu_backward(grad, x)> with respect to grad and x."""
    x = np.asarray(x, np.float64)
    s, rest = _sigmoid(x), _sigmoid(-x)
    second = 2 * s * rest + x * s * rest * (rest - s)
    return silu_backward(grad_grad_x, x), np.asarray(grad_grad_x, np.float64) * grad * second


def _sigmoid(x: Array) -> Array:
    """Without overflow, and to the last digits on both sides."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)
