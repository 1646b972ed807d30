"""Products of rows with one-hot rows of scalars: the matrices of one scalar, not a sum over those of all.

What mixes the channels of an atom by its species is written as a fully connected product of x with a y that
is 1 for the species and 0 for all others (MACE's skip_tp, NequIP's self-connection). The product multiplies x
with the matrices of every species; where rows of y are seen to be one-hot, the linear layer with an index
takes its place, which reads the matrices of those that are there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clebsch.ops.dispatch import call, may_look
from clebsch.ops.linear import mix_rows
from clebsch.ops.tensor_product import PlanSizes, multiply_rows

__all__ = ["choose_or_multiply"]

_PLAIN = (Tensor, torch.nn.Parameter)


def choose_or_multiply(x: Tensor, y: Tensor, weight: Tensor, sizes: PlanSizes) -> Tensor:
    """`multiply_rows` for a plan with `elements`, by the linear layer with an index if rows of y are one-hot.

    A y that requires gradients is multiplied with: it has a gradient in all columns. So it is where something
    records the operations of a call, to repeat them with other numbers, and on a GPU, which nobody waits for.
    """
    if _may_look(x, y, weight, sizes):
        index = call(torch.ops.clebsch.one_hot_index, y)
        if index.shape[0] == y.shape[0]:
            return mix_rows(x, weight, x.new_empty(0), sizes, (), index)
    return multiply_rows(x, y, weight, sizes)


def _may_look(x: Tensor, y: Tensor, weight: Tensor, sizes: PlanSizes) -> bool:
    """Whether the numbers of y may decide; False for operands that `multiply_rows` refuses."""
    return (
        type(x) in _PLAIN
        and type(y) in _PLAIN
        and type(weight) in _PLAIN
        and may_look(x, y, weight)
        and not y.requires_grad
        and x.dim() == 2
        and x.shape[1] == sizes.in1
        and y.shape == (x.shape[0], sizes.in2)
        and weight.shape == (sizes.weight,)
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == y.dtype == weight.dtype
    )


@torch.library.register_fake("clebsch::one_hot_index")
def _(y):
    return y.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
