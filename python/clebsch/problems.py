"""Layers with random operands: how each is called, and what must come out, by `reference` or by definition.

Operands are numbers that float32 holds exactly, so that one reference serves both types.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clebsch import reference
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.graph import Graph
from clebsch.survey import Layer, linear_axes, linear_plan, product_plan
from clebsch.testing import tolerance

__all__ = ["Expected", "Problem", "Unknown", "problem"]

Array = NDArray[np.float64]
Arrays = tuple[Array, ...]

# Results that have no bound of their own may be off by this many roundings of the largest of their numbers.
ROUNDINGS = 64


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

    def __init__(self, layer: Layer, seed: int) -> None:
        self.layer, self.module = layer, layer.module
        self.rng = np.random.default_rng(seed)
        self.operands: Arrays = ()

    def draw(self, *shape: int) -> Array:
        """Normally distributed numbers that float32 holds."""
        return self.rng.standard_normal(shape, np.float32).astype(np.float64)

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


def problem(
    layer: Layer, rows: int | None = None, seed: int = 0, *, edges_per_node: float = 3, max_terms: int = 0
) -> Problem:
    """The problem of a layer with `rows` rows; `Unknown` with the reason if there is none.

    max_terms: where more than 0, the number of terms of a product that the reference is asked for; rows are
    fewer than 19 (if None) where that is exceeded, and a product that exceeds it in three rows is unknown.
    """
    if layer.overrides_forward:
        raise Unknown(f"{layer.class_name} overrides the forward of {layer.kind}")
    if layer.device.type != "cpu":
        raise Unknown(f"it is on {layer.device}; kernels run on the CPU")
    if layer.kind == "TensorSquare":
        kind: type[Problem] = _Square
    elif layer.kind == "TensorProductConv":
        kind = _Convolution
    elif layer.is_product:
        kind = _Product
    else:
        kind = _KINDS.get(layer.kind)
    if kind is None:
        raise Unknown(f"{layer.origin}'s {layer.class_name} has no definition here to compare with")
    if rows is None:
        rows = _affordable_rows(layer, max_terms)
    return kind(layer, seed, rows, edges_per_node) if kind is _Convolution else kind(layer, seed, rows)


ROWS = 19  # a block of the widest vectors and some more


def _affordable_rows(layer: Layer, max_terms: int) -> int:
    if not max_terms or not (layer.is_product or layer.kind == "Linear"):
        return ROWS
    plan = product_plan(layer) if layer.is_product else linear_plan(layer.module)
    terms = sum(plan.num_terms(path) for path in plan.paths)
    if 3 * terms > max_terms:
        raise Unknown(
            f"the reference would sum {terms:,} terms a row, more than {max_terms // 3:,}; see rows"
        )
    return min(ROWS, max(3, max_terms // max(terms, 1)))


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

    def __init__(self, layer: Layer, seed: int, rows: int) -> None:
        super().__init__(layer, seed)
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

    def __init__(self, layer: Layer, seed: int, rows: int, edges_per_node: float) -> None:
        self.num_nodes = max(2, math.ceil(rows / edges_per_node))
        super().__init__(layer, seed, rows)

    def _draw_operands(self) -> Arrays:
        x = self.draw(self.num_nodes, self.spaces[0].dim)
        y = self.draw(self.rows, self.spaces[1].dim)
        # the last node has no edge
        self.senders, self.receivers = self.rng.integers(self.num_nodes - 1, size=(2, self.rows))
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

    def __init__(self, layer: Layer, seed: int, rows: int) -> None:
        super().__init__(layer, seed, rows)
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


class _Linear(Problem):
    """features, weight and bias: a product with the scalar 1, and the bias added."""

    names = ("features", "weight", "bias")
    is_multilinear = True

    def __init__(self, layer: Layer, seed: int, rows: int) -> None:
        super().__init__(layer, seed)
        self.plan = linear_plan(self.module)
        f_in, f_out = linear_axes(self.module)
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
    """Points at all lengths between 0.1 and 10, and on the poles."""

    names = ("points",)

    def __init__(self, layer: Layer, seed: int, rows: int) -> None:
        super().__init__(layer, seed)
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


class _Defined(Problem):
    """A layer of torch's functions: what it must give is its definition in float64, derivatives by autograd.

    There is no bound for any function; results may be off by `ROUNDINGS` roundings of the largest number.
    """

    names = ("features",)

    def __init__(self, layer: Layer, seed: int, rows: int) -> None:
        super().__init__(layer, seed)
        self.module = _without_hooks(self.module)
        self._set_operands(rows)

    def _set_operands(self, rows: int) -> None:
        module = self.module
        self.spaces, self.space_out = (Irreps(str(module.irreps_in)),), Irreps(str(module.irreps_out))
        self.operands = (self.draw(rows, self.spaces[0].dim),)

    def call(self, features: Tensor) -> Tensor:
        return self.module.forward(features)

    def definition(self, features: Tensor) -> Tensor:
        """The layer, plainly."""
        raise NotImplementedError

    def output(self, operands: Arrays) -> Expected:
        with torch.no_grad():
            return _rounded(self.definition(*map(torch.from_numpy, operands)))

    @cached_property
    def _derivatives(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return derivatives(self.definition, self.tensors(torch.float64), self.cotangent, self.tangents)[1:]

    def gradients(self) -> tuple[Expected, ...]:
        return tuple(map(_rounded, self._derivatives[0]))

    def second_gradients(self) -> tuple[Expected, ...]:
        return tuple(map(_rounded, self._derivatives[1]))


def _without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose parts run nothing that a user hung on them."""
    try:
        module = copy.deepcopy(module)
    except Exception as error:  # whatever a part of it does when copied
        raise Unknown(f"it cannot be copied: {error}") from error
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return module


def _rounded(result: Tensor) -> Expected:
    value = result.detach().numpy()
    largest = np.abs(value).max(initial=0.0)
    return Expected(value, np.full(value.shape, largest), np.full(value.shape, ROUNDINGS))


def _blocks(features: Tensor, irreps: Irreps) -> list[Tensor]:
    """(rows, mul, 2l + 1) of each block."""
    parts = features.split([block.dim for block in irreps], dim=-1)
    return [part.unflatten(-1, (mul, ir.dim)) for part, (mul, ir) in zip(parts, irreps, strict=True)]


def _activate(features: Tensor, acts: Sequence[Any], irreps: Irreps) -> Tensor:
    """Of each block of scalars its function, scaled to unit second moment."""
    parts = features.split([mul for mul, _ in irreps], dim=-1)
    applied = [part if act is None else act.forward(part) for part, act in zip(parts, acts, strict=True)]
    return torch.cat(applied, dim=-1) if applied else features


class _Activation(_Defined):
    def definition(self, features: Tensor) -> Tensor:
        parts = features.split([block.dim for block in self.spaces[0]], dim=-1)
        acts = self.module.acts
        applied = [part if act is None else act.forward(part) for part, act in zip(parts, acts, strict=True)]
        return torch.cat(applied, dim=-1) if applied else features


class _Gate(_Defined):
    """act_scalars(scalars) + act_gates(gates) * gated, of the sorted sum of the three."""

    def definition(self, features: Tensor) -> Tensor:
        module = self.module
        parts = [
            Irreps(str(given)) for given in (module.irreps_scalars, module.irreps_gates, module.irreps_gated)
        ]
        blocks = [(kind, mul, ir) for kind, irreps in enumerate(parts) for mul, ir in irreps]
        order = sorted(range(len(blocks)), key=lambda i: (blocks[i][2].l, blocks[i][2].p))
        columns = features.split([blocks[i][1] * blocks[i][2].dim for i in order], dim=-1)
        found = dict(zip(order, columns, strict=True))
        scalars, gates, gated = (
            torch.cat(
                [features[:, :0], *(found[i] for i in range(len(blocks)) if blocks[i][0] == kind)], dim=-1
            )
            for kind in range(3)
        )
        scalars, gates = (
            _activate(part, activation.acts, Irreps(str(activation.irreps_in)))
            for part, activation in ((scalars, module.act_scalars), (gates, module.act_gates))
        )
        out, start = [scalars], 0
        for block, (mul, _) in zip(_blocks(gated, parts[2]), parts[2], strict=True):
            out.append((block * gates[:, start : start + mul, None]).flatten(1))
            start += mul
        return torch.cat(out, dim=-1)


class _NormActivation(_Defined):
    """x f(n + b) / n with the norm n of each irrep, at least epsilon; not divided if not `normalize`."""

    def _set_operands(self, rows: int) -> None:
        super()._set_operands(rows)
        if not self.module.bias:
            return
        self.names, self.spaces = ("features", "biases"), (*self.spaces, None)
        self.operands = (*self.operands, self.draw(*self.module.biases.shape))
        del self.module._parameters["biases"]  # of the copy; the given ones are a plain attribute

    def call(self, features: Tensor, biases: Tensor | None = None) -> Tensor:
        if biases is not None:
            self.module.biases = biases
        return self.module.forward(features)

    def definition(self, features: Tensor, biases: Tensor | None = None) -> Tensor:
        module, blocks = self.module, _blocks(features, self.spaces[0])
        norms = torch.cat([features[:, :0], *(block.norm(dim=-1) for block in blocks)], dim=-1)
        if module.normalize:
            norms = norms.clamp_min(module.epsilon)
        scales = module.scalar_nonlinearity(norms if biases is None else norms + biases)
        scales = (scales / norms if module.normalize else scales).split([b.shape[1] for b in blocks], dim=-1)
        scaled = [(block * scale[..., None]).flatten(1) for block, scale in zip(blocks, scales, strict=True)]
        return torch.cat([features[:, :0], *scaled], dim=-1)


class _Norm(_Defined):
    """The length, or its square, of each irrep."""

    def definition(self, features: Tensor) -> Tensor:
        squares = [block.square().sum(-1) for block in _blocks(features, self.spaces[0])]
        square = torch.cat([features[:, :0], *squares], dim=-1)
        return square if self.module.squared else square.sqrt()


class _Net(_Defined):
    """x -> act(x W / sqrt(h_in var_in)) sqrt(var_out) and so on; the last layer mostly without act."""

    def _set_operands(self, rows: int) -> None:
        self.layers = [part for name, part in self.module.named_children() if name.startswith("layer")]
        self.names = ("x", *(f"layer{i}.weight" for i in range(len(self.layers))))
        self.spaces = (None,) * len(self.names)
        self.space_out = Irreps([(self.module.hs[-1], "0e")] if self.module.hs else [])
        sizes = list(self.module.hs)
        if not sizes:
            raise Unknown("it has no layers")
        shapes = [(rows, sizes[0]), *(tuple(part.weight.shape) for part in self.layers)]
        self.operands = tuple(self.draw(*shape) for shape in shapes)
        for part in self.layers:
            del part._parameters["weight"]  # of the copy; the given one is a plain attribute

    def call(self, x: Tensor, *weights: Tensor) -> Tensor:
        for part, weight in zip(self.layers, weights, strict=True):
            part.weight = weight
        return self.module.forward(x)

    def definition(self, x: Tensor, *weights: Tensor) -> Tensor:
        for part, weight in zip(self.layers, weights, strict=True):
            x = x @ weight / (part.h_in * part.var_in) ** 0.5
            x = (x if part.act is None else part.act(x)) * part.var_out**0.5
        return x


_KINDS: dict[str, type[Problem]] = {
    "SphericalHarmonics": _Harmonics,
    "Linear": _Linear,
    "FullyConnectedNet": _Net,
    "Activation": _Activation,
    "Gate": _Gate,
    "NormActivation": _NormActivation,
    "Norm": _Norm,
}


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
