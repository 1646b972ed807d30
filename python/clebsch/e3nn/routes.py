"""Which methods of e3nn's classes are replaced, and by what."""

from __future__ import annotations

from typing import Any

from clebsch.e3nn import linear, spherical_harmonics, tensor_product
from clebsch.e3nn.forwards import Route, layer_classes

__all__ = ["REPLACED", "prepare"]

REPLACED: dict[str, dict[str, Route]] = {
    "TensorProduct": {
        "forward": tensor_product.forward,
        "__init__": tensor_product.construct,
        "_load_from_state_dict": tensor_product.load,
    },
    "Linear": {"forward": linear.forward},
    "SphericalHarmonics": {"forward": spherical_harmonics.forward},
}


def prepare(module: Any) -> None:
    """Find out how a live module of e3nn runs on our kernels, ahead of its first call."""
    rooms = (tensor_product, linear, spherical_harmonics)
    for cls, room in zip(layer_classes(), rooms, strict=True):
        if isinstance(module, cls):
            room.prepare(module)
