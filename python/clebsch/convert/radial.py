"""Weights of edges that are the product of hidden features and a matrix, and are never made whole."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clebsch.convert.swap import Accelerated

__all__ = ["FullyConnectedNet", "RadialWeights", "affine", "biased", "is_plain"]


class RadialWeights:
    """hidden @ matrix in the place of a tensor of weights, (num_edges, weight_numel).

    A convolution takes the two factors. A factor for each edge, as of a cutoff, multiplies the hidden
    features. Whatever else is asked of it, it becomes that tensor: code that knows nothing of it stays right.
    """

    def __init__(self, hidden: Tensor, matrix: Tensor) -> None:
        self.hidden = hidden  # (num_edges, H)
        self.matrix = matrix  # (H, weight_numel)
        self._whole: Tensor | None = None

    def whole(self) -> Tensor:
        """The tensor, (num_edges, weight_numel)."""
        if self._whole is None:
            self._whole = self.hidden @ self.matrix
        return self._whole

    def __mul__(self, factor: Any) -> Any:
        if isinstance(factor, (int, float)) or (
            isinstance(factor, Tensor)
            and (factor.dim() == 0 or tuple(factor.shape) in ((1,), (1, 1), (self.hidden.shape[0], 1)))
        ):
            return RadialWeights(self.hidden * factor, self.matrix)
        return self.whole() * (factor.whole() if isinstance(factor, RadialWeights) else factor)

    __rmul__ = __mul__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.mul or function is Tensor.mul:
            ours, other = args if isinstance(args[0], RadialWeights) else args[::-1]
            return ours * other
        kwargs = {name: _as_tensor(value) for name, value in (kwargs or {}).items()}
        return function(*map(_as_tensor, args), **kwargs)


def _operator(name: str) -> Any:
    def applied(self, *others):
        return getattr(self.whole(), name)(*map(_as_tensor, others))

    return applied


# What Python looks up on the class, not on the object.
for _name in ("add", "sub", "truediv", "floordiv", "mod", "pow", "matmul"):
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(RadialWeights, _form, _operator(_form))
for _form in ("__neg__", "__abs__", "__getitem__", "__len__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(RadialWeights, _form, _operator(_form))


def _as_tensor(value: Any) -> Any:
    if isinstance(value, RadialWeights):
        return value.whole()
    return type(value)(map(_as_tensor, value)) if type(value) in (list, tuple) else value


def biased(hidden: Tensor, layer: torch.nn.Linear) -> RadialWeights:
    """The weights that a `torch.nn.Linear` makes."""
    return affine(hidden, layer.weight.t(), layer.bias)


def affine(hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> RadialWeights:
    """hidden @ matrix + bias: the bias is one more row of the matrix, met by features that are 1."""
    if bias is None:
        return RadialWeights(hidden, matrix)
    padded = torch.nn.functional.pad(hidden, (0, 1), value=1.0)
    return RadialWeights(padded, torch.cat([matrix, bias.unsqueeze(0)]))


def is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer may be taken apart: nobody listens to its calls or stands in for its parameters."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or torch.nn.utils.parametrize.is_parametrized(layer)
    )


class FullyConnectedNet(Accelerated):
    """e3nn's, whose last layer is not applied: a convolution takes its matrix.

    A layer is act(x W / a) b, with a and b from its normalisation and that of the function. The b of a layer
    goes into the W of the next, which has fewer numbers than x has.
    """

    does = "its last layer is applied by the convolution, a few edges at a time"

    def forward(self, x: Tensor) -> Any:
        """(num_edges, inputs) to the `RadialWeights` of the edges."""
        *inner, last = self.children()
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or last.act is not None
            or not all(map(is_plain, (*inner, last)))
        ):
            return super().forward(x)
        factor = 1.0
        for layer in inner:
            x = x @ (layer.weight * (factor / math.sqrt(layer.h_in * layer.var_in)))
            factor = math.sqrt(layer.var_out)
            function, constant = _normalised(layer.act)
            x, factor = function(x), factor * constant
        scale = factor / math.sqrt(last.h_in * last.var_in / last.var_out)
        return RadialWeights(x, last.weight * scale)


def _normalised(act: Any) -> tuple[Any, float]:
    """e3nn's `normalize2mom` as a function and the constant that it is multiplied with; others with 1."""
    if type(act).__name__ == "normalize2mom" and is_plain(act):
        return (act.f, 1.0) if act._is_id else (act.f, float(act.cst))
    return act, 1.0
