"""One of every layer that `clebsch.o3` and `clebsch.nn` offer, so that what handles all layers meets them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from clebsch import nn, o3

_UVU = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)]
_ARGUMENTS = {
    "TensorProduct": ("4x0e+4x1o", "0e+1o", "4x0e+4x1e", _UVU),
    "FullyConnectedTensorProduct": ("4x0e+2x1o", "0e+1o", "3x0e+2x1o"),
    "FullTensorProduct": ("4x0e+2x1o", "0e+1o"),
    "ElementwiseTensorProduct": ("4x0e+2x1o", "4x0e+2x1o"),
    "TensorSquare": ("4x0e+2x1o",),
    "ReducedTensorProducts": ("ij=ji",),
    "Linear": ("4x0e+2x1o", "3x0e+5x1o"),
    "SphericalHarmonics": ([0, 1, 2], True),
    "Norm": ("4x0e+2x1o",),
    "TensorProductConv": ("4x0e+4x1o", "0e+1o", "4x0e+4x1e", _UVU),
    "Gate": ("4x0e", [torch.tanh], "2x0e", [torch.sigmoid], "2x1o"),
    "Activation": ("4x0e+2x0o", [torch.sigmoid, torch.tanh]),
    "NormActivation": ("4x0e+2x1o", torch.sigmoid),
    "BatchNorm": ("4x0e+2x1o",),
    "Dropout": ("4x0e+2x1o", 0.5),
    "Extract": ("4x0e+2x1o", ["4x0e"], [(0,)]),
    "ExtractIr": ("4x0e+2x1o", "1o"),
    "SymmetricContraction": ("4x0e+4x1o", "4x0e+4x1o", 3),
    "FullyConnectedNet": ([3, 4, 5], torch.tanh),
    "S2Activation": ("1x0e+1x1o+1x2e", torch.tanh, 20),
}
_KEYWORDS = {"ReducedTensorProducts": {"i": "1o"}, "SymmetricContraction": {"num_elements": 3}}

# Nothing says what they must give: random numbers, and a function on a grid.
WITHOUT_DEFINITION = {"Dropout", "S2Activation"}


def names() -> Iterator[str]:
    """Of every class of layers that the two packages list."""
    for package in (o3, nn):
        for name in package.__all__:
            offered = getattr(package, name)
            if isinstance(offered, type) and issubclass(offered, torch.nn.Module):
                yield name


def sample(name: str) -> torch.nn.Module:
    """A small layer of that name."""
    assert name in _ARGUMENTS, f"give {name} arguments in tests/layer_samples.py"
    package = o3 if name in o3.__all__ else nn
    return getattr(package, name)(*_ARGUMENTS[name], **_KEYWORDS.get(name, {}))


NET_CHANGED = "not all its layers are as it made them, with weights that are parameters"


def changed_nets() -> Iterator[torch.nn.Module]:
    """Nets that run, of which a user has changed a layer."""
    for change in (torch.nn.utils.parametrizations.weight_norm, lambda _: torch.nn.Linear(3, 4)):
        net = nn.FullyConnectedNet([3, 4, 5], torch.tanh)
        net.layer0 = change(net.layer0)
        yield net
