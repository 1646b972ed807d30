"""Layers with random operands: how each is called and what must come out, by `reference` or definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from clebsch.problems.definitions import DEFINED
from clebsch.problems.expected import Draws, Expected, Problem, Unknown, derivatives
from clebsch.problems.products import REFERENCED, linear_plan
from clebsch.survey import Layer, product_plan

__all__ = ["Expected", "Problem", "Unknown", "derivatives", "problem"]

ROWS = 19  # a block of the widest vectors and some more


def problem(
    layer: Layer,
    rows: int | None = None,
    seed: int = 0,
    *,
    edges_per_node: float = 3,
    max_terms: int = 0,
    dtype: Any = np.float64,
) -> Problem:
    """The problem of a layer with `rows` rows; `Unknown` with the reason if there is none.

    max_terms: where more than 0, the number of terms of a product that the reference is asked for; rows are
    fewer than 19 (if None) where that is exceeded, and a product that exceeds it in three rows is unknown.
    dtype: of operands; float32 saves memory where the problem is only to be timed.
    """
    if layer.overrides_forward:
        raise Unknown(f"{layer.class_name} overrides the forward of {layer.kind}")
    if layer.device.type != "cpu":
        raise Unknown(f"it is on {layer.device}; layers are run and compared on the CPU")
    kind = (REFERENCED | DEFINED).get(layer.kind)
    if kind is None:
        raise Unknown(f"{layer.origin}'s {layer.class_name} has no definition here to compare with")
    if rows is None:
        rows = _affordable_rows(layer, max_terms)
    return kind(layer, Draws(seed, dtype), rows, edges_per_node)


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
