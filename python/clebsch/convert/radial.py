"""Weights of edges that are the product of hidden features and a matrix, and are never made whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.convert.swap import Accelerated, original_class
from clebsch.e3nn.operands import is_recorded, note
from clebsch.ops.dispatch import is_autocast, suits_kernels
from clebsch.ops.silu import silu

__all__ = [
    "Deferred",
    "FullyConnectedNet",
    "RadialWeights",
    "SideBySide",
    "activation",
    "affine",
    "as_tensor",
    "biased",
    "is_plain",
    "multiply",
    "not_taken_apart",
]


# So many numbers make up for calls of Python's in derivatives.
SILU_SIZE = 1 << 16


class Deferred:
    """In the place of a tensor (rows, columns) that is not made yet; whatever asks for it gets the tensor.

    Those that know better take the factors that it is made of, and it is never made.
    """

    __array_ufunc__ = None  # numpy leaves arithmetic to us

    is_product = True  # of features and matrices, which one more matrix goes `through`

    def __init__(self) -> None:
        self.is_factored = True  # nobody may have written to the whole
        self.is_recorded = torch.is_grad_enabled()  # as the tensor would have been, made here
        self._whole: Tensor | None = None

    @property
    def columns(self) -> int:
        """Length of a row."""
        raise NotImplementedError

    def through(self, matrix: Tensor) -> Deferred:
        """The rows of the tensor times a matrix (columns, any number)."""
        raise NotImplementedError

    def _make(self) -> Tensor:
        raise NotImplementedError

    def whole(self) -> Tensor:
        """The tensor, (rows, columns); made once."""
        if self._whole is None:
            with torch.set_grad_enabled(self.is_recorded):
                self._whole = self._make()
        return self._whole

    def __mul__(self, factor: Any) -> Any:
        return self.whole() * as_tensor(factor)

    def __rmul__(self, factor: Any) -> Any:
        return self * factor

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_") or name == "data":
            self.is_factored = False
        return getattr(self.whole(), name)

    def __setitem__(self, where: Any, value: Any) -> None:
        self.is_factored = False
        self.whole()[where] = as_tensor(value)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (torch.mul, Tensor.mul) and len(args) == 2 and not kwargs:
            ours, other = args if isinstance(args[0], Deferred) else args[::-1]
            return ours * other
        written = [*args[:1], (kwargs or {}).get("out")] if _writes(function, kwargs) else []
        for value in written:
            if isinstance(value, Deferred):
                value.is_factored = False
        kwargs = {name: as_tensor(value) for name, value in (kwargs or {}).items()}
        return function(*map(as_tensor, args), **kwargs)


class RadialWeights(Deferred):
    """hidden @ matrix in the place of a tensor of weights, (num_edges, weight_numel).

    A convolution takes the two factors. A factor for each edge, as of a cutoff, multiplies the hidden
    features. Whatever else is asked of it, it becomes that tensor: code that knows nothing of it stays right.
    """

    def __init__(self, hidden: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.hidden = hidden  # (num_edges, H)
        self.matrix = matrix  # (H, weight_numel)

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.matrix.shape[1]

    def through(self, matrix: Tensor) -> RadialWeights:
        """The rows of the tensor times a matrix (columns, any number)."""
        return RadialWeights(self.hidden, self.matrix @ matrix)

    def _make(self) -> Tensor:
        if self.columns == 1:  # what comes back to it is then no matrix product either
            return self.hidden.mv(self.matrix.squeeze(1)).unsqueeze(1)
        return self.hidden @ self.matrix

    def __mul__(self, factor: Any) -> Any:
        if self.is_factored and self._is_of_edges(factor):
            return RadialWeights(self.hidden * factor, self.matrix)
        return super().__mul__(factor)

    def _is_of_edges(self, factor: Any) -> bool:
        """Whether it is one number for all or for each edge, of a type that changes nothing."""
        if isinstance(factor, (int, float)):
            return True
        if not isinstance(factor, Tensor) or torch.result_type(self.hidden, factor) != self.hidden.dtype:
            return False
        return factor.dim() == 0 or tuple(factor.shape) in ((1,), (1, 1), (self.hidden.shape[0], 1))


class SideBySide(Deferred):
    """Tensors, made or not, with the same rows: the columns of one after those of another."""

    is_product = False

    def __init__(self, parts: Iterable[Tensor | Deferred]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    @property
    def columns(self) -> int:
        """Length of a row."""
        return sum(map(columns_of, self.parts))

    def _make(self) -> Tensor:
        if all(isinstance(part, RadialWeights) and part.is_factored for part in self.parts):
            return _Products.apply(*(factor for part in self.parts for factor in (part.hidden, part.matrix)))
        return torch.cat([as_tensor(part) for part in self.parts], dim=1)


class _Products(torch.autograd.Function):
    """Products of matrices side by side, each written where it belongs."""

    @staticmethod
    def forward(ctx: Any, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        lefts, rights = factors[::2], factors[1::2]
        out = lefts[0].new_empty(lefts[0].shape[0], sum(right.shape[1] for right in rights))
        places = out.split([right.shape[1] for right in rights], dim=1)
        for left, right, place in zip(lefts, rights, places, strict=True):
            torch.mm(left, right, out=place)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factors = ctx.saved_tensors
        widths = [right.shape[1] for right in factors[1::2]]
        grads: list[Tensor | None] = []
        for i, part in zip(range(0, len(factors), 2), grad.split(widths, dim=1), strict=True):
            grads.append(part @ factors[i + 1].t() if ctx.needs_input_grad[i] else None)
            grads.append(factors[i].t() @ part if ctx.needs_input_grad[i + 1] else None)
        return tuple(grads)


def columns_of(x: Tensor | Deferred) -> int:
    """Length of a row."""
    return x.columns if isinstance(x, Deferred) else x.shape[1]


def multiply(x: Tensor | Deferred, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ matrix + bias, where what x is made of meets the product of the matrices, and nothing is joined."""
    parts = x.parts if isinstance(x, SideBySide) and x.is_factored else (x,)
    out: Any = None
    for part, rows in zip(parts, matrix.split([columns_of(part) for part in parts]), strict=True):
        if isinstance(part, Deferred) and part.is_factored:
            part = part.through(rows)
            if not isinstance(part, RadialWeights):
                out = part.whole() if out is None else out.add_(part.whole())
                continue
            part, rows = part.hidden, part.matrix
        part = as_tensor(part)
        # Sums are ours alone: more is added in place.
        if out is not None:
            out = out.addmm_(part, rows)
        elif bias is not None:
            out, bias = torch.addmm(bias, part, rows), None
        else:
            out = part @ rows
    return out if bias is None else out.add_(bias)


def activation(function: Any, x: Tensor) -> Tensor:
    """function(x); silu of many numbers by our kernel."""
    if _is_silu(function) and not is_recorded() and x.numel() >= SILU_SIZE and suits_kernels("silu", x):
        return silu(x)
    return function(x)


def _is_silu(function: Any) -> bool:
    if type(function) is torch.nn.SiLU:
        return is_plain(function) and not function.inplace
    return function is torch.nn.functional.silu


def _writes(function: Any, kwargs: dict[str, Any] | None) -> bool:
    return "out" in (kwargs or {}) or getattr(function, "__name__", "").endswith("_")


def _operator(name: str) -> Any:
    def applied(self, *others):
        return getattr(self.whole(), name)(*map(as_tensor, others))

    return applied


# What Python looks up on the class, not on the object.
for _name in ("add", "sub", "truediv", "floordiv", "mod", "pow", "matmul"):
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(Deferred, _form, _operator(_form))
for _form in ("neg", "abs", "getitem", "len", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Deferred, f"__{_form}__", _operator(f"__{_form}__"))


def as_tensor(value: Any) -> Any:
    """What factors stand for, also within lists and tuples; any other value as it is."""
    if isinstance(value, Deferred):
        return value.whole()
    return type(value)(map(as_tensor, value)) if type(value) in (list, tuple) else value


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
    """Whether a layer may be taken apart: nobody listens to its calls, or stands in for it or parameters."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
        or torch.nn.utils.parametrize.is_parametrized(layer)
    )


def not_taken_apart(net: torch.nn.Module, layers: Iterable[torch.nn.Module]) -> str | None:
    """Why the last of the layers of a net has to be applied by the net; None if a convolution may do it."""
    if torch.compiler.is_compiling():
        return "torch.compile compiles its own code"
    if torch.jit.is_tracing():
        return "torch.jit.trace records its own code"
    if is_autocast():
        return "autocast is on"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are taken"
    if not all(map(is_plain, (net, *layers))):
        return "somebody listens to its calls, or stands in for a layer"
    return None


class FullyConnectedNet(Accelerated):
    """e3nn's, whose last layer is not applied: a convolution takes its matrix.

    A layer is act(x W / a) b, with a and b from its normalisation and that of the function. The b of a layer
    goes into the W of the next, which has fewer numbers than x has.
    """

    does = "its last layer is applied by the convolution, a few edges at a time"

    def forward(self, x: Tensor) -> Any:
        """(num_edges, inputs) to the `RadialWeights` of the edges."""
        layers = list(self.children())
        reason = not_taken_apart(self, layers)
        if reason is None and {original_class(layer).__name__ for layer in layers} != {"_Layer"}:
            reason = "its layers are not those of e3nn"
        if reason is None and layers[-1].act is not None:
            reason = "a function follows its last layer"
        note(self, reason)
        if reason is not None:
            return super().forward(x)
        *inner, last = layers
        factor = 1.0
        for layer in inner:
            x = x @ (layer.weight * (factor / math.sqrt(layer.h_in * layer.var_in)))
            factor = math.sqrt(layer.var_out)
            function, constant = _normalised(layer.act)
            x, factor = activation(function, x), factor * constant
        scale = factor / math.sqrt(last.h_in * last.var_in / last.var_out)
        return RadialWeights(x, last.weight * scale)


def _normalised(act: Any) -> tuple[Any, float]:
    """e3nn's `normalize2mom` as a function and the constant that it is multiplied with; others with 1."""
    if act is None:
        return (lambda x: x), 1.0
    if type(act).__name__ == "normalize2mom" and is_plain(act):
        return (act.f, 1.0) if act._is_id else (act.f, float(act.cst))
    return act, 1.0
