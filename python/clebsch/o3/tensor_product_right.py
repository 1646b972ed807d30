"""A tensor product with y and the weights given, as matrices that act on x."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.o3.wigner import wigner_3j

__all__ = ["right_matrices"]

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


def right_matrices(plan: ProductPlan, y: Tensor, weight: Tensor) -> Tensor:
    """Matrices (..., irreps_in1.dim, irreps_out.dim) of y (..., irreps_in2.dim) and weight (...,
    weight_numel), whose leading dimensions broadcast: x @ matrix is the product of x.

    Written with torch's own operations and so differentiable. Every path fills one block; each number of the
    result is computed once and copied when blocks are joined.
    """
    batch = torch.broadcast_shapes(y.shape[:-1], weight.shape[:-1])
    blocks: dict[tuple[int, int], Tensor] = {}
    for i, path in enumerate(plan.paths):
        place, block = (path.i_in1, path.i_out), _block(plan, i, y, weight)
        blocks[place] = blocks[place] + block if place in blocks else block
    rows = [y.new_zeros((*batch, 0, plan.irreps_out.dim))]
    for i, block_in in enumerate(plan.irreps_in1):
        row = [y.new_zeros((*batch, block_in.dim, 0))]
        for k, block_out in enumerate(plan.irreps_out):
            shape = (*batch, block_in.dim, block_out.dim)
            row.append(blocks[i, k].expand(shape) if (i, k) in blocks else y.new_zeros(shape))
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _block(plan: ProductPlan, number: int, y: Tensor, weight: Tensor) -> Tensor:
    """What one path adds: (..., dim of its block of x, dim of its block of the output)."""
    path = plan.paths[number]
    in1, in2, out = plan.blocks(path)
    like = {"dtype": y.dtype, "device": y.device}
    coupled = _coupled(plan, path, y)
    located, shape = plan.weight_slices[number], plan.path_shapes[number]
    if located is None:
        weights = torch.ones(shape, **like)
    else:
        part = weight.narrow(-1, located[0], math.prod(shape))
        weights = part.reshape(*weight.shape[:-1], *shape)
    operands = [weights, coupled]
    if path.mode in ("uvu", "uuu", "uvuv"):
        operands.append(torch.eye(in1.mul, **like))
    elif path.mode in ("uvu<v", "u<vw"):
        u, v = torch.triu_indices(in1.mul, in2.mul, 1, device=y.device)
        operands[1] = coupled.index_select(-3, v)
        operands.append(torch.eye(in1.mul, **like).index_select(0, u))
    block = torch.einsum(_CONTRACTIONS[path.mode], *operands)
    if path.mode == "uvuv":
        block = block.flatten(-3, -2)
    if plan.layout == "ir_mul":
        block = block.transpose(-4, -3).transpose(-2, -1)
    return block.reshape(*block.shape[:-4], in1.dim, out.dim)


def _coupled(plan: ProductPlan, path: Path, y: Tensor) -> Tensor:
    """y contracted with the coupling coefficients of `path` and its coefficient: (..., v, m1, m3)."""
    (_, ir1), (mul2, ir2), (_, ir3) = plan.blocks(path)
    part = y.narrow(-1, plan.irreps_in2.slices()[path.i_in2].start, mul2 * ir2.dim)
    if plan.layout == "mul_ir":
        part = part.reshape(*y.shape[:-1], mul2, ir2.dim)
    else:
        part = part.reshape(*y.shape[:-1], ir2.dim, mul2).transpose(-1, -2)
    table = wigner_3j(ir1.l, ir2.l, ir3.l, dtype=y.dtype, device=y.device)
    return torch.einsum("...vk,ikj->...vij", part, path.coefficient * table)
