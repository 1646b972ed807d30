"""e3nn's Gate, of any version, on our kernel; its own activations stay."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clebsch.convert.left import Left
from clebsch.convert.radial import is_plain
from clebsch.convert.swap import Accelerated, original_class
from clebsch.e3nn.operands import is_recorded, note, refused
from clebsch.nn.gate import Pieces, gated_widths
from clebsch.o3.irreps import Irreps
from clebsch.ops.gate import Widths, gate

__all__ = ["Gate", "decide"]


class _Layout(NamedTuple):
    dim: int
    pieces: Pieces
    widths: Widths


class Gate(Accelerated):
    """e3nn's Gate: one cut of the row, its activations, one kernel."""

    does = "scalars are cut out once, and the products run on our kernel"

    def forward(self, features: Tensor) -> Tensor:
        """As e3nn's."""
        # Torch's compiler fuses e3nn's own code with what is around it.
        if is_recorded():
            return super().forward(features)
        layout = vars(self).get("_clebsch_layout")
        if layout is None:
            layout = vars(self)["_clebsch_layout"] = _layout(self)
        reason = _refused(self, features, layout)
        note(self, reason)
        if reason is not None:
            return super().forward(features)
        scalars, gates, gated = layout.pieces.cut(features)
        scalars = self.act_scalars(scalars)
        if gates.shape[1] == 0:
            return scalars
        return gate(scalars, self.act_gates(gates), gated, layout.widths)


def _refused(module: Any, features: Any, layout: _Layout) -> str | None:
    reason = refused("gate", {"features": features})
    if reason is None and (features.dim() != 2 or features.shape[1] != layout.dim):
        reason = f"features are not rows of {layout.dim} numbers"
    if reason is None and not all(map(is_plain, (module.sc, module.sc.cut, module.mul))):
        reason = "somebody listens to the calls of its parts"
    return reason


def decide(module: Any) -> dict[torch.nn.Module, type[Accelerated]] | Left:
    """The rule of a live Gate: taken if its parts are those that e3nn makes."""
    kinds = {"sc": "_Sortcut", "act_scalars": "Activation", "act_gates": "Activation"}
    kinds["mul"] = "ElementwiseTensorProduct"
    for name, kind in kinds.items():
        part = getattr(module, name, None)
        own = type(part).__name__ if part is None else original_class(part).__name__
        if own != kind:
            return Left(f"its {name} is a {own}, not e3nn's {kind}")
    if not isinstance(getattr(module.sc, "cut", None), torch.nn.Module):
        return Left("its sc has no cut")
    if _layout(module).dim != Irreps(str(module.irreps_in)).dim:
        return Left("its irreps_in are not the sum of its scalars, gates and gated irreps")
    return {module: Gate}


def _layout(module: Any) -> _Layout:
    parts = [Irreps(str(irreps)) for irreps in module.sc.irreps_outs]
    irreps_in, pieces = Pieces.of(parts)
    return _Layout(irreps_in.dim, pieces, gated_widths(parts[2]))
