"""Gates: scalars, and irreps of which each is multiplied by a scalar of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def gate(scalars: ArrayLike, gates: ArrayLike, gated: ArrayLike, copies: Sequence[tuple[int, int]]) -> Array:
    """(rows, scalars and gated side by side); copies: (multiplicity, components) of the blocks of gated."""
    scalars, gates, gated = (np.asarray(operand, np.float64) for operand in (scalars, gates, gated))
    return np.concatenate((scalars, gates[:, _owners(copies)] * gated), axis=1)


def gate_backward(
    grad: ArrayLike, gates: ArrayLike, gated: ArrayLike, copies: Sequence[tuple[int, int]]
) -> tuple[Array, Array]:
    """Gradients of <grad, gate(scalars, gates, gated)> with respect to gates and gated."""
    gates, gated = (np.asarray(operand, np.float64) for operand in (gates, gated))
    grad = np.asarray(grad, np.float64)[:, -gated.shape[1] or np.shape(grad)[1] :]
    owners = _owners(copies)
    grad_gates = np.zeros(gates.shape)
    for column, owner in enumerate(owners):
        grad_gates[:, owner] += grad[:, column] * gated[:, column]
    return grad_gates, gates[:, owners] * grad


def _owners(copies: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Which gate each column of gated belongs to."""
    widths = [width for multiplicity, width in copies for _ in range(multiplicity)]
    return np.repeat(np.arange(len(widths)), widths)
