"""Representations of O(3), rotations and equivariant layers, in the place of ``e3nn.o3``.

Same names, signatures and numbers. A name that is not here resolves to the installed e3nn's attribute of that
name, if there is one.
"""

import importlib
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
    """``e3nn.<module>.<name>`` of the installed e3nn; AttributeError if it is not installed or has no such
    name.
    """
    missing = f"module 'clebsch.{module}' has no attribute {name!r}"
    if name.startswith("_"):
        raise AttributeError(missing)
    try:
        theirs = importlib.import_module(f"e3nn.{module}")
    except ModuleNotFoundError:
        raise AttributeError(
            f"{missing}, and e3nn, whose attribute would be taken, is not installed"
        ) from None
    try:
        return getattr(theirs, name)
    except AttributeError:
        raise AttributeError(f"{missing}, nor has e3nn.{module}") from None


def __getattr__(name: str) -> Any:
    return attribute_of_e3nn("o3", name)
