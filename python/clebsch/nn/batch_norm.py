"""BatchNorm: irreps of unit norm over a batch."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.nn.activation import check_features
from clebsch.o3.irreps import Irreps
from clebsch.ops.tensor_product import tensor_product

__all__ = ["BatchNorm"]


class BatchNorm(torch.nn.Module):
    """weight x / sqrt(mean |x|^2 + eps) for every irrep x; scalars (0e) lose their mean and gain a bias.

    Signature, attributes, state_dict and numbers of ``e3nn.nn.BatchNorm`` 0.6. In training, means are those
    of the batch, and running means are kept, which take their place in evaluation. A batch without rows
    leaves these as they are (e3nn refuses it).

    Args:
        irreps: of the features, in any form that `Irreps` reads.
        eps: what is added to the mean square.
        momentum: share of the new mean in the running mean.
        affine: whether there are weights, and biases of scalars.
        reduce: "mean" or "max", over the dimensions between the first and the last; the first is averaged.
        instance: whether each entry of the first dimension has statistics of its own, in evaluation too.
        include_bias: whether scalars have biases where `affine`.
        normalization: "component", |x|^2 is the mean of the squares of the components of x; "norm", their
            sum.

    Raises:
        TypeError: eps or momentum that is no number.
        ValueError: another value of `reduce` or `normalization`.
    """

    def __init__(
        self,
        irreps: Any,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        reduce: str = "mean",
        instance: bool = False,
        include_bias: bool = True,
        normalization: str = "component",
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("reduce", reduce, ("mean", "max")),
            ("normalization", normalization, ("norm", "component")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"BatchNorm: {name} must be {' or '.join(map(repr, allowed))}, got {value!r}"
                )
        for name, value in (("eps", eps), ("momentum", momentum)):
            if isinstance(value, (str, bool)) or not hasattr(value, "__float__"):
                raise TypeError(f"BatchNorm: {name} must be a number, got {value!r}")
        self.irreps = Irreps(irreps)
        self.eps, self.momentum, self.affine, self.reduce = eps, momentum, affine, reduce
        self.instance, self.include_bias, self.normalization = instance, include_bias, normalization
        num_irreps = self.irreps.num_irreps
        num_scalars = sum(mul for mul, ir in self.irreps if ir.is_scalar())
        self.register_buffer("running_mean", None if instance else torch.zeros(num_scalars))
        self.register_buffer("running_var", None if instance else torch.ones(num_irreps))
        self.register_parameter("weight", torch.nn.Parameter(torch.ones(num_irreps)) if affine else None)
        if include_bias:
            self.register_parameter("bias", torch.nn.Parameter(torch.zeros(num_scalars)) if affine else None)
        # Plain numbers and no index tensors: torch.compile looks into what forward uses, and tensors that are
        # not in the state_dict would be lost by models that are made on the meta device.
        self._blocks = [(mul, ir.dim, ir.is_scalar()) for mul, ir in self.irreps]
        self._widths = [mul * dim for mul, dim, _ in self._blocks]
        self._dim, self._num_scalars = self.irreps.dim, num_scalars
        self._plan = _plan_of_squares(self.irreps, normalization)

    def forward(self, input: Tensor) -> Tensor:
        """input (batch, ..., irreps.dim), of any floating dtype, to the same shape."""
        check_features("BatchNorm", "input", input, self._dim, batched=True)
        held = self.weight if self.affine else self.running_var
        if held is not None and held.device != input.device:
            raise ValueError(
                f"BatchNorm: input must be on the device of the module, {held.device}, got {input.device}"
            )
        if input.numel() == 0 and (self.instance or self._dim == 0):
            return input
        x = input.reshape(input.shape[0], math.prod(input.shape[1:-1]), self._dim)
        is_measured = self.instance or (self.training and input.numel() > 0)
        mean = square = None
        if self._num_scalars:
            mean = self._means(x) if is_measured else self.running_mean
            x = x + self._at_scalars(-mean)  # the derivative of x - m would copy x for its sign
        square = self._mean_squares(x) if is_measured else self.running_var
        if is_measured and not self.instance:
            self._keep(mean, square)
        scale = (square + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        scale = self._at_components(scale)
        has_bias = self._num_scalars and self.affine and self.include_bias
        shift = self._at_scalars(self.bias) if has_bias else None
        return _ScaleAndShift.apply(x, scale, shift).view(input.shape)

    def _at_scalars(self, values: Tensor) -> Tensor:
        """values (..., num_scalars) at the places of the scalars, 0 at others: (..., dim)."""
        parts, start = [], 0
        for width, (mul, _, is_scalar) in zip(self._widths, self._blocks, strict=True):
            if is_scalar:
                parts.append(values.narrow(-1, start, mul))
                start += mul
            else:
                parts.append(values.new_zeros(()).expand(*values.shape[:-1], width))
        return torch.cat(parts, dim=-1)

    def _at_components(self, values: Tensor) -> Tensor:
        """values (..., num_irreps) at every component of their irrep: (..., dim)."""
        parts = values.split([mul for mul, _, _ in self._blocks], dim=-1)
        return torch.cat(
            [
                part if dim == 1 else part.unsqueeze(-1).expand(*part.shape, dim).flatten(-2)
                for part, (_, dim, _) in zip(parts, self._blocks, strict=True)
            ],
            dim=-1,
        )

    def _axes(self) -> tuple[int, ...]:
        return (1,) if self.instance else (0, 1)

    def _count(self, x: Tensor) -> int:
        return x.shape[1] if self.instance else x.shape[0] * x.shape[1]

    def _means(self, x: Tensor) -> Tensor:
        """Means of the scalars of x (batch, samples, dim): (batch or 1, 1, num_scalars)."""
        # Of all components: that costs less than the zeros with which autograd fills what is left out. The
        # derivative of a sum is expanded, that of a mean is written out.
        total = _sum(x, self._axes())
        parts = zip(total.split(self._widths, dim=-1), self._blocks, strict=True)
        return torch.cat([part for part, block in parts if block[2]], dim=-1) / self._count(x)

    def _mean_squares(self, x: Tensor) -> Tensor:
        """Mean squares of the irreps of x (batch, samples, dim): (batch or 1, 1, num_irreps)."""
        if self.reduce == "mean" and self._count(x) > 1:
            total = _SumOfSquares.apply(x, self._axes())
            return self._over_components(total) / self._count(x)
        largest = self._squares(x).max(1, keepdim=True).values
        return largest if self.instance else largest.mean(0, keepdim=True)

    def _squares(self, x: Tensor) -> Tensor:
        """Square of every irrep of x: (..., dim) to (..., num_irreps)."""
        if x.dtype not in (torch.float32, torch.float64):
            return self._over_components(x.square())
        rows = x.reshape(-1, self._dim)
        return tensor_product(rows, rows, rows.new_empty(0), self._plan).view(*x.shape[:-1], -1)

    def _over_components(self, square: Tensor) -> Tensor:
        """Sum or mean over the components of each irrep: (..., dim) to (..., num_irreps)."""
        blocks = []
        for (mul, dim, _), part in zip(self._blocks, square.split(self._widths, dim=-1), strict=True):
            if dim > 1:
                part = part.unflatten(-1, (mul, dim))
                part = part.mean(-1) if self.normalization == "component" else part.sum(-1)
            blocks.append(part)
        return torch.cat(blocks, dim=-1)

    @torch.no_grad()
    def _keep(self, mean: Tensor | None, square: Tensor) -> None:
        for kept, new in ((self.running_mean, mean), (self.running_var, square)):
            if new is not None:
                kept.copy_((1 - self.momentum) * kept + self.momentum * new.flatten())

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps}, eps={self.eps}, momentum={self.momentum})"


@lru_cache(maxsize=1024)  # most of the time that a layer takes to make
def _plan_of_squares(irreps: Irreps, normalization: str) -> str:
    """The product of x with itself in which every irrep becomes the sum or mean of its squares."""
    # The coupling of l and l to 0 is the identity over sqrt(2l + 1); what is given is under the root.
    power = -1 if normalization == "component" else 1
    paths = [(i, i, i, "uuu", False, ir.dim**power) for i, (_, ir) in enumerate(irreps)]
    scalars = [(mul, (0, 1)) for mul, _ in irreps]
    return str(ProductPlan.from_instructions(irreps, irreps, Irreps(scalars), paths))


def _sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The sum over axes, which stay with size 1; x itself where they have that size."""
    return x if all(x.shape[axis] == 1 for axis in axes) else x.sum(axes, keepdim=True)


class _SumOfSquares(torch.autograd.Function):
    """Sum of x^2 over axes. torch's own derivative of a square writes three tensors of the size of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return _sum(x.square(), axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * (2 * grad), None


class _ScaleAndShift(torch.autograd.Function):
    """x scale + shift, where x has all dimensions. torch's own derivative copies x once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        return x * scale if shift is None else torch.addcmul(shift, x, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, shift = inputs
        ctx.save_for_backward(x, scale)
        ctx.shift_shape = None if shift is None else shift.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            grad * scale if needs[0] else None,
            (grad * x).sum_to_size(scale.shape) if needs[1] else None,
            grad.sum_to_size(ctx.shift_shape) if needs[2] else None,
        )
