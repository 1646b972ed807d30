"""Dropout of whole irreps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.nn.activation import check_features
from clebsch.o3.irreps import Irreps
from clebsch.ops.tensor_product import tensor_product

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
        # What forward needs in plain numbers: torch.compile looks into what it is given.
        self._muls, self._dim = [mul for mul, _ in self.irreps], self.irreps.dim
        scalars = Irreps([(mul, (0, 1)) for mul, _ in self.irreps])
        instructions = [(i, i, i, "uuu", False) for i in range(len(self.irreps))]
        # A plan and not a layer: a checkpoint of Dropout is empty.
        self._plan = str(ProductPlan.from_instructions(self.irreps, scalars, self.irreps, instructions))

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, ..., irreps.dim), float32 or float64, to the same shape; one draw per irrep and batch
        index, whatever the dimensions between.
        """
        check_features("Dropout", "x", x, self._dim, batched=True, compiled=True)
        if not self.training or self.p <= 0:
            return x
        if self.p >= 1:
            return x * 0.0
        keep = 1 - self.p
        # Block by block, as e3nn draws; and drawing is all that is done per block.
        noise = [x.new_empty(x.shape[0], mul).bernoulli_(keep) for mul in self._muls]
        noise = torch.cat(noise, dim=-1).div_(keep) if noise else x.new_empty(x.shape[0], 0)
        if x.dim() == 2:
            return tensor_product(x, noise, noise.new_empty(0), self._plan)
        between = x.shape[1:-1]
        rows = x.shape[0] * math.prod(between)
        noise = noise.view(x.shape[0], *[1] * len(between), noise.shape[-1])
        noise = noise.expand(-1, *between, -1).reshape(rows, noise.shape[-1])
        y = tensor_product(x.reshape(rows, self._dim), noise, noise.new_empty(0), self._plan)
        return y.reshape(x.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps}, p={self.p})"
