"""e3nn's TensorProduct on our kernels: its plan, with the signs of the tables that it computes with."""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan
from clebsch.e3nn.forwards import is_on
from clebsch.e3nn.operands import note, refused
from clebsch.o3.coupling_tables import degrees, flip, relative_sign, table_name, table_triple
from clebsch.o3.unwritten import COMPILES, unobserved
from clebsch.ops.dispatch import on_host
from clebsch.ops.one_hot import choose_or_multiply
from clebsch.ops.tensor_product import PlanSizes, multiply_rows, plan_sizes

__all__ = ["construct", "forward", "load", "plan_of", "prepare"]

_CODE = "_compiled_main_left_right"

# Where rows of y are one-hot, all kernels but that of the linear layer would multiply with mostly zeros.
_UNSEEN = "on a GPU nothing looks whether rows of y are one-hot, which would wait: e3nn's code multiplies"


class _Entry(NamedTuple):
    """What was found out about a module: the plan that serves it, or the reason why none does; and the tables
    of its code that this rests on, as they were.

    versions: none where tables count none (torch.inference_mode). numbers: of the tables, if there is a plan.
    """

    sizes: PlanSizes | None
    reason: str | None
    code: Any
    tables: tuple[tuple[str, Tensor], ...]
    versions: tuple[int, ...]
    numbers: tuple[Tensor, ...]

    def holds_for(self, module: torch.nn.Module) -> bool:
        """Whether the tables are still the same, unwritten since.

        Modules replace their buffers all at once (`to`) or write them in place (`load_state_dict`), so one of
        them stands for all in the first case.
        """
        if module._modules.get(_CODE) is not self.code:
            return False
        if self.tables and getattr(self.code, self.tables[0][0], None) is not self.tables[0][1]:
            return False
        return all(
            table._version == version for (_, table), version in zip(self.tables, self.versions, strict=False)
        )

    def has_numbers_of(self, tables: tuple[tuple[str, Tensor], ...]) -> bool:
        """Whether these hold what was found in its own: DistributedDataParallel writes them at every step."""
        if self.sizes is None or [name for name, _ in tables] != [name for name, _ in self.tables]:
            return False
        if any(table.is_inference() for _, table in tables):
            return False
        pairs = [(table, numbers) for (_, table), numbers in zip(tables, self.numbers, strict=True)]
        return all((a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b) for a, b in pairs)


# Beside the modules and not on them: their pickles are e3nn's, to be read where there is no clebsch.
_entries: weakref.WeakKeyDictionary[torch.nn.Module, _Entry] = weakref.WeakKeyDictionary()


def forward(original: Any, self: Any, x: Tensor, y: Tensor, weight: Any = None) -> Tensor:
    """In the place of ``TensorProduct.forward``."""
    if not is_on(self) or (torch.compiler.is_dynamo_compiling() and not COMPILES):
        return original(self, x, y, weight)
    whole = self._get_weights(weight)
    operands = {"x": x, "y": y, "weight": whole} if self.weight_numel > 0 else {"x": x, "y": y}
    reason, batch, sizes = refused("tensor_product", operands), None, None
    if reason is None:
        sizes, reason = plan_of(self)
    if sizes is not None:
        batch, reason = _leading(self, sizes, x, y, whole)
        if sizes.elements > 1 and not on_host(x):
            batch, reason = None, _UNSEEN
    note(self, reason)
    if batch is None:
        return original(self, x, y, weight)
    return _multiply(x, y, whole, sizes, batch)


def _leading(
    module: Any, sizes: PlanSizes, x: Tensor, y: Tensor, weight: Tensor
) -> tuple[tuple[int, ...] | None, str | None]:
    """(leading dimensions of the output, None), or (None, reason)."""
    if x.dim() == 0 or y.dim() == 0 or x.shape[-1] != sizes.in1 or y.shape[-1] != sizes.in2:
        return None, "the last dimension of x or y is not that of its irreps"
    leading = [x.shape[:-1], y.shape[:-1]]
    if not module.shared_weights:
        leading.append(weight.shape[:-1])
    if leading[0] == leading[1] and (len(leading) < 3 or leading[2] == leading[0]):
        return tuple(leading[0]), None
    try:
        return tuple(torch.broadcast_shapes(*leading)), None
    except RuntimeError:
        return None, "leading dimensions do not broadcast"


def _multiply(x: Tensor, y: Tensor, weight: Tensor, sizes: PlanSizes, batch: tuple[int, ...]) -> Tensor:
    if sizes.weight == 0:
        weight = x.new_empty(0)
    elif weight.dim() > 1 and math.prod(weight.shape[:-1]) == 1:
        weight = weight.reshape(sizes.weight)
    if len(batch) == 1:
        operands = [value.expand(*batch, value.shape[-1]) for value in (x, y)]
        if weight.dim() > 1:
            weight = weight.expand(*batch, sizes.weight)
        multiply = choose_or_multiply if sizes.elements else multiply_rows
        return multiply(*operands, weight, sizes)
    rows = math.prod(batch)
    x, y = (value.expand(*batch, value.shape[-1]).reshape(rows, value.shape[-1]) for value in (x, y))
    if weight.dim() > 1:
        weight = weight.expand(*batch, sizes.weight).reshape(rows, sizes.weight)
    return multiply_rows(x, y, weight, sizes).reshape(*batch, sizes.out)


def construct(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """In the place of ``TensorProduct.__init__``: what is compiled before its first call has its plan."""
    original(self, *args, **kwargs)
    if is_on(self):
        prepare(self)


def load(original: Any, self: Any, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> Any:
    """In the place of ``TensorProduct._load_from_state_dict``: compiled calls see the signs that are loaded.

    Calls that are not compiled look at the tables themselves.
    """
    if is_on(self) and isinstance(self._modules.get(_CODE), torch.nn.Module):
        start = f"{prefix}{_CODE}."
        given = {
            key[len(start) :]: value
            for key, value in state_dict.items()
            if key.startswith(start) and table_triple(key[len(start) :]) is not None
        }
        if given:
            tables = {**dict(_tables(self)), **given}
            _note_plan(self, *_find_plan(self, tables))
    return original(self, state_dict, prefix, *args, **kwargs)


def plan_of(module: Any) -> tuple[PlanSizes | None, str | None]:
    """(the plan of a module, as operators take it, None), or (None, why none serves it)."""
    if torch.compiler.is_compiling():
        _refresh(module)
        # Torch's compiler remembers this attribute, and compiles anew where it changes.
        return _parsed(getattr(module, "_clebsch_plan", None)), None
    entry = _entries.get(module)
    if entry is None or not entry.holds_for(module):
        entry = _refresh(module)
        if entry is None:
            return _parsed(module.__dict__.get("_clebsch_plan")), "its tables are not plain tensors"
    return entry.sizes, entry.reason


def _refresh(module: Any) -> _Entry | None:
    """What holds for a module now. None where something traces it with tensors without numbers in the place
    of its tables: then the last plan found holds.
    """
    entry = _entries.get(module)
    if entry is not None and entry.holds_for(module):
        return entry
    tables = _tables(module)
    if any(type(table) is not Tensor for _, table in tables):
        return None
    with unobserved():
        same = entry is not None and entry.code is module._modules.get(_CODE) and entry.has_numbers_of(tables)
    if not same:
        return prepare(module)
    entry = entry._replace(tables=tables, versions=tuple(table._version for _, table in tables))
    _entries[module] = entry
    return entry


# Torch's compiler calls it while it traces.
_refresh._dynamo_marked_constant = True


def _parsed(plan: str | None) -> PlanSizes | None:
    try:
        return None if plan is None else plan_sizes(plan)
    except ValueError:  # of another version, from a pickle
        return None


_parsed._dynamo_marked_constant = True


def prepare(module: Any) -> _Entry:
    """Find the plan of a module, and leave it on it."""
    with unobserved():
        tables = _tables(module)
        sizes = None
        plan, reason = _find_plan(module, dict(tables))
        if plan is not None:
            try:
                sizes = plan_sizes(plan)
            except ValueError as error:
                plan, reason = None, str(error)
        numbers = () if plan is None else tuple(table.clone() for _, table in tables)
    _note_plan(module, plan, reason)
    counted = not any(table.is_inference() for _, table in tables)
    versions = tuple(table._version for _, table in tables) if counted else ()
    entry = _Entry(sizes, reason, module._modules.get(_CODE), tables, versions, numbers)
    _entries[module] = entry
    return entry


def _note_plan(module: torch.nn.Module, plan: ProductPlan | None, reason: str | None) -> None:
    module.__dict__["_clebsch_plan"] = None if plan is None else str(plan)
    note(module, reason)


def _tables(module: Any) -> tuple[tuple[str, Tensor], ...]:
    code = module._modules.get(_CODE)
    if code is None:
        return ()
    return tuple((name, table) for name, table in code.named_buffers() if table_triple(name) is not None)


def _find_plan(module: Any, tables: dict[str, Tensor]) -> tuple[ProductPlan | None, str | None]:
    """(plan, None) of what e3nn's code computes with these tables, or (None, reason)."""
    try:
        irreps = [str(getattr(module, name)) for name in ("irreps_in1", "irreps_in2", "irreps_out")]
        plan = ProductPlan.from_instructions(*irreps, [tuple(ins) for ins in module.instructions])
        shapes = [tuple(ins.path_shape) for ins in module.instructions]
        consistent = list(plan.path_shapes) == shapes and plan.weight_numel == module.weight_numel
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        return None, f"its instructions are not a plan: {error}"
    if not consistent:
        return None, "the shapes of its weights are not those of its instructions"
    flipped = set()
    for name, table in tables.items():
        triple = table_triple(name)
        if table.is_meta:
            return None, "its tables are on meta, without numbers"
        if type(table) is not Tensor:
            return None, f"its tables are {type(table).__name__}s, not plain tensors"
        if table.is_inference():
            return None, "it was built in torch.inference_mode: writing to its tables would leave no trace"
        sign = relative_sign(table, triple)
        if sign == 0:
            return None, f"{_CODE}.{name} is not +1 or -1 times the coupling coefficients of l = {triple}"
        if sign < 0:
            flipped.add(triple)
    for path, shape in zip(plan.paths, shapes, strict=True):
        triple = degrees(plan, path)
        # What e3nn writes without a table has the same sign in all its versions.
        known = 0 in triple or triple == (1, 1, 1) or table_name(triple) in tables
        if not known and 0 not in shape:
            return None, f"its code has no table for l = {triple}, whose sign is not known"
    return flip(plan, flipped), None
