"""Which layers a module is made of: ours, and live ones of e3nn, which are known by the names of their
classes, so that e3nn need not be imported, nor be of any version.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.algebra.so3 import coupling
from clebsch.convert.left import LEFT
from clebsch.convert.swap import is_accelerated, original_class, package_of
from clebsch.o3.coupling_tables import Triple, flip, table_triple
from clebsch.o3.irreps import Irreps

__all__ = ["Layer", "coupling_buffers", "product_plan", "survey"]

PRODUCTS = (
    "TensorProduct",
    "FullyConnectedTensorProduct",
    "FullTensorProduct",
    "ElementwiseTensorProduct",
    "TensorProductConv",
    "TensorSquare",
)
KNOWN = (
    *PRODUCTS,
    "SphericalHarmonics",
    "Linear",
    "Norm",
    "ReducedTensorProducts",
    "Gate",
    "Activation",
    "NormActivation",
    "FullyConnectedNet",
    "SymmetricContraction",
    "BatchNorm",
    "Dropout",
    "Extract",
)
# e3nn's FullTensorProductv2 is a class named FullTensorProduct that is no product of this family.
FAMILY = "TensorProduct"

# Of the kernels that layers ask for; all others ask for "tensor_product".
NOUNS = {
    "TensorProductConv": "convolution",
    "SphericalHarmonics": "spherical_harmonics",
    "Linear": "linear",
    "Gate": "gate",
    "SymmetricContraction": "symmetric_contraction",
}


@dataclass(frozen=True)
class Layer:
    """A layer at `name` in the tree of modules ("" for the root), of the package `origin`.

    kind: the name of its class, or of the nearest ancestor that is known here; "" if none is.
    """

    name: str
    module: torch.nn.Module
    origin: str
    kind: str

    @property
    def class_name(self) -> str:
        """As in the source."""
        return self.module.original_name if self.is_recorded else type(self.module).__name__

    @property
    def is_recorded(self) -> bool:
        """Whether TorchScript runs what it recorded of the layer."""
        return isinstance(self.module, torch.jit.ScriptModule)

    @property
    def is_product(self) -> bool:
        """Whether it is one of the family of `TensorProduct`."""
        return self.kind in PRODUCTS

    @property
    def noun(self) -> str:
        """Whose kernels it asks for."""
        if self.kind == "Linear" and self.module.weight_numel and not self.module.shared_weights:
            return "tensor_product"  # with y = 1
        return NOUNS.get(self.kind, "tensor_product")

    @property
    def overrides_forward(self) -> bool:
        """Whether a class of somebody else's changed what it computes."""
        for cls in type(self.module).__mro__ if self.kind else ():
            if cls.__name__ == self.kind and package_of(cls) == self.origin:
                return False
            if "forward" in vars(cls) and package_of(cls) not in ("clebsch", "e3nn"):
                return True
        return False

    @property
    def accelerated(self) -> str | None:
        """What `clebsch.accelerate` made of it, in a sentence; None for a module with its own forward."""
        return type(self.module).does if is_accelerated(self.module) else None

    @property
    def is_on_kernels(self) -> bool:
        """Whether our kernels run it: a layer of ours, or one of another package that was put there."""
        if self.origin == "clebsch":
            return True
        return (self.accelerated is not None or _is_routed(self.module)) and self.reason is None

    @property
    def reason(self) -> str | None:
        """Why a layer is not on our kernels though `clebsch.e3nn` or `accelerate` was to put it there."""
        own = vars(self.module)
        left = own.get(LEFT)
        return own.get("_clebsch_reason") if left is None and _is_routed(self.module) else left

    @property
    def is_waiting(self) -> bool:
        """Whether `clebsch.e3nn` will say only at the next call what runs this layer."""
        seam = sys.modules.get("clebsch.e3nn")
        is_taken = self.is_product or self.kind in ("Linear", "SphericalHarmonics")
        return (
            self.origin == "e3nn"
            and is_taken
            and seam is not None
            and seam.is_enabled(self.module)
            and not _is_routed(self.module)
            and not is_accelerated(self.module)
        )

    @property
    def device(self) -> torch.device:
        """Of its parameters and buffers; the CPU if it has none."""
        held = [*self.module.parameters(), *self.module.buffers()]
        return held[0].device if held else torch.device("cpu")

    def dtype(self) -> torch.dtype:
        """Of its floating point parameters, or buffers; torch's default if it has none."""
        held = (*self.module.parameters(), *self.module.buffers())
        floating = (value.dtype for value in held if value.is_floating_point())
        return next(floating, torch.get_default_dtype())


def survey(module: torch.nn.Module) -> Iterator[Layer]:
    """The layers of ours and of e3nn's in `module`, in the order of the tree, each object once.

    What a known layer is made of belongs to it, but for parts of e3nn's layers that run on our kernels or say
    why not. A class of ours that is not known here is looked into, and is a layer itself if nothing is found.
    """
    yield from _visit("", module, set())


def _visit(name: str, module: torch.nn.Module, seen: set[int]) -> Iterator[Layer]:
    if id(module) in seen:
        return
    seen.add(id(module))
    origin, kind = _identify(module)
    layer = Layer(name, module, origin, kind)
    if kind:
        yield layer
        if origin == "e3nn":
            parts = _parts(name, module, seen)
            yield from (part for part in parts if _is_routed(part.module) or part.accelerated is not None)
        return
    if layer.accelerated is not None or LEFT in vars(module):
        yield layer
        yield from _parts(name, module, seen)
        return
    parts = list(_parts(name, module, seen))
    if origin and (layer.is_recorded or not parts):
        yield layer
    if not (origin and layer.is_recorded):
        yield from parts


def _parts(name: str, module: torch.nn.Module, seen: set[int]) -> Iterator[Layer]:
    for child, part in module.named_children():
        yield from _visit(f"{name}.{child}" if name else child, part, seen)


def _is_routed(module: torch.nn.Module) -> bool:
    """Whether `clebsch.e3nn` left on the module of e3nn's what became of it, and is still at work."""
    seam = sys.modules.get("clebsch.e3nn")
    is_marked = "_clebsch_plan" in vars(module) or "_clebsch_reason" in vars(module)
    return is_marked and seam is not None and seam.is_enabled(module)


def _identify(module: torch.nn.Module) -> tuple[str, str]:
    """("clebsch" or "e3nn" or "", the known name or ""); the package of any module that `accelerate` met."""
    if isinstance(module, torch.jit.ScriptModule):
        return _recorded_package(module), ""
    classes = [cls for cls in original_class(module).__mro__ if package_of(cls) in ("clebsch", "e3nn")]
    known = next((cls for cls in classes if cls.__name__ in KNOWN), None)
    if known is not None and known.__name__ in PRODUCTS and package_of(known) == "e3nn":
        known = known if any(cls.__name__ == FAMILY for cls in classes) else None
    if known is not None:
        return package_of(known), known.__name__
    if is_accelerated(module) or LEFT in vars(module):
        return package_of(original_class(module)), ""
    return (package_of(classes[0]), "") if classes else ("", "")


def _recorded_package(module: torch.jit.ScriptModule) -> str:
    """Whose layer TorchScript recorded; "" if nobody's that is known here."""
    found = re.match(r"__torch__\.(clebsch|e3nn)\.(?:o3|nn)\.", module._c._type().qualified_name())
    return found.group(1) if found else ""


def product_plan(layer: Layer) -> ProductPlan:
    """What a layer of the family of `TensorProduct` computes, e3nn's included.

    e3nn computes with its buffers of coupling coefficients, which have other signs in 0.4: where a layer has
    such buffers and they are ours with the opposite sign, the sign goes into the coefficient of the path.
    """
    module = layer.module
    if layer.origin == "clebsch":
        return module.plan
    plan = vars(module).get("_clebsch_plan")
    if plan is not None and layer.is_on_kernels:
        return ProductPlan.parse(str(plan))
    irreps = [getattr(module, name, None) for name in ("irreps_in1", "irreps_in2", "irreps_out")]
    if irreps[0] is None:
        irreps[0] = irreps[1] = module.irreps_in
    irreps = [Irreps(str(given)) for given in irreps]
    # Six fields, the last of them normalised already.
    plan = ProductPlan(*irreps, tuple(Path(*ins[:5], float(ins[5])) for ins in module.instructions))
    tables = coupling_buffers(module)
    return flip(plan, (triple for triple, table in tables.items() if _is_opposite(table, triple)))


def coupling_buffers(module: torch.nn.Module) -> dict[Triple, torch.Tensor]:
    """e3nn's coupling coefficients in a module, by their degrees."""
    found = {table_triple(name.rpartition(".")[2]): value for name, value in module.named_buffers()}
    return {triple: value for triple, value in found.items() if triple is not None}


def _is_opposite(table: torch.Tensor, triple: Triple) -> bool:
    entry = max(coupling(*triple), key=lambda entry: abs(entry.value))
    return entry.value * float(table[entry.m1, entry.m2, entry.m3]) < 0
