"""Radial features of an edge: Bessel functions under a smooth cutoff."""

from __future__ import annotations

import math

import torch


def polynomial_envelope(fraction: torch.Tensor, power: int = 6) -> torch.Tensor:
    """1 at zero, 0 from one on, with two continuous derivatives there.

    `fraction` is distance / cutoff, any shape. Gasteiger, Gross, Guennemann, ICLR 2020, eq. 8.
    """
    p = power
    inside = (
        1
        - (p + 1) * (p + 2) / 2 * fraction**p
        + p * (p + 2) * fraction ** (p + 1)
        - p * (p + 1) / 2 * fraction ** (p + 2)
    )
    return inside * (fraction < 1)


class BesselBasis(torch.nn.Module):
    """sqrt(2 / cutoff) sin(n pi r / cutoff) / r for n = 1 .. size, times the envelope.

    Distances (E,) in Angstrom give (E, size). Gasteiger, Gross, Guennemann, ICLR 2020, eq. 7.
    """

    def __init__(self, size: int, cutoff: float):
        super().__init__()
        self.cutoff = float(cutoff)
        # Small integers survive any cast of the model.
        self.register_buffer("order", torch.arange(1.0, size + 1), persistent=False)

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """distances (E,) > 0 in Angstrom to (E, size), zero from the cutoff on."""
        fraction = distances / self.cutoff
        waves = torch.sin(fraction[:, None] * (math.pi * self.order))
        amplitude = math.sqrt(2 / self.cutoff) * polynomial_envelope(fraction) / distances
        return waves * amplitude[:, None]
