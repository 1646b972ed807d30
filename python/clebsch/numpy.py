"""The compiled kernels on numpy arrays: no torch, no derivatives, one thread.

    from clebsch.numpy import spherical_harmonics, tensor_product

The GIL is released while a kernel runs, so threads of Python may call at the same time.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clebsch import backend
from clebsch.algebra.plan import ProductPlan

__all__ = ["spherical_harmonics", "tensor_product"]

NORMALIZATIONS = ("integral", "component", "norm")


def tensor_product(plan: ProductPlan | str, x: NDArray, y: NDArray, weight: NDArray) -> NDArray:
    """Rows of the product that `plan` describes.

    Args:
        plan: a `clebsch.algebra.plan.ProductPlan` or its canonical string.
        x: (rows, irreps_in1.dim), float32 or float64.
        y: (rows, irreps_in2.dim), of the dtype of x.
        weight: (rows, weight_numel), or (weight_numel,) shared by all rows, of the dtype of x; shape (0,)
            if no path is weighted.

    Returns:
        A new array (rows, irreps_out.dim) of the dtype of x.

    Raises:
        TypeError: an argument that is no array, or a dtype that does not fit.
        ValueError: a shape that does not fit, a string that is no plan, a degree above 100 or a multiplicity
            above 1048576.
    """
    if not isinstance(plan, ProductPlan):
        plan = ProductPlan.parse(plan)
    arrays = {"x": x, "y": y, "weight": weight}
    for name, array in arrays.items():
        _check_array("tensor_product", name, array)
        if array.dtype != x.dtype:
            raise TypeError(f"tensor_product: {name} must have the dtype of x, {x.dtype}, got {array.dtype}")
    dim1, dim2, numel = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel
    if x.ndim != 2 or x.shape[1] != dim1:
        raise ValueError(f"tensor_product: x must have shape (rows, {dim1}), got {x.shape}")
    rows = x.shape[0]
    if y.shape != (rows, dim2):
        raise ValueError(f"tensor_product: y must have shape (rows, {dim2}) = {(rows, dim2)}, got {y.shape}")
    if weight.shape not in ((rows, numel), (numel,)):
        raise ValueError(
            f"tensor_product: weight must have shape (rows, {numel}) = {(rows, numel)} or ({numel},), "
            f"got {weight.shape}"
        )
    backend.register_couplings(plan)
    return backend.native().tensor_product(*map(_plain, arrays.values()), str(plan))


def spherical_harmonics(ls: Sequence[int], points: NDArray, normalize: bool, normalization: str) -> NDArray:
    """Real spherical harmonics of degrees `ls`, in e3nn's conventions: the pole is y, degree 1 is (x, y, z).

    Args:
        ls: degrees, 0 to 1000, in any order, repeated if wanted.
        points: (..., 3), float32 or float64.
        normalize: evaluate at points / max(|points|, 1e-12).
        normalization: on the unit sphere, "component" (|Y^l|^2 = 2l + 1), "norm" (|Y^l| = 1) or "integral"
            (the square of each component integrates to 1).

    Returns:
        A new array (..., sum of 2l + 1): the degrees one after another, each m = -l..l. Not finite where a
        point is not.

    Raises:
        TypeError: points that are no array of float32 or float64, or a degree that is no integer.
        ValueError: another shape, a degree outside 0 to 1000, or an unknown normalization.
    """
    _check_array("spherical_harmonics", "points", points)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise ValueError(f"spherical_harmonics: points must have shape (..., 3), got {points.shape}")
    degrees = [_degree(l) for l in ls]
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"spherical_harmonics: normalization must be one of {', '.join(map(repr, NORMALIZATIONS))}, "
            f"got {normalization!r}"
        )
    batch = points.shape[:-1]
    rows = _plain(points).reshape(int(np.prod(batch)), 3)
    values = backend.native().spherical_harmonics(rows, degrees, bool(normalize), normalization)
    return values.reshape(*batch, values.shape[1])


def _check_array(noun: str, name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{noun}: {name} must be a numpy array, got {type(array).__name__}")
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{noun}: {name} must be float32 or float64, got {array.dtype}")


def _degree(l: Any) -> int:
    try:
        degree = operator.index(l)
    except TypeError:
        raise TypeError(f"spherical_harmonics: ls must be integers, got {l!r}") from None
    if degree < 0:
        raise ValueError(f"spherical_harmonics: ls must be >= 0, got {degree}")
    return degree


def _plain(array: NDArray) -> NDArray:
    """The same numbers as kernels read them: rows one after another, aligned, of no subclass."""
    return np.require(array, requirements=["C", "A", "E"])
