"""e3nn's Linear on ours."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor

from clebsch.e3nn.forwards import is_on
from clebsch.e3nn.operands import is_recorded, note, refused
from clebsch.o3.linear import Linear
from clebsch.o3.unwritten import unobserved

__all__ = ["axes", "counterpart", "forward", "prepare"]

# A `Linear` without weights of its own for each of e3nn's, or the reason why there is none; beside the
# modules, as their pickles are e3nn's.
_entries: weakref.WeakKeyDictionary[torch.nn.Module, Linear | str] = weakref.WeakKeyDictionary()


def forward(original: Any, self: Any, features: Tensor, weight: Any = None, bias: Any = None) -> Tensor:
    """In the place of ``Linear.forward``."""
    # Torch's compiler is given e3nn's code, which it fuses with what is around it.
    if not is_on(self) or is_recorded():
        return original(self, features, weight, bias)
    ours = _entries.get(self)
    if ours is None:
        ours = prepare(self)
    if isinstance(ours, str):
        return original(self, features, weight, bias)
    own = self.internal_weights
    weight = self.weight if weight is None and (own or ours.weight_numel == 0) else weight
    bias = self.bias if bias is None and (own or ours.bias_numel == 0) else bias
    reason = _refused(ours, features, weight, bias)
    note(self, reason)
    if reason is not None:
        return original(self, features, weight, bias)
    return ours(features, weight if ours.weight_numel > 0 else None, bias if ours.bias_numel > 0 else None)


def _refused(ours: Linear, features: Any, weight: Any, bias: Any) -> str | None:
    operands = {"features": features}
    if ours.weight_numel > 0:
        operands["weight"] = weight
    if ours.bias_numel > 0:
        operands["bias"] = bias
    if any(value is None for value in operands.values()):
        return "weight or bias is not given"
    of_rows = ours.weight_numel > 0 and not ours.shared_weights
    reason = refused("tensor_product" if of_rows else "linear", operands)
    if reason is not None:
        return reason
    axes = () if ours.f_in is None else (ours.f_in, ours.f_out)
    trailing = (*axes[:1], ours.irreps_in.dim)
    batch = features.shape[: features.dim() - len(trailing)]
    if features.dim() < len(trailing) or tuple(features.shape[len(batch) :]) != trailing:
        return "the shape of features is not that of irreps_in"
    # e3nn reshapes weights of any other form; ours takes those that rows have, or that all rows share.
    leading = () if ours.shared_weights else tuple(batch)
    if ours.weight_numel > 0 and tuple(weight.shape) != (*leading, *axes, ours.weight_numel):
        return "the shape of weight is not that of the instructions, for every row of features"
    if ours.bias_numel > 0 and tuple(bias.shape) != (*leading, *axes[1:], ours.bias_numel):
        return "the shape of bias is not that of the instructions, for every row of features"
    return None


def prepare(module: Any) -> Linear | str:
    """Find our `Linear` for a module, and leave the reason on it if there is none."""
    with unobserved():
        ours = counterpart(module)
    module.__dict__["_clebsch_plan"] = None
    note(module, ours if isinstance(ours, str) else None)
    _entries[module] = ours
    return ours


def counterpart(module: Any) -> Linear | str:
    """Our `Linear` of the arguments of e3nn's, without weights of its own; or why there is none."""
    try:
        f_in, f_out = axes(module)
        pairs = [(ins.i_in, ins.i_out) for ins in module.instructions if ins.i_in >= 0]
        biased = {ins.i_out for ins in module.instructions if ins.i_in < 0}
        wanted = [tuple(ins) for ins in module.instructions]
        for path_normalization in ("element", "path"):
            ours = Linear(
                str(module.irreps_in),
                str(module.irreps_out),
                f_in=f_in,
                f_out=f_out,
                internal_weights=False,
                shared_weights=module.shared_weights,
                instructions=pairs,
                biases=[i in biased for i in range(len(module.irreps_out))],
                path_normalization=path_normalization,
            )
            if len(ours.instructions) == len(wanted) and all(map(_same, ours.instructions, wanted)):
                # e3nn's code adds a bias to a block that nothing else leads to only for a single row
                return ours if _is_connected(ours) else "a block of its output is a bias alone"
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        return f"it is not a Linear that is known here: {error}"
    return "its instructions have other weights than either path_normalization gives"


def _same(ours: Any, theirs: tuple[Any, ...]) -> bool:
    i_in, i_out, path_shape, path_weight = theirs
    return (ours.i_in, ours.i_out, tuple(ours.path_shape)) == (
        i_in,
        i_out,
        tuple(path_shape),
    ) and math.isclose(ours.path_weight, path_weight, rel_tol=1e-15)


def _is_connected(linear: Linear) -> bool:
    reached = {ins.i_out for ins in linear.instructions if ins.i_in >= 0 and 0 not in ins.path_shape}
    return all(ins.i_out in reached for ins in linear.instructions if ins.i_in < 0)


def axes(module: Any) -> tuple[int | None, int | None]:
    """f_in and f_out of a Linear. e3nn's does not keep them: its weight has them, or its code is tried out.

    Raises:
        ValueError: neither tells.
    """
    if isinstance(module, Linear):
        return module.f_in, module.f_out
    if module.internal_weights and module.weight_numel > 0:
        found = tuple(module.weight.shape[:-1])
        return found if len(found) == 2 else (None, None)
    # Two rows of features with weights of no additional axis: code for f_in and f_out cannot reshape them.
    count = 1 if module.shared_weights else 2
    kwargs = {"dtype": torch.get_default_dtype(), "device": "cpu"}
    try:
        # forward: a call of the code would print where it fails
        out = module._compiled_main.forward(
            torch.zeros(2, module.irreps_in.dim, **kwargs),
            torch.zeros(count, module.weight_numel, **kwargs),
            torch.zeros(count, module.bias_numel, **kwargs),
        )
    except RuntimeError:
        out = None
    if module.weight_numel == 0 or out is None or out.shape != (2, module.irreps_out.dim):
        raise ValueError("whether it has f_in and f_out does not show")
    return None, None
