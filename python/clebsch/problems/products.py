"""What the reference computes: products, over rows and graphs, `Linear` as one of them, and harmonics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clebsch import reference
from clebsch.algebra.plan import Path, ProductPlan
from clebsch.e3nn.linear import axes
from clebsch.graph import Graph
from clebsch.o3.irreps import Irreps
from clebsch.problems.expected import Array, Arrays, Draws, Expected, Problem, Unknown
from clebsch.survey import PRODUCTS, Layer, product_plan

__all__ = ["REFERENCED", "linear_plan"]


def _three(function: Callable[..., Any], *arguments: Any) -> list[Expected]:
    """Each result of a function of `reference` with its magnitude and number of terms."""
    parts = (
        value if isinstance(value, tuple) else (value,)
        for value in (
            function(*arguments),
            reference.magnitude(function, *arguments),
            reference.term_counts(function, *arguments),
        )
    )
    return [Expected(*columns) for columns in zip(*parts, strict=True)]


def _plus(*parts: Expected) -> Expected:
    """The sum of results of equal shapes."""
    return Expected(*(sum(column[1:], column[0]) for column in zip(*parts, strict=True)))


class _Product(Problem):
    """x, y and weight, over rows."""

    noun = "tensor_product"
    names = ("x", "y", "weight")
    is_multilinear = True

    def __init__(self, layer: Layer, draw: Draws, rows: int, edges_per_node: float) -> None:
        super().__init__(layer, draw)
        self.plan = product_plan(layer)
        self.layout = self.plan.layout
        self.spaces = (self.plan.irreps_in1, self.plan.irreps_in2, None)
        self.space_out = self.plan.irreps_out
        self.rows = rows
        self.operands = self._draw_operands()

    def _draw_operands(self) -> Arrays:
        x, y = (self.draw(self.rows, space.dim) for space in self.spaces[:2])
        return x, y, self._draw_weight()

    def _draw_weight(self) -> Array:
        shared = self.module.shared_weights or self.plan.weight_numel == 0
        return self.draw(*(() if shared else (self.rows,)), self.plan.weight_numel)

    @property
    def edges(self) -> tuple[Any, ...]:
        """What follows the operands in a call of the reference."""
        return ()

    def call(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return self.module.forward(x, y, weight if self.plan.weight_numel else None)

    def with_own_weights(self) -> tuple[Arrays, Callable[..., Tensor]] | None:
        if not (self.module.internal_weights and self.plan.weight_numel):
            return None
        own = self.module.weight.detach().double().numpy()
        return (*self.operands[:-1], own), lambda *operands: self._call_unweighted(*operands[:-1])

    def _call_unweighted(self, x: Tensor, y: Tensor) -> Tensor:
        return self.module.forward(x, y)

    def _reference(self, suffix: str, *arguments: Any) -> list[Expected]:
        return _three(getattr(reference, self.noun + suffix), self.plan, *arguments, *self.edges)

    def output(self, operands: Arrays) -> Expected:
        (out,) = self._reference("", *operands)
        return out

    def gradients(self) -> tuple[Expected, ...]:
        return tuple(self._reference("_backward", self.cotangent, *self.operands))

    def second_gradients(self) -> tuple[Expected, ...]:
        return tuple(self._reference("_double_backward", *self.tangents, self.cotangent, *self.operands))


class _Convolution(_Product):
    """The same along the edges of a random graph, with isolated nodes, loops and repeated edges."""

    noun = "convolution"

    def __init__(self, layer: Layer, draw: Draws, rows: int, edges_per_node: float) -> None:
        self.num_nodes = max(2, math.ceil(rows / edges_per_node))
        self.is_sorted = edges_per_node > 3  # to be timed, with neighbours listed node by node as usual
        super().__init__(layer, draw, rows, edges_per_node)

    def _draw_operands(self) -> Arrays:
        x = self.draw(self.num_nodes, self.spaces[0].dim)
        y = self.draw(self.rows, self.spaces[1].dim)
        # the last node has no edge
        self.senders, self.receivers = self.rng.integers(self.num_nodes - 1, size=(2, self.rows))
        if self.is_sorted:
            self.receivers.sort()
        self.graph = Graph(*map(torch.from_numpy, (self.senders, self.receivers)), self.num_nodes)
        return x, y, self._draw_weight()

    @property
    def edges(self) -> tuple[Any, ...]:
        return self.senders, self.receivers

    def call(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return self.module.forward(x, y, weight if self.plan.weight_numel else None, self.graph)

    def _call_unweighted(self, x: Tensor, y: Tensor) -> Tensor:
        return self.module.forward(x, y, None, self.graph)


class _Square(_Product):
    """The product of x with itself."""

    names = ("x", "weight")

    def __init__(self, layer: Layer, draw: Draws, rows: int, edges_per_node: float) -> None:
        super().__init__(layer, draw, rows, edges_per_node)
        self.spaces = (self.plan.irreps_in1, None)

    def _draw_operands(self) -> Arrays:
        return self.draw(self.rows, self.spaces[0].dim), self._draw_weight()

    def call(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.module.forward(x, weight if self.plan.weight_numel else None)

    def _call_unweighted(self, x: Tensor) -> Tensor:
        return self.module.forward(x)

    def output(self, operands: Arrays) -> Expected:
        x, weight = operands
        return super().output((x, x, weight))

    def gradients(self) -> tuple[Expected, ...]:
        x, weight = self.operands
        left, right, own = self._reference("_backward", self.cotangent, x, x, weight)
        return _plus(left, right), own

    def second_gradients(self) -> tuple[Expected, ...]:
        x, weight = self.operands
        ax, aw = self.tangents
        grad, left, right, own = self._reference("_double_backward", ax, ax, aw, self.cotangent, x, x, weight)
        return grad, _plus(left, right), own


def _axes(module: Any) -> tuple[int | None, int | None]:
    try:
        return axes(module)
    except ValueError as reason:
        raise Unknown(str(reason)) from None


def linear_plan(module: Any) -> ProductPlan:
    """`Linear` as a product with the scalar 1: of features, their axes flattened, with weights likewise.

    C^{l0l} is 1 / sqrt(2l + 1) on its diagonal. Blocks repeat for every place of the additional axes f_in and
    f_out, so that weights ([f_in, f_out,] weight_numel) are in the order of the paths.
    """
    f_in, f_out = (size or 1 for size in _axes(module))
    irreps_in, irreps_out = Irreps(str(module.irreps_in)), Irreps(str(module.irreps_out))
    paths = tuple(
        Path(
            i * len(irreps_in) + ins.i_in,
            0,
            o * len(irreps_out) + ins.i_out,
            "uvw",
            True,
            float(ins.path_weight) * irreps_in[ins.i_in].ir.dim ** 0.5,
        )
        for i in range(f_in)
        for o in range(f_out)
        for ins in module.instructions
        if ins.i_in >= 0
    )
    return ProductPlan(f_in * list(irreps_in), "0e", f_out * list(irreps_out), paths)


class _Linear(Problem):
    """features, weight and bias: a product with the scalar 1, and the bias added."""

    names = ("features", "weight", "bias")
    is_multilinear = True

    def __init__(self, layer: Layer, draw: Draws, rows: int, edges_per_node: float) -> None:
        super().__init__(layer, draw)
        self.plan = linear_plan(self.module)
        f_in, f_out = _axes(self.module)
        self.spaces = (self.plan.irreps_in1, None, None)
        self.space_out = self.plan.irreps_out
        own = Irreps(str(self.module.irreps_out))
        slices = own.slices()
        biased = [slices[ins.i_out] for ins in self.module.instructions if ins.i_in < 0]
        columns = np.concatenate([np.zeros(0, np.int64), *(np.arange(s.start, s.stop) for s in biased)])
        self.columns = (np.arange(f_out or 1)[:, None] * own.dim + columns).ravel().astype(np.int64)
        axes = () if f_in is None else (f_in, f_out)
        self.shapes = (
            (rows, *axes[:1], -1),
            (*(() if self.module.shared_weights else (rows,)), *axes, -1),
            (*axes[1:], -1),
        )
        self.one = np.ones((rows, 1))
        weight = (self.plan.weight_numel,) if self.module.shared_weights else (rows, self.plan.weight_numel)
        self.operands = (
            self.draw(rows, self.plan.irreps_in1.dim),
            self.draw(*weight),
            self.draw(len(self.columns)),
        )

    def with_own_weights(self) -> tuple[Arrays, Callable[..., Tensor]] | None:
        if not self.module.internal_weights:
            return None
        own = (value.detach().double().numpy().ravel() for value in (self.module.weight, self.module.bias))
        rows, axes = self.shapes[0][0], self.shapes[0][:-1]
        return (self.operands[0], *own), lambda features, *_: self.module.forward(
            features.reshape(*axes, features.numel() // (math.prod(axes) or 1))
        ).reshape(rows, self.space_out.dim)

    def call(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.call_of(self.module, features, weight, bias)

    def call_of(self, module: torch.nn.Module, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`call` of another `Linear` of the same arguments."""
        given = []
        for operand, shape in zip((features, weight, bias), self.shapes, strict=True):
            known = math.prod(shape[:-1])
            given.append(operand.reshape(*shape[:-1], operand.numel() // known if known else 0))
        features, weight, bias = given
        weight = weight if weight.shape[-1] else None
        out = module.forward(features, weight, bias if bias.shape[-1] else None)
        return out.reshape(features.shape[0], self.space_out.dim)

    def output(self, operands: Arrays) -> Expected:
        features, weight, bias = operands
        (out,) = _three(reference.tensor_product, self.plan, features, self.one, weight)
        value, magnitude, terms = (part.copy() for part in out)
        value[:, self.columns] += bias
        magnitude[:, self.columns] += np.abs(bias)
        terms[:, self.columns] += 1
        return Expected(value, magnitude, terms)

    def gradients(self) -> tuple[Expected, ...]:
        features, weight, _ = self.operands
        arguments = (self.plan, self.cotangent, features, self.one, weight)
        own, _, weights = _three(reference.tensor_product_backward, *arguments)
        column = self.cotangent[:, self.columns]
        count = np.full(len(self.columns), len(column))
        return own, weights, Expected(column.sum(axis=0), np.abs(column).sum(axis=0), count)

    def second_gradients(self) -> tuple[Expected, ...]:
        features, weight, bias = self.operands
        ax, aw, ab = self.tangents
        arguments = (self.plan, ax, None, aw, self.cotangent, features, self.one, weight)
        grad, own, _, weights = _three(reference.tensor_product_double_backward, *arguments)
        value, magnitude, terms = (part.copy() for part in grad)
        value[:, self.columns] += ab
        magnitude[:, self.columns] += np.abs(ab)
        terms[:, self.columns] += 1
        nothing = np.zeros_like(bias)
        return Expected(value, magnitude, terms), own, weights, Expected(nothing, nothing, nothing)


class _Harmonics(Problem):
    """Normally distributed points, some of them on the axis through the poles."""

    names = ("points",)

    def __init__(self, layer: Layer, draw: Draws, rows: int, edges_per_node: float) -> None:
        super().__init__(layer, draw)
        module = self.module
        self.spaces, self.space_out = (Irreps(str(module.irreps_in)),), Irreps(str(module.irreps_out))
        self.fixed = ([ir.l for mul, ir in self.space_out for _ in range(mul)],)
        self.options = (module.normalize, module.normalization)
        points = self.draw(rows, 3)
        points[1 : rows // 4 : 2, ::2] = 0
        self.operands = (points,)

    def call(self, points: Tensor) -> Tensor:
        return self.module.forward(points)

    def _reference(self, suffix: str, *arguments: Any) -> tuple[Expected, ...]:
        function = getattr(reference, "spherical_harmonics" + suffix)
        return tuple(_three(function, *self.fixed, *arguments, *self.options))

    def output(self, operands: Arrays) -> Expected:
        (out,) = self._reference("", *operands)
        return out

    def gradients(self) -> tuple[Expected, ...]:
        return self._reference("_backward", self.cotangent, *self.operands)

    def second_gradients(self) -> tuple[Expected, ...]:
        return self._reference("_double_backward", *self.tangents, self.cotangent, *self.operands)


REFERENCED: dict[str, type[Problem]] = {
    **dict.fromkeys(PRODUCTS, _Product),
    "TensorProductConv": _Convolution,
    "TensorSquare": _Square,
    "Linear": _Linear,
    "SphericalHarmonics": _Harmonics,
}
