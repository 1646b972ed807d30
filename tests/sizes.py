"""How large the problems of operator tests are: as large as a test says or, where kernels are interpreted or
emulated, no larger than that allows.

Triton's interpreter takes some 40 microseconds for each operation of each program, however many lanes it has.
So these are few: rows and edges, copies that kernels loop over, degrees, examples, steps of `gradcheck`. Not
cut are channels, rows of harmonics, and whatever else lies in the lanes.

The emulator takes a fraction of a microsecond for each barrier of each thread. So what is large is cut; no
degrees, and no random plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import emulation
import interpretation

__all__ = [
    "FAST",
    "copies",
    "degree",
    "derived_degree",
    "distinct",
    "edges",
    "examples",
    "one",
    "out_degree",
    "rows",
    "some",
    "terms",
]

FAST = interpretation.enabled()
"""Whether `gradcheck` compares derivatives along one direction only: its `fast_mode`."""


def _at_most(interpreted: int, emulated: int | None = None) -> Callable[[int], int]:
    most = interpreted if interpretation.enabled() else emulated if emulation.enabled() else None
    return lambda count: count if most is None else min(count, most)


rows = _at_most(2, 300)
edges = _at_most(4, 300)
copies = _at_most(2, 200)
degree = _at_most(8)
out_degree = _at_most(2)  # of products
derived_degree = _at_most(2)  # of harmonics whose fourth derivatives are taken
terms = _at_most(150)
examples = _at_most(8)


def some(values: Sequence) -> list:
    """Of values that say little of kernels that are interpreted, numbers in the lanes most of them: two."""
    return [values[0], values[-1]] if interpretation.enabled() else list(values)


def one(values: Sequence) -> list:
    """The same, but one of them."""
    return [values[len(values) // 2]] if interpretation.enabled() else list(values)


def distinct(cut: Callable[[int], int], values: Iterable) -> list:
    """What is left of numbers, or of tuples of them, when each is cut: without what came before."""
    cuts = (tuple(map(cut, value)) if isinstance(value, tuple) else cut(value) for value in values)
    return list(dict.fromkeys(cuts))
