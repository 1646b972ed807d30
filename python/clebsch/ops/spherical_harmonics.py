"""Spherical harmonics as a torch operator: checks, shapes without data, derivatives.

Three operators are enough for forces and for training on them: Y(points), backward = J(points)^T grad, and
double_backward, the gradient of <grad_grad_points, backward> with respect to grad and points. Each has the
next as its derivative; that of the last is taken through the same function written out with products, since
derivatives of solid harmonics of degree l are harmonics of degree l - 1 coupled with the direction,

    h . grad Y^l_i = k_l sum_{m,j} C^{1,l-1,l}_{m,j,i} h_m Y^{l-1}_j,

so every order is a product of harmonics with vectors, and ends when the degrees do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.algebra.so3 import coupling
from clebsch.ops.dispatch import call, require_dense, require_one_device, takes_dtype
from clebsch.ops.tensor_product import constant_plan_sizes, multiply_rows, refuse_tangents

__all__ = ["spherical_harmonics"]

NORMALIZATIONS = ("integral", "component", "norm")
SHORTEST = 1e-12
"""Points shorter than this are divided by it, as in torch.nn.functional.normalize."""


def spherical_harmonics(points: Tensor, ls: Sequence[int], normalize: bool, normalization: str) -> Tensor:
    """Real spherical harmonics of degrees `ls`, in e3nn's conventions; differentiable to any order.

    Args:
        points: (..., 3), float32 or float64; on a GPU also float16 or bfloat16.
        ls: degrees, 0 to 1000, in any order, repeated if wanted.
        normalize: evaluate at points / max(|points|, 1e-12).
        normalization: on the unit sphere, "component" (|Y^l|^2 = 2l + 1), "norm" (|Y^l| = 1) or "integral"
            (the square of each component integrates to 1).

    Returns:
        (..., sum of 2l + 1): the degrees one after another, each m = -l..l.

    Raises:
        ValueError: points that do not end in 3, a degree outside 0 to 1000, an unknown normalization.
        TypeError: points that are not a float32 or float64 tensor, a degree that is not an integer.
        NotImplementedError: points carry a forward-mode tangent.
    """
    check_points("spherical_harmonics", "points", points)
    ls = list(ls)
    for l in ls:
        if not isinstance(l, int):
            raise TypeError(f"spherical_harmonics: ls must be integers, got {l!r}")
        if l < 0:
            raise ValueError(f"spherical_harmonics: ls must be >= 0, got {l}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            "spherical_harmonics: normalization must be one of "
            f"{', '.join(map(repr, NORMALIZATIONS))}, got {normalization!r}"
        )
    return evaluate(points, ls, normalize, normalization)


def check_points(noun: str, name: str, points: Any) -> None:
    """Raise what `spherical_harmonics` documents unless `points` are points."""
    if not (isinstance(points, Tensor) and takes_dtype("spherical_harmonics", points)):
        given = (
            str(points.dtype).removeprefix("torch.") if isinstance(points, Tensor) else type(points).__name__
        )
        raise TypeError(f"{noun}: {name} must be a float32 or float64 tensor, got {given}")
    require_dense(noun, name, points)
    if points.dim() == 0 or points.shape[-1] != 3:
        raise ValueError(f"{noun}: {name} must have shape (..., 3), got {tuple(points.shape)}")


def evaluate(points: Tensor, ls: list[int], normalize: bool, normalization: str) -> Tensor:
    """`spherical_harmonics` for a caller that has checked its arguments."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        refuse_tangents("spherical_harmonics", points)
    if points.dim() == 2:
        return call(torch.ops.clebsch.spherical_harmonics, points, ls, normalize, normalization)
    batch = points.shape[:-1]
    rows = points.reshape(batch.numel(), 3)
    harmonics = call(torch.ops.clebsch.spherical_harmonics, rows, ls, normalize, normalization)
    return harmonics.reshape(*batch, _columns(ls))


def _columns(ls: Sequence[int]) -> int:
    return sum(2 * l + 1 for l in ls)


@torch.library.register_fake("clebsch::spherical_harmonics")
def _(points, ls, normalize, normalization):
    return points.new_empty((points.shape[0], _columns(ls)))


@torch.library.register_fake("clebsch::spherical_harmonics_backward")
def _(grad, points, ls, normalize, normalization):
    require_one_device("spherical_harmonics", grad=grad, points=points)
    return points.new_empty((points.shape[0], 3))


@torch.library.register_fake("clebsch::spherical_harmonics_double_backward")
def _(grad_grad_points, grad, points, ls, normalize, normalization):
    require_one_device("spherical_harmonics", grad_grad_points=grad_grad_points, grad=grad, points=points)
    return points.new_empty((points.shape[0], _columns(ls))), points.new_empty((points.shape[0], 3))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:-3])
    ctx.fixed = inputs[-3:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (points,) = ctx.saved_tensors
    backward = torch.ops.clebsch.spherical_harmonics_backward
    return call(backward, grad, points, *ctx.fixed), None, None, None


def _differentiate_backward(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    double_backward = torch.ops.clebsch.spherical_harmonics_double_backward
    grads = call(double_backward, tangent, *ctx.saved_tensors, *ctx.fixed)
    return *grads, None, None, None


def _differentiate_double_backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    # Autograd through the same function written out. Where this backward is itself to be differentiated, its
    # operands stay connected to what they came from.
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if differentiable:
            operands = [operand.view_as(operand) for operand in ctx.saved_tensors]
        else:
            operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
        operands = [
            operand if operand.requires_grad else operand.detach().requires_grad_() for operand in operands
        ]
        outputs = _double_backward(*operands, *ctx.fixed)
        grads = torch.autograd.grad(
            outputs, operands, cotangents, create_graph=differentiable, materialize_grads=True
        )
    return *grads, None, None, None


for _name, _formula in (
    ("spherical_harmonics", _differentiate),
    ("spherical_harmonics_backward", _differentiate_backward),
    ("spherical_harmonics_double_backward", _differentiate_double_backward),
):
    torch.library.register_autograd(f"clebsch::{_name}", _formula, setup_context=_save)


def _double_backward(
    h: Tensor, grad: Tensor, points: Tensor, ls: Sequence[int], normalize: bool, normalization: str
) -> tuple[Tensor, Tensor]:
    """The operator of that name from harmonics, products and vector algebra.

    With u = points s, s = 1 / max(|points|, 1e-12), and P = 1 - u u^T (1 where s is constant), backward is
    s P j, where j = J(u)^T grad; the derivative of u along h is p = s P h.
    """
    up, down, lower = _lowering(tuple(ls), normalization)
    none = points.new_empty(0)
    if normalize:
        length = points.norm(dim=-1, keepdim=True)
        s = 1 / length.clamp_min(SHORTEST)
        u, bent = points * s, (length >= SHORTEST).to(points.dtype)
        p = s * (h - bent * u * _dot(u, h))
    else:
        u, p = points, h
    harmonics = torch.ops.clebsch.spherical_harmonics(u, lower, False, normalization)
    grad_grad = multiply_rows(p, harmonics, none, up)
    # <grad, J(u) p> as harmonics of u contracted with numbers: its gradient at constant p
    coupled = multiply_rows(p, grad, none, down)
    second = torch.ops.clebsch.spherical_harmonics_backward(coupled, u, lower, False, normalization)
    if not normalize:
        return grad_grad, second
    j = torch.ops.clebsch.spherical_harmonics_backward(grad, u, list(ls), False, normalization)
    along, across = _dot(u, j), s * (j - bent * u * _dot(u, j))
    turned = u * _dot(p, j) + along * p + _dot(u, h) * across
    return grad_grad, s * (second - bent * (u * _dot(u, second) + turned))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


@lru_cache(maxsize=64)
def _lowering(ls: tuple[int, ...], normalization: str) -> tuple[Any, Any, list[int]]:
    """Products that take (h, Y of degrees `lower`) to h . grad Y, and (h, grad) to what multiplies the former
    in <grad, h . grad Y>; and `lower`: l - 1 for each l > 0 of ls.
    """
    scale = {
        "norm": lambda l: 1.0,
        "component": lambda l: sqrt(2 * l + 1),
        "integral": lambda l: sqrt((2 * l + 1) / (4 * pi)),
    }
    lower = [l - 1 for l in ls if l > 0]
    up, down = [], []
    for i, l in enumerate(ls):
        if l == 0:
            continue
        # At the pole, where only m = 0 is not zero: y-derivative l, by Euler's theorem.
        (pole,) = [e.value for e in coupling(1, l - 1, l) if (e.m1, e.m2, e.m3) == (1, l - 1, l)]
        k = l / pole * scale[normalization](l) / scale[normalization](l - 1)
        up.append(Path(0, len(up), i, "uuu", False, k))
        down.append(Path(0, i, len(down), "uuu", False, k))
    vector, high, low = "1x1o", *("+".join(f"1x{l}{'eo'[l % 2]}" for l in degrees) for degrees in (ls, lower))
    return (
        constant_plan_sizes(ProductPlan(vector, low, high, tuple(up))),
        constant_plan_sizes(ProductPlan(vector, high, low, tuple(down))),
        lower,
    )
