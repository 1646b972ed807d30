"""e3nn's layers, of any version, on our kernels: what takes their forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.convert import gate
from clebsch.convert.left import Left
from clebsch.convert.radial import RadialWeights, as_tensor
from clebsch.convert.swap import Accelerated
from clebsch.e3nn import linear, spherical_harmonics, tensor_product
from clebsch.e3nn.operands import note, refused
from clebsch.graph import Graph
from clebsch.ops.convolution import convolve
from clebsch.ops.dispatch import takes
from clebsch.ops.radial_convolution import convolve_radially

__all__ = ["RULES", "Linear", "SphericalHarmonics", "TensorProduct", "convolve_edges", "is_convolved"]


class TensorProduct(Accelerated):
    """The family of e3nn's products."""

    does = "runs on our kernel"

    def forward(self, x: Tensor, y: Tensor, weight: Any = None) -> Tensor:
        """As e3nn's."""
        return tensor_product.forward(self._clebsch_original.forward, self, x, y, weight)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        original = self._clebsch_original._load_from_state_dict
        return tensor_product.load(original, self, *args, **kwargs)


class Linear(Accelerated):
    """e3nn's Linear."""

    does = "runs on our kernel"

    def forward(self, features: Tensor, weight: Any = None, bias: Any = None) -> Tensor:
        """As e3nn's."""
        return linear.forward(self._clebsch_original.forward, self, features, weight, bias)


class SphericalHarmonics(Accelerated):
    """e3nn's SphericalHarmonics."""

    does = "runs on our kernel"

    def forward(self, x: Tensor) -> Tensor:
        """As e3nn's."""
        return spherical_harmonics.forward(self._clebsch_original.forward, self, x)


def convolve_edges(
    product: Any, x: Tensor, y: Tensor, weight: Any, senders: Tensor, receivers: Tensor, num_nodes: int
) -> Tensor | None:
    """For every receiver, the sum over its edges of product(x[sender], y[edge], weight[edge]), in one kernel.

    product: a live TensorProduct of e3nn with weights for every edge. x: (num_nodes, irreps_in1.dim). None
    if the kernel does not take it; then the reason is on `product`.
    """
    factored = isinstance(weight, RadialWeights) and weight.is_factored and takes("radial_convolution", x)
    if isinstance(weight, RadialWeights) and not factored:
        weight = weight.whole()
    factors = {"weight": weight.hidden, "matrix": weight.matrix} if factored else {"weight": weight}
    noun = "radial_convolution" if factored else "convolution"
    reason, sizes = refused(noun, {"x": x, "y": y, **factors}), None
    if reason is None:
        sizes, reason = tensor_product.plan_of(product)
    if sizes is not None and x.shape != (num_nodes, sizes.in1):
        sizes, reason = None, f"x has not one row of {sizes.in1} numbers for each of {num_nodes} nodes"
    note(product, reason)
    if sizes is None:
        return None
    graph = Graph.of_call(senders, receivers, num_nodes)
    if factored:
        return convolve_radially(x, y, weight.hidden, weight.matrix, graph, sizes)
    return convolve(x, y, weight, graph, sizes)


def sum_edges(product: Any, x: Tensor, y: Tensor, weight: Any, senders: Tensor, receivers: Tensor) -> Tensor:
    """`convolve_edges`; where no kernel does so, rows are gathered, multiplied and summed in three steps."""
    out = convolve_edges(product, x, y, weight, senders, receivers, x.shape[0])
    if out is None:
        messages = TensorProduct.forward(product, x[senders], y, as_tensor(weight))
        out = messages.new_zeros(x.shape[0], messages.shape[1]).index_add(0, receivers, messages)
    return out


def _product(module: Any) -> Any:
    _, reason = tensor_product.plan_of(module)
    return {module: TensorProduct} if reason is None else Left(reason)


def _linear(module: Any) -> Any:
    ours = linear.prepare(module)
    return Left(ours) if isinstance(ours, str) else {module: Linear}


def _harmonics(module: Any) -> Any:
    return {module: SphericalHarmonics}


RULES = {
    "TensorProduct": _product,
    "Linear": _linear,
    "SphericalHarmonics": _harmonics,
    "Gate": gate.decide,
}


def is_convolved(product: Any) -> str | None:
    """Why a product cannot be the one of a convolution with weights for every edge; None if it can."""
    if not isinstance(product, torch.nn.Module) or not hasattr(product, "instructions"):
        return f"its product is a {type(product).__name__}, not one of e3nn's"
    if "forward" in vars(product):
        return "the forward of its product was replaced"
    if product.shared_weights and product.weight_numel > 0:
        return "its product shares its weights among edges"
    return tensor_product.plan_of(product)[1]
