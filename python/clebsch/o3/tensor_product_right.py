"""A tensor product with y and the weights given, as matrices that act on x."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.o3.wigner import wigner_3j

__all__ = ["check_right", "right_matrices"]

# Each mode as a contraction to (u, m1, w, m3), here u, i, w, j, of the weights, the coupled y (v, i, j) and
# what says which w, u or v is which: e, an identity over u; a, which u the pair p = (u < v) has. In modes of
# pairs the coupled y has been taken at v of p.
_CONTRACTIONS = {
    "uvw": "...uvw,...vij->...uiwj",
    "uvu": "...uv,...vij,ue->...uiej",
    "uvv": "...uv,...vij->...uivj",
    "uuw": "...uw,...uij->...uiwj",
    "uuu": "...u,...uij,ue->...uiej",
    "uvuv": "...uv,...vij,ue->...uievj",
    "uvu<v": "...p,...pij,pu->...uipj",
    "u<vw": "...pw,...pij,pu->...uiwj",
}


class _Block(NamedTuple):
    """A path in numbers: which block of the matrices it fills, of what, and with which coefficients."""

    i_in1: int
    i_out: int
    mode: str
    muls: tuple[int, int, int]
    degrees: tuple[int, int, int]
    y_start: int
    weight_start: int | None  # None where it is not weighted
    weight_shape: tuple[int, ...]
    coefficient: float


class _Matrices(NamedTuple):
    """What `right_matrices` needs to know of a plan."""

    blocks: tuple[_Block, ...]
    in1_dims: tuple[int, ...]
    out_dims: tuple[int, ...]
    transposed: bool  # components before copies


@lru_cache(maxsize=256)
def _matrices(plan: str) -> _Matrices:
    whole = ProductPlan.parse(plan)
    starts = [part.start for part in whole.irreps_in2.slices()]
    blocks = []
    for path, located, shape in zip(whole.paths, whole.weight_slices, whole.path_shapes, strict=True):
        coupled = whole.blocks(path)
        muls, degrees = tuple(block.mul for block in coupled), tuple(block.ir.l for block in coupled)
        weight_start = None if located is None else located[0]
        place = path.i_in1, path.i_out, path.mode
        blocks.append(
            _Block(*place, muls, degrees, starts[path.i_in2], weight_start, shape, path.coefficient)
        )
    in1_dims, out_dims = (
        tuple(block.dim for block in irreps) for irreps in (whole.irreps_in1, whole.irreps_out)
    )
    return _Matrices(tuple(blocks), in1_dims, out_dims, whole.layout == "ir_mul")


def _constant_matrices(plan: str) -> _Matrices:
    return _matrices(plan)


# torch.compile does not read plans; see constant_plan_sizes.
_constant_matrices._dynamo_marked_constant = True


def check_right(layer: str, y: Any, weight: Tensor, width: int) -> None:
    """Raise, with the name of the layer in front, what makes y (..., width) or a flat weight unfit."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{layer}: y must be a tensor, got {type(y).__name__}")
    if y.dim() == 0 or y.shape[-1] != width:
        raise ValueError(f"{layer}: y must have shape (..., {width}), got {tuple(y.shape)}")
    y_dtype, weight_dtype = (str(t.dtype).removeprefix("torch.") for t in (y, weight))
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{layer}: y must be float32 or float64, got {y_dtype}")
    if weight.dtype != y.dtype:
        raise TypeError(f"{layer}: weight must have the dtype of y, {y_dtype}, got {weight_dtype}")
    if weight.device != y.device:
        raise ValueError(f"{layer}: weight must be on the device of y, {y.device}, got {weight.device}")
    leading = tuple(y.shape[:-1]), tuple(weight.shape[:-1])
    try:
        torch.broadcast_shapes(*leading)
    except RuntimeError:
        raise ValueError(
            f"{layer}: the leading dimensions of y and weight must broadcast, "
            f"got {leading[0]} and {leading[1]}"
        ) from None


def right_matrices(plan: str, y: Tensor, weight: Tensor) -> Tensor:
    """Matrices (..., irreps_in1.dim, irreps_out.dim) of y (..., irreps_in2.dim) and weight (...,
    weight_numel), whose leading dimensions broadcast: x @ matrix is the product of x. plan: a canonical
    string.

    Written with torch's own operations and so differentiable. Every path fills one block; each number of the
    result is computed once and copied when blocks are joined.
    """
    batch = torch.broadcast_shapes(y.shape[:-1], weight.shape[:-1])
    known = _constant_matrices(plan)
    filled: dict[tuple[int, int], Tensor] = {}
    for block in known.blocks:
        place, part = (block.i_in1, block.i_out), _fill(block, known.transposed, y, weight)
        filled[place] = filled[place] + part if place in filled else part
    rows = [y.new_zeros((*batch, 0, sum(known.out_dims)))]
    for i, height in enumerate(known.in1_dims):
        row = [y.new_zeros((*batch, height, 0))]
        for k, width in enumerate(known.out_dims):
            shape = (*batch, height, width)
            row.append(filled[i, k].expand(shape) if (i, k) in filled else y.new_zeros(shape))
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _fill(block: _Block, transposed: bool, y: Tensor, weight: Tensor) -> Tensor:
    """What one path adds: (..., dim of its block of x, dim of its block of the output)."""
    (mul1, mul2, _), shape = block.muls, block.weight_shape
    like = {"dtype": y.dtype, "device": y.device}
    coupled = _couple(block, transposed, y)
    if block.weight_start is None:
        weights = torch.ones(shape, **like)
    else:
        part = weight.narrow(-1, block.weight_start, math.prod(shape))
        weights = part.reshape(*weight.shape[:-1], *shape)
    operands = [weights, coupled]
    if block.mode in ("uvu", "uuu", "uvuv"):
        operands.append(torch.eye(mul1, **like))
    elif block.mode in ("uvu<v", "u<vw"):
        u, v = torch.triu_indices(mul1, mul2, 1, device=y.device)
        operands[1] = coupled.index_select(-3, v)
        operands.append(torch.eye(mul1, **like).index_select(0, u))
    part = torch.einsum(_CONTRACTIONS[block.mode], *operands)
    if block.mode == "uvuv":
        part = part.flatten(-3, -2)
    u, i, w, j = part.shape[-4:]
    if transposed:
        part = part.transpose(-4, -3).transpose(-2, -1)
    # a copy of its own: compilers and torch.einsum disagree on the strides that a view would need
    part = part.clone(memory_format=torch.contiguous_format)
    return part.view(*part.shape[:-4], u * i, w * j)


def _couple(block: _Block, transposed: bool, y: Tensor) -> Tensor:
    """y contracted with the coupling coefficients of a path and its coefficient: (..., v, m1, m3)."""
    mul, dim = block.muls[1], 2 * block.degrees[1] + 1
    part = y.narrow(-1, block.y_start, mul * dim)
    if transposed:
        part = part.reshape(*y.shape[:-1], dim, mul).transpose(-1, -2)
    else:
        part = part.reshape(*y.shape[:-1], mul, dim)
    table = wigner_3j(*block.degrees, dtype=y.dtype, device=y.device)
    return torch.einsum("...vk,ikj->...vij", part, block.coefficient * table)
