"""How powers of irreps couple to one irrep: the arrays U that MACE calls ``U_matrix_1``, ``U_matrix_2``.

The power nu of a representation is coupled from the left, ((x x) x) x; a path is the irreps met on the way:

    U[M, i1, ..., inu, path]

with component-normalised coupling coefficients, sqrt(2 l + 1) C, at every step. Paths stand in the order of
MACE (mace/tools/cg.py, `U_matrix_real`): at each step those of the step before, each with the irreps on the
right in turn and what the two couple to by ascending degree, then sorted by (degree, parity), equals keeping
their order. MACE needs e3nn 0.4, so the signs are its.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clebsch.algebra import so3
from clebsch.algebra.irreps import Irrep, Irreps

__all__ = ["coupled_powers"]

Array = NDArray[np.float64]

# For the fourth power MACE keeps the irreps of spherical harmonics alone, to degree 11, along every path.
_FOURTH_POWER_DEGREES = 12


class _Path(NamedTuple):
    ir: Irrep
    value: Array  # (ir.dim, D, ..., D)


def coupled_powers(irreps_in: Irreps, ir_out: Irrep, correlation: int) -> list[Array]:
    """U for nu = 1, ..., correlation: (ir_out.dim, D, ..., D, paths) with nu axes of D = irreps_in.dim.

    Where nothing couples to ir_out, one path of zeros, as in MACE.
    """
    return [_power(str(irreps_in), str(ir_out), nu) for nu in range(1, correlation + 1)]


@lru_cache(maxsize=64)
def _power(irreps_text: str, out_text: str, nu: int) -> Array:
    irreps, ir_out = Irreps(irreps_text), Irrep(out_text)
    paths = [path for _, copies in _copies(irreps) for path in copies]
    for step in range(2, nu + 1):
        paths = _coupled(paths, irreps, ir_out if step == nu else None, natural=nu == 4)
    values = [path.value for path in paths if path.ir == ir_out]
    if not values:
        values = [np.zeros((ir_out.dim, *[irreps.dim] * nu))]
    found = np.stack(values, axis=-1)
    found.flags.writeable = False  # kept and handed out again
    return found


def _copies(irreps: Irreps) -> list[tuple[Irrep, list[_Path]]]:
    """For every block its irrep, and its copies."""
    identity = np.eye(irreps.dim)
    return [
        (ir, [_Path(ir, identity[block.start + u * ir.dim :][: ir.dim]) for u in range(mul)])
        for (mul, ir), block in zip(irreps, irreps.slices(), strict=True)
    ]


def _coupled(paths: list[_Path], irreps: Irreps, only: Irrep | None, natural: bool) -> list[_Path]:
    """Every path with every irrep on the right; those alone that end in `only`, if given."""
    found = []
    for left in paths:
        for ir_right, copies in _copies(irreps):
            for ir in left.ir * ir_right:
                if only is not None and ir != only:
                    continue
                if natural and not (ir.p == (-1) ** ir.l and ir.l < _FOURTH_POWER_DEGREES):
                    continue
                coupling = _coupling(ir.l, left.ir.l, ir_right.l)
                value = np.tensordot(coupling, left.value, axes=(1, 0))  # (ir, right, D, ..., D)
                value = np.moveaxis(value, 1, -1)
                found += [_Path(ir, value @ right.value) for right in copies]
    return sorted(found, key=lambda path: (path.ir.l, path.ir.p))


@lru_cache(maxsize=1024)
def _coupling(l_out: int, l_left: int, l_right: int) -> Array:
    """sqrt(2 l_out + 1) C[out, left, right]."""
    value = np.zeros((2 * l_out + 1, 2 * l_left + 1, 2 * l_right + 1))
    for entry in so3.coupling(l_out, l_left, l_right, "e3nn-0.4"):
        value[entry.m1, entry.m2, entry.m3] = entry.value
    return value * math.sqrt(2 * l_out + 1)
