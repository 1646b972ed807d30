"""A layer with random operands, and what must come out.

Operands are numbers that float32 holds exactly, so that one reference serves both types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.survey import Layer
from clebsch.testing import tolerance

__all__ = ["Array", "Arrays", "Draws", "Expected", "Problem", "Unknown", "derivatives"]

Array = NDArray[np.float64]
Arrays = tuple[Array, ...]


class Unknown(Exception):
    """Why there is no problem for a layer."""


class Expected(NamedTuple):
    """A result, the sum over the absolute values of its terms, and their number: see `testing.tolerance`."""

    value: Array
    magnitude: Array
    terms: Array

    def bound(self, dtype: torch.dtype) -> Array:
        """How far each number may be off where it is computed in `dtype`."""
        return tolerance(self.magnitude, self.terms, dtype)


class Draws:
    """Normally distributed numbers that float32 holds, as float64 or, to save memory, as they are."""

    def __init__(self, seed: int, dtype: Any = np.float64) -> None:
        self.rng, self.dtype = np.random.default_rng(seed), dtype

    def __call__(self, *shape: int) -> NDArray:
        return self.rng.standard_normal(shape, np.float32).astype(self.dtype, copy=False)


class Problem:
    """A layer's operands, its call, and what is expected of it.

    names, operands: of what the layer is a function, float64. spaces: the irreps of each operand, None for
    what rotations leave alone (weights). call: the layer, of as many tensors. is_multilinear: whether the
    magnitudes of results grow with the absolute values of operands.
    """

    names: tuple[str, ...]
    spaces: tuple[Irreps | None, ...]
    space_out: Irreps
    layout: str = "mul_ir"
    is_multilinear = False
    plan: ProductPlan | None = None

    def __init__(self, layer: Layer, draw: Draws) -> None:
        self.layer, self.module = layer, layer.module
        self.draw, self.rng = draw, draw.rng
        self.operands: Arrays = ()

    def call(self, *operands: Tensor) -> Tensor:
        """The layer itself, without the hooks that its user hung on it."""
        raise NotImplementedError

    def with_own_weights(self) -> tuple[Arrays, Callable[[Tensor], Tensor]] | None:
        """The operands with the weights that the layer holds, and its call that takes these and not what is
        given; None if it holds none."""
        return None

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """The operands as leaves that derivatives are taken for."""
        return [torch.from_numpy(operand).to(dtype).requires_grad_() for operand in self.operands]

    @cached_property
    def cotangent(self) -> Array:
        """What the output is contracted with for gradients."""
        return self.draw(*self.output(self.operands).value.shape)

    @cached_property
    def tangents(self) -> Arrays:
        """What the gradients are contracted with for second derivatives."""
        return tuple(self.draw(*operand.shape) for operand in self.operands)

    def output(self, operands: Arrays) -> Expected:
        """What the layer must give."""
        raise NotImplementedError

    def gradients(self) -> tuple[Expected, ...]:
        """Of <cotangent, output>, with respect to each operand."""
        raise NotImplementedError

    def second_gradients(self) -> tuple[Expected, ...]:
        """Of the gradients contracted with the tangents, with respect to the cotangent and each operand."""
        raise NotImplementedError


def derivatives(
    function: Callable[..., Tensor], operands: list[Tensor], cotangent: Any, tangents: Sequence[Any]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """function(*operands), the gradients of it with `cotangent`, and of these with `tangents` the gradients
    with respect to the cotangent and the operands; zeros for what nothing depends on.
    """
    dtype = operands[0].dtype
    out = function(*operands)
    grad = torch.as_tensor(cotangent).to(dtype).requires_grad_()
    tangents = [torch.as_tensor(tangent).to(dtype) for tangent in tangents]
    first = _gradients([out], operands, [grad], True)
    second = _gradients(first, [grad, *operands], tangents, False)
    return out.detach(), tuple(value.detach() for value in first), second


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
) -> tuple[Tensor, ...]:
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(value) for value in inputs)
    outputs, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(
        outputs, inputs, cotangents, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
