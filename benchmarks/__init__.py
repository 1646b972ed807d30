"""Speed, measured: `python -m benchmarks NAME`. What is measured and how to read it: docs/benchmarks.md."""

NAMES = (
    "limits",
    "spherical_harmonics",
    "tensor_product",
    "convolution",
    "radial_convolution",
    "linear",
    "symmetric_contraction",
    "layers",
    "drop_in",
    "scaling",
    "memory",
    "published",
    "accelerate",
)
