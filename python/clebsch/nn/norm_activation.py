"""NormActivation: every irrep scaled by a function of its norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.nn.activation import Function, check_features, check_function
from clebsch.o3.irreps import Irreps
from clebsch.o3.norm import Norm
from clebsch.o3.tensor_product import ElementwiseTensorProduct

__all__ = ["NormActivation"]


class NormActivation(torch.nn.Module):
    """x f(|x| + b) / |x| for every irrep x; x f(|x| + b) with normalize=False.

    Signature, attributes, state_dict and numbers of ``e3nn.nn.NormActivation`` 0.6, where it is defined:
    e3nn's cannot be made with normalize=False and not with a bias where irreps_in is a string. Following
    `tensor field networks <https://arxiv.org/abs/1802.08219>`_, norms in the denominator are at least
    `epsilon`.

    Args:
        irreps_in: in any form that `Irreps` reads; also irreps_out.
        scalar_nonlinearity: the function f, of a tensor (..., irreps_in.num_irreps). Unlike those of
            `Activation`, it is taken as it is.
        normalize: whether x is divided by its norm.
        epsilon: the least norm, 1e-8 if None. Must be None where `normalize` is False.
        bias: whether one b per irrep is learned, from 0; else there is none.

    Raises:
        ValueError: an epsilon that is not > 0, or is given in vain.
    """

    def __init__(
        self,
        irreps_in: Any,
        scalar_nonlinearity: Function,
        normalize: bool = True,
        epsilon: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_function("NormActivation", "scalar_nonlinearity", scalar_nonlinearity)
        if normalize:
            epsilon = 1e-8 if epsilon is None else epsilon
            if not epsilon > 0:
                raise ValueError(f"NormActivation: epsilon must be > 0, got {epsilon}")
        elif epsilon is not None:
            raise ValueError(
                f"NormActivation: epsilon must be None where normalize is False, got {epsilon}: "
                "nothing is divided by norms"
            )
        self.irreps_in = self.irreps_out = Irreps(irreps_in)
        self._dim = self.irreps_in.dim
        self.scalar_nonlinearity = scalar_nonlinearity
        self.normalize, self.epsilon, self.bias = normalize, epsilon, bias
        # Squares are clamped before the root, whose derivative at 0 would be infinite.
        self.norm = Norm(self.irreps_in, squared=normalize)
        if bias:
            self.biases = torch.nn.Parameter(torch.zeros(self.irreps_in.num_irreps))
        self.scalar_multiplier = ElementwiseTensorProduct(self.norm.irreps_out, self.irreps_in)

    def forward(self, features: Tensor) -> Tensor:
        """features (..., irreps_in.dim) to the same shape."""
        check_features("NormActivation", "features", features, self._dim, compiled=True)
        norms = self.norm(features)
        if self.normalize:
            # Where the square of epsilon is 0 in this dtype, the least number still keeps from dividing by 0.
            norms = norms.clamp_min(max(self.epsilon**2, torch.finfo(norms.dtype).tiny)).sqrt()
        scalings = self.scalar_nonlinearity(norms + self.biases if self.bias else norms)
        if self.normalize:
            scalings = scalings / norms
        return self.scalar_multiplier(scalings, features)
