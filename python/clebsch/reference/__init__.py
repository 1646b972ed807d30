"""The judge: every operation and its first two derivatives, slow and short, in float64.

Nothing here is compiled and nothing is shared with the kernels but the exact coupling coefficients. Arguments
are anything numpy reads as arrays; results are float64 arrays. `magnitude` and `term_counts` say how far a
result in floating point may be off: the same contraction on absolute values, and how many terms each number
sums.
"""

from .bounds import magnitude, term_counts
from .convolution import convolution, convolution_backward, convolution_double_backward
from .edge_product import edge_product, edge_product_backward, edge_product_double_backward
from .gate import gate, gate_backward
from .linear import linear, linear_grad_bias, linear_grad_weight, linear_grad_x
from .radial_convolution import (
    radial_convolution,
    radial_convolution_backward,
    radial_convolution_double_backward,
)
from .silu import silu, silu_backward, silu_double_backward
from .spherical_harmonics import (
    spherical_harmonics,
    spherical_harmonics_backward,
    spherical_harmonics_double_backward,
)
from .symmetric_contraction import (
    symmetric_contraction,
    symmetric_contraction_backward,
    symmetric_contraction_double_backward,
)
from .tensor_product import tensor_product, tensor_product_backward, tensor_product_double_backward

__all__ = [
    "convolution",
    "convolution_backward",
    "convolution_double_backward",
    "edge_product",
    "edge_product_backward",
    "edge_product_double_backward",
    "gate",
    "gate_backward",
    "linear",
    "linear_grad_bias",
    "linear_grad_weight",
    "linear_grad_x",
    "magnitude",
    "radial_convolution",
    "radial_convolution_backward",
    "radial_convolution_double_backward",
    "silu",
    "silu_backward",
    "silu_double_backward",
    "spherical_harmonics",
    "spherical_harmonics_backward",
    "spherical_harmonics_double_backward",
    "symmetric_contraction",
    "symmetric_contraction_backward",
    "symmetric_contraction_double_backward",
    "tensor_product",
    "tensor_product_backward",
    "tensor_product_double_backward",
    "term_counts",
]
