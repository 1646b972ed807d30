"""Dropout of whole irreps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.nn.activation import check_features
from clebsch.o3.irreps import Irreps

__all__ = ["Dropout"]


class Dropout(torch.nn.Module):
    """In training, zeroes each irrep of each row with probability p and multiplies the others by 1 / (1 - p).

    Signature and numbers of ``e3nn.nn.Dropout`` 0.6, and with one seed on the CPU the same irreps.

    Args:
        irreps: of the features, in any form that `Irreps` reads.
        p: probability; below 0 it counts as 0, above 1 as 1.

    Raises:
        TypeError: p is not a number.
        ValueError: p is not a number (nan).
    """

    def __init__(self, irreps: Any, p: float) -> None:
        super().__init__()
        self.irreps = Irreps(irreps)
        try:
            is_number = float(p) == float(p)
        except (TypeError, ValueError):
            raise TypeError(f"Dropout: p must be a number, got {type(p).__name__}") from None
        if not is_number:
            raise ValueError(f"Dropout: p must be a probability, got {p}")
        self.p = p
        # Plain numbers, for torch.compile looks into what forward uses.
        self._blocks = [(mul, ir.dim) for mul, ir in self.irreps]
        self._dim = self.irreps.dim

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, ..., irreps.dim), of any floating dtype, to the same shape; one draw per irrep and batch
        index, whatever the dimensions between.
        """
        check_features("Dropout", "x", x, self._dim, batched=True)
        if not self.training or self.p <= 0:
            return x
        if self.p >= 1:
            return x * 0.0
        noise = self._noise(x)
        return x * noise.view(x.shape[0], *[1] * (x.dim() - 2), self._dim)

    def _noise(self, x: Tensor) -> Tensor:
        """0 or 1 / (1 - p) at all components of each irrep: (batch, irreps.dim)."""
        keep = 1 - self.p
        noise, start = x.new_empty(x.shape[0], self._dim), 0
        for mul, dim in self._blocks:
            # Block by block, as e3nn draws; written to its place, for the draws themselves take the longest.
            draws = x.new_empty(x.shape[0], mul).bernoulli_(keep).div_(keep)
            block = noise.narrow(-1, start, mul * dim).unflatten(-1, (mul, dim))
            block.copy_(draws.unsqueeze(-1))
            start += mul * dim
        return noise

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps}, p={self.p})"
