"""Torch operators ``torch.ops.clebsch.*`` with checked wrappers. Importing this package loads the compiled
library.
"""

from clebsch import backend

backend.load()

from clebsch.ops import one_hot  # noqa: E402, F401  the library must be loaded first
from clebsch.ops.convolution import convolution  # noqa: E402
from clebsch.ops.edge_product import edge_product  # noqa: E402
from clebsch.ops.gate import gate  # noqa: E402
from clebsch.ops.linear import linear  # noqa: E402
from clebsch.ops.radial_convolution import radial_convolution  # noqa: E402
from clebsch.ops.silu import silu  # noqa: E402
from clebsch.ops.spherical_harmonics import spherical_harmonics  # noqa: E402
from clebsch.ops.symmetric_contraction import symmetric_contraction  # noqa: E402
from clebsch.ops.tensor_product import tensor_product  # noqa: E402

__all__ = [
    "convolution",
    "edge_product",
    "gate",
    "linear",
    "radial_convolution",
    "silu",
    "spherical_harmonics",
    "symmetric_contraction",
    "tensor_product",
]
