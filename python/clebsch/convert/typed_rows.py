"""Products with rows that are known to come from a table: one row for each type of atom.

A product of x with y = table[types], all of whose paths take x through a matrix for each scalar of y, is a
linear layer with the matrices of each type, sum_v table[z, v] W[:, v, :]. They are made once a call, for the
types that are there, where the product would mix the matrices of all v for every atom.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.ops.linear import mix_rows
from clebsch.ops.tensor_product import PlanSizes, plan_sizes

__all__ = ["TypedRows", "mark", "multiply", "typed_rows"]

# On a tensor: an operation makes another tensor, which has not the mark.
_MARK = "_clebsch_rows"


class TypedRows(NamedTuple):
    """What a tensor was when it was made: table[types]."""

    table: Tensor
    types: Tensor
    version: int


def mark(rows: Tensor, table: Tensor, types: Tensor) -> None:
    """Remember that rows is table[types]. Not in inference mode, where writing leaves no trace."""
    if not rows.is_inference():
        setattr(rows, _MARK, TypedRows(table, types, rows._version))


def typed_rows(rows: Tensor) -> TypedRows | None:
    """What `mark` left on a tensor, if nobody has written to it since."""
    found = getattr(rows, _MARK, None)
    return found if found is not None and found.version == rows._version else None


def multiply(x: Tensor, rows: TypedRows, weight: Tensor, sizes: PlanSizes) -> Tensor | None:
    """The product of x with `rows`; None where that is no less work."""
    count, elements = rows.table.shape
    if sizes.elements != elements or x.dim() != 2 or len(x) != len(rows.types) or weight.dim() != 1:
        return None
    table, index = rows.table, rows.types
    if 2 * count > len(x):
        present, index = torch.unique(rows.types, return_inverse=True)
        if 2 * len(present) > len(x):
            return None
        table = table.index_select(0, present)
    plan, shapes = _plan_of_types(sizes.plan, len(table))
    matrices = [
        torch.matmul(table, part.view(shape)).flatten()
        for part, shape in zip(weight.split([u * v * w for u, v, w in shapes]), shapes)
    ]
    return mix_rows(x, torch.cat(matrices), x.new_empty(0), plan, (), index)


@lru_cache(maxsize=256)
def _plan_of_types(plan: str, count: int) -> tuple[PlanSizes, tuple[tuple[int, int, int], ...]]:
    """The plan with a scalar of y for each type; shapes of the weights for each scalar of the table."""
    given = ProductPlan.parse(plan)
    ((_, scalar),) = given.irreps_in2
    return plan_sizes(str(replace(given, irreps_in2=Irreps([(count, scalar)])))), given.path_shapes
