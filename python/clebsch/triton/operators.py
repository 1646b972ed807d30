"""The operators by name, and how they are put in a place of torch's dispatcher."""

from __future__ import annotations

import torch

from . import graph_order, spherical_harmonics, tensor_product

__all__ = ["OPERATORS", "register"]

OPERATORS = {
    "graph_order": graph_order.graph_order,
    **{
        noun + step: getattr(module, noun + step)
        for noun, module in (
            ("spherical_harmonics", spherical_harmonics),
            ("tensor_product", tensor_product),
            ("convolution", tensor_product),
        )
        for step in ("", "_backward", "_double_backward")
    },
}


def register(*keys: str) -> torch.library.Library:
    """Make these the operators ``clebsch::*`` for tensors of the devices with these dispatch keys, in front
    of others that may be there, for as long as the result lives."""
    library = torch.library.Library("clebsch", "IMPL")
    for key in keys:
        for name, function in OPERATORS.items():
            library.impl(name, function, key, allow_override=True)
    return library
