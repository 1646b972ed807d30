"""The norm of every copy of every irrep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.o3.irreps import Irreps
from clebsch.o3.tensor_product import TensorProduct
from clebsch.ops.dispatch import require_dense

__all__ = ["Norm"]


class Norm(torch.nn.Module):
    """The norm of each copy of each irrep, an invariant.

    Signature, attributes, state_dict and numbers are those of ``e3nn.o3.Norm`` 0.6.

    irreps_in: irreps of the features; neighbours of the same irrep are merged. squared: whether to return the
    squares of the norms. Where a norm is zero, its first and second derivatives are zero, as in e3nn.
    """

    def __init__(self, irreps_in: Any, squared: bool = False) -> None:
        super().__init__()
        irreps_in = Irreps(irreps_in).simplify()
        # the coupling of l and l to 0 is the identity over sqrt(2l + 1)
        instructions = [(i, i, i, "uuu", False, ir.dim) for i, (_, ir) in enumerate(irreps_in)]
        norms = Irreps([(mul, "0e") for mul, _ in irreps_in])
        self.tp = TensorProduct(irreps_in, irreps_in, norms, instructions, irrep_normalization="component")
        self.irreps_in = irreps_in
        self.irreps_out = norms.simplify()
        self.squared = squared
        self._width = irreps_in.dim  # torch.compile does not read irreps

    def forward(self, features: Tensor) -> Tensor:
        """The norms of features (..., irreps_in.dim): (..., irreps_out.dim).

        ValueError for another last dimension, TypeError for no tensor or another dtype than float32 and
        float64.
        """
        if not isinstance(features, Tensor):
            raise TypeError(f"Norm: features must be a tensor, got {type(features).__name__}")
        require_dense("Norm", "features", features)
        if features.dim() == 0 or features.shape[-1] != self._width:
            raise ValueError(
                f"Norm: features must have shape (..., {self._width}), got {tuple(features.shape)}"
            )
        if features.dtype not in (torch.float32, torch.float64):
            dtype = str(features.dtype).removeprefix("torch.")
            raise TypeError(f"Norm: features must be float32 or float64, got {dtype}")
        squares = self.tp(features, features)
        # relu: its gradient at zero is zero, whatever infinity the root's is
        return squares if self.squared else squares.relu().sqrt()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in})"
