"""The seam between the potential and the layers it is built from: clebsch's, or e3nn's for comparison.

Both sets take irreps as strings and name their parameters alike, so that one state_dict serves both.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LAYER_SETS = ("clebsch", "e3nn")


@dataclass(frozen=True)
class LayerSet:
    """Constructors of the five layers that a potential is made of, with the arguments of clebsch's own.

    convolution makes a layer that is called with (x, y, weight, graph), as `clebsch.nn.TensorProductConv`;
    e3nn has none, so its set makes one from its tensor product.
    """

    spherical_harmonics: Callable[..., Any]
    linear: Callable[..., Any]
    gate: Callable[..., Any]
    fully_connected: Callable[..., Any]
    convolution: Callable[..., Any]


def layer_set(name: str) -> LayerSet:
    """ "clebsch" or "e3nn"; the latter raises ImportError where e3nn is not installed."""
    if name not in LAYER_SETS:
        raise ValueError(f"layers must be one of {', '.join(LAYER_SETS)}, got {name!r}")
    o3 = importlib.import_module(f"{name}.o3")
    nn = importlib.import_module(f"{name}.nn")
    return LayerSet(
        spherical_harmonics=o3.SphericalHarmonics,
        linear=o3.Linear,
        gate=nn.Gate,
        fully_connected=nn.FullyConnectedNet,
        convolution=nn.TensorProductConv if name == "clebsch" else _row_convolution(o3.TensorProduct),
    )


def _row_convolution(product: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """What TensorProductConv computes, said with a product over rows: gather, multiply, index_add."""

    class RowConvolution(product):
        def __init__(self, irreps_in1, irreps_in2, irreps_out, instructions):
            super().__init__(
                irreps_in1, irreps_in2, irreps_out, instructions, shared_weights=False, internal_weights=False
            )

        def forward(self, x, y, weight, graph):
            rows = super().forward(x[graph.senders], y, weight)
            return rows.new_zeros(graph.num_nodes, rows.shape[1]).index_add(0, graph.receivers, rows)

    return RowConvolution
