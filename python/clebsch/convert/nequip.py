"""NequIP's convolutions: edge_dst holds the receivers, edge_src the senders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.convert.e3nn import TensorProduct, convolve_edges, is_convolved
from clebsch.convert.left import Left
from clebsch.convert.radial import RadialWeights, affine, is_plain
from clebsch.convert.swap import Accelerated, original_class

__all__ = ["RULES", "Convolution", "RadialMLP"]


class Convolution(Accelerated):
    """TensorProductScatter: gather - product - scatter in one kernel."""

    does = "gathers, multiplies and sums at receivers in one kernel"

    def forward(
        self, x: Tensor, edge_attr: Tensor, edge_weight: Any, edge_dst: Tensor, edge_src: Tensor
    ) -> Tensor:
        """x (num_nodes, ...) and edges to sums at receivers (num_nodes, ...)."""
        out = None
        if not torch.compiler.is_compiling() and is_plain(self.tp):
            out = convolve_edges(self.tp, x, edge_attr, edge_weight, edge_src, edge_dst, x.shape[0])
        if out is None:
            out = super().forward(x, edge_attr, _whole(edge_weight), edge_dst, edge_src)
        return out


class RadialMLP(Accelerated):
    """ScalarMLPFunction whose last layer is not applied: a convolution takes its matrix."""

    does = "its last layer is applied by the convolution, a few edges at a time"

    def forward(self, x: Tensor) -> Any:
        """(num_edges, inputs) to the `RadialWeights` of the edges."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or not is_plain(self.mlp):
            return super().forward(x)
        *inner, last = self.mlp
        if not is_plain(last):
            return super().forward(x)
        for layer in inner:
            x = layer(x)
        return affine(x, last.weight * last.alpha, last.bias)


def _whole(weight: Any) -> Any:
    return weight.whole() if isinstance(weight, RadialWeights) else weight


def _scatter(module: Any) -> Any:
    product = getattr(module, "tp", None)
    reason = is_convolved(product)
    return {module: Convolution, product: TensorProduct} if reason is None else Left(reason)


def _interaction(block: Any) -> Any:
    """The block's code stays; its net ends early where its convolution is ours."""
    convolution, net = getattr(block, "tp_scatter", None), getattr(block, "edge_mlp", None)
    if _forward_of(convolution) != "TensorProductScatter" or "forward" in vars(convolution):
        return {}
    found = _scatter(convolution)
    if isinstance(found, Left) or not is_plain(convolution):
        return {}
    if _forward_of(net) == "ScalarMLPFunction" and "forward" not in vars(net) and _ends_in_matrix(net):
        found[net] = RadialMLP
    return found


def _forward_of(module: Any) -> str:
    """Name of the class whose forward a module has."""
    classes = () if module is None else original_class(module).__mro__
    return next((cls.__name__ for cls in classes if "forward" in vars(cls)), "")


def _ends_in_matrix(net: Any) -> bool:
    layers = list(net.mlp) if type(getattr(net, "mlp", None)) is torch.nn.Sequential else []
    return bool(layers) and _forward_of(layers[-1]) == "ScalarLinearLayer"


RULES = {"TensorProductScatter": _scatter, "InteractionBlock": _interaction}
