"""Layers of equivariant networks, in e3nn's shape. Names that are not here resolve to the installed
e3nn's.
"""

from typing import Any

from clebsch.nn.activation import Activation
from clebsch.nn.batch_norm import BatchNorm
from clebsch.nn.convolution import TensorProductConv
from clebsch.nn.dropout import Dropout
from clebsch.nn.extract import Extract, ExtractIr
from clebsch.nn.fully_connected_net import FullyConnectedNet
from clebsch.nn.gate import Gate
from clebsch.nn.norm_activation import NormActivation
from clebsch.nn.symmetric_contraction import SymmetricContraction
from clebsch.nn.symmetric_contraction_table import ContractionTable, contraction_table

__all__ = [
    "Activation",
    "BatchNorm",
    "ContractionTable",
    "Dropout",
    "Extract",
    "ExtractIr",
    "FullyConnectedNet",
    "Gate",
    "NormActivation",
    "SymmetricContraction",
    "TensorProductConv",
    "contraction_table",
]


def __getattr__(name: str) -> Any:
    from clebsch.o3 import attribute_of_e3nn

    return attribute_of_e3nn("nn", name)
