"""Layers of equivariant networks, in e3nn's shape. Names that are not here resolve to the installed
e3nn's.
"""

from typing import Any

from clebsch.nn.activation import Activation
from clebsch.nn.convolution import TensorProductConv
from clebsch.nn.fully_connected_net import FullyConnectedNet
from clebsch.nn.gate import Gate

__all__ = ["Activation", "FullyConnectedNet", "Gate", "TensorProductConv"]


def __getattr__(name: str) -> Any:
    from clebsch.o3 import attribute_of_e3nn

    return attribute_of_e3nn("nn", name)
