"""Representations of O(3), rotations and equivariant layers, in the place of ``e3nn.o3``.

Same names, signatures and numbers. A name that is not here resolves to the installed e3nn's attribute of that
name, if there is one.
"""

import importlib
import importlib.util
import inspect
from typing import Any

from clebsch.o3.irreps import Irrep, Irreps
from clebsch.o3.linear import Linear
from clebsch.o3.norm import Norm
from clebsch.o3.reduced_tensor_products import ReducedTensorProducts
from clebsch.o3.rotation import (
    angles_to_axis_angle,
    angles_to_matrix,
    angles_to_quaternion,
    angles_to_xyz,
    axis_angle_to_angles,
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    compose_angles,
    compose_axis_angle,
    compose_quaternion,
    identity_angles,
    identity_quaternion,
    inverse_angles,
    inverse_quaternion,
    matrix_to_angles,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_x,
    matrix_y,
    matrix_z,
    quaternion_to_angles,
    quaternion_to_axis_angle,
    quaternion_to_matrix,
    rand_angles,
    rand_axis_angle,
    rand_matrix,
    rand_quaternion,
    xyz_to_angles,
)
from clebsch.o3.spherical_harmonics import SphericalHarmonics, spherical_harmonics
from clebsch.o3.tensor_product import (
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
    Instruction,
    TensorProduct,
)
from clebsch.o3.tensor_square import TensorSquare
from clebsch.o3.wigner import (
    change_basis_real_to_complex,
    so3_generators,
    wigner_3j,
    wigner_D,
)

__all__ = [
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Instruction",
    "Irrep",
    "Irreps",
    "Linear",
    "Norm",
    "ReducedTensorProducts",
    "SphericalHarmonics",
    "TensorProduct",
    "TensorSquare",
    "angles_to_axis_angle",
    "angles_to_matrix",
    "angles_to_quaternion",
    "angles_to_xyz",
    "axis_angle_to_angles",
    "axis_angle_to_matrix",
    "axis_angle_to_quaternion",
    "change_basis_real_to_complex",
    "compose_angles",
    "compose_axis_angle",
    "compose_quaternion",
    "identity_angles",
    "identity_quaternion",
    "inverse_angles",
    "inverse_quaternion",
    "matrix_to_angles",
    "matrix_to_axis_angle",
    "matrix_to_quaternion",
    "matrix_x",
    "matrix_y",
    "matrix_z",
    "quaternion_to_angles",
    "quaternion_to_axis_angle",
    "quaternion_to_matrix",
    "rand_angles",
    "rand_axis_angle",
    "rand_matrix",
    "rand_quaternion",
    "so3_generators",
    "spherical_harmonics",
    "wigner_3j",
    "wigner_D",
    "xyz_to_angles",
]


def attribute_of_e3nn(module: str, name: str) -> Any:
    """``e3nn.<module>.<name>`` of the installed e3nn, one of its modules included.

    AttributeError, or ImportError in a statement ``from clebsch.<module> import <name>``, if e3nn is not
    installed, cannot be imported or has no such name.
    """
    missing = f"module 'clebsch.{module}' has no attribute {name!r}"
    if name.startswith("_"):
        raise AttributeError(missing)
    try:
        return _of_e3nn(module, name, missing)
    except AttributeError as error:
        if _is_imported_by_name() and importlib.util.find_spec(f"clebsch.{module}.{name}") is None:
            # Python would replace the message by one that does not speak of e3nn.
            raise ImportError(str(error), name=f"clebsch.{module}") from error.__cause__
        raise


def _of_e3nn(module: str, name: str, missing: str) -> Any:
    try:
        theirs = importlib.import_module(f"e3nn.{module}")
    except ModuleNotFoundError as error:
        if error.name not in ("e3nn", f"e3nn.{module}"):
            raise AttributeError(f"{missing}, and e3nn cannot be imported: {error}") from error
        raise AttributeError(
            f"{missing}, and e3nn, whose attribute would be taken, is not installed"
        ) from None
    except Exception as error:
        raise AttributeError(f"{missing}, and e3nn cannot be imported: {error}") from error
    if hasattr(theirs, name):
        return getattr(theirs, name)
    try:
        return importlib.import_module(f"e3nn.{module}.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"{missing}, nor has e3nn.{module}") from None


def _is_imported_by_name() -> bool:
    """Whether the module's __getattr__ is asked by a statement ``from ... import name``."""
    frame = inspect.currentframe()
    for _ in range(3):  # this function, attribute_of_e3nn, __getattr__
        frame = frame.f_back if frame else None
    return frame is not None and frame.f_code.co_name == "_handle_fromlist"


def __getattr__(name: str) -> Any:
    return attribute_of_e3nn("o3", name)
