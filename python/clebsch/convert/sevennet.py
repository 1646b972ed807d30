"""SevenNet's convolutions: row 0 of its edges holds the receivers, row 1 the senders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.convert.e3nn import TensorProduct, is_convolved, sum_edges
from clebsch.convert.left import Left
from clebsch.convert.radial import FullyConnectedNet, as_tensor, is_plain
from clebsch.convert.swap import Accelerated
from clebsch.ops.dispatch import is_autocast

__all__ = ["RULES", "Convolution", "Product"]

# SevenNet's keys: features of atoms that another process owns, and how many atoms are our own.
GHOSTS, NUM_LOCAL = "x_ghost", "nlocal"


class Convolution(Accelerated):
    """IrrepsConvolution: gather - product - scatter in one kernel, which takes weight_nn's last layer."""

    does = "gathers, multiplies and sums at receivers in one kernel"

    def forward(self, data: Any) -> Any:
        """As SevenNet's: the features of `data`, a dictionary, become their sums at receivers."""
        is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_recorded or is_autocast() or not is_plain(self.convolution):
            return super().forward(data)
        weight = self.weight_nn(data[self.key_weight_input])
        x = data[self.key_x]
        if self.is_parallel:
            x = torch.cat([x, data[GHOSTS]])
        receivers, senders = data[self.key_edge_idx]
        out = sum_edges(self.convolution, x, data[self.key_filter], weight, senders, receivers)
        out = out.div(self.denominator)
        data[self.key_x] = torch.tensor_split(out, data[NUM_LOCAL])[0] if self.is_parallel else out
        return data


class Product(TensorProduct):
    """The product of a convolution, called with the rows of edges."""

    def forward(self, x: Tensor, y: Tensor, weight: Any = None) -> Tensor:
        """As e3nn's."""
        return super().forward(x, y, as_tensor(weight))


def _convolution(module: Any) -> Any:
    reason = _not_taken(module)
    if reason is not None:
        return Left(reason)
    found = {module: Convolution, module.convolution: Product}
    net = module.weight_nn
    if type(net).__name__ == "FullyConnectedNet" and "forward" not in vars(net):
        found[net] = FullyConnectedNet
    return found


def _not_taken(module: Any) -> str | None:
    if not getattr(module, "layer_instantiated", False):
        return "its layers are not made yet"
    return is_convolved(module.convolution)


def _fused(module: Any) -> Any:
    return Left(f"its convolution is fused by {type(module.convolution).__name__}")


RULES = {"IrrepsConvolution": _convolution, "IrrepsScatterGatterFusedConvolution": _fused}
