"""The coupling coefficients that e3nn keeps in the state_dict of a product, and the signs they carry.

e3nn computes with these tables, so they say which of the two phases in the wild (e3nn 0.4, and 0.5 and later)
the weights beside them were trained with. Ours are there to be stored and compared: kernels do not read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.o3.unwritten import Seen, have_numbers
from clebsch.o3.wigner import wigner_3j

__all__ = [
    "E3NN_DEGREES",
    "CouplingTables",
    "Triple",
    "degrees",
    "flip",
    "is_constant",
    "relative_sign",
    "stored_triple",
    "table_name",
    "table_triple",
]

Triple = tuple[int, int, int]

# Code that torch.compile has wrapped has one level more.
_CONSTANT = re.compile(
    r"_compiled_main_(?:left_right|right)\.(?:_orig_mod\.)?"
    r"(?:_w3j_(\d+)_(\d+)_(\d+)|_triu_indices_\d+|_tensor_constant\d+)"
)
# e3nn has no larger tables, and ours would take (2 l + 1)^3 numbers each.
E3NN_DEGREES = 11
_TABLE = re.compile(r"_w3j_(\d+)_(\d+)_(\d+)")


class CouplingTables(torch.nn.Module):
    """The buffers that e3nn's code for the product of `plan` has, under the same names.

    right: those of the code of `right` in place of that of `forward`. specialized: whether e3nn writes code
    of its own for scalars and cross products, which needs no table.

    They are set by the product that they belong to, with its signs; where something else wrote to them, it
    takes theirs. A checkpoint without them is complete.
    """

    _seen: Seen | None = None

    def __init__(self, plan: ProductPlan, right: bool, specialized: bool) -> None:
        super().__init__()
        for path, shape in zip(plan.paths, plan.path_shapes, strict=True):
            if 0 in shape:
                continue
            triple = degrees(plan, path)
            if path.mode in ("uvu<v", "u<vw"):
                mul = plan.irreps_in1[path.i_in1].mul
                self._keep(f"_triu_indices_{mul}", lambda mul=mul: torch.triu_indices(mul, mul, 1))
            if max(triple) <= E3NN_DEGREES and not (specialized and _is_specialized(path, triple, right)):
                self._keep(table_name(triple), lambda triple=triple: wigner_3j(*triple))

    def _keep(self, name: str, make: Any) -> None:
        if name not in self._buffers:
            self.register_buffer(name, make())

    def __contains__(self, triple: Triple) -> bool:
        return table_name(triple) in self._buffers

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}

    @property
    def are_unwritten(self) -> bool:
        """Whether nothing happened to them since `look`."""
        return self._seen is not None and self._seen.still_holds(self._buffers.values())

    def look(self) -> None:
        """Remember that the product has the signs of these tables."""
        self._seen = Seen.now(self._buffers.values())

    @property
    def have_numbers(self) -> bool:
        """Whether they can be read."""
        return have_numbers(self._buffers.values())

    def have_signs(self, flipped: frozenset[Triple]) -> bool:
        """Whether every table is what `set_signs` writes."""
        return all(
            torch.equal(stored, _table(triple, stored, flipped)) for triple, _, stored in self._tables()
        )

    def signs(self) -> Iterator[tuple[str, Triple, int]]:
        """Name, degrees and sign of each table: +1, -1, or 0 if it is neither ours nor its opposite."""
        for triple, name, stored in self._tables():
            yield name, triple, relative_sign(stored, triple)

    def _tables(self) -> Iterator[tuple[Triple, str, Tensor]]:
        for name, stored in self._buffers.items():
            triple = table_triple(name)
            if triple is not None:
                yield triple, name, stored

    def set_signs(self, flipped: frozenset[Triple]) -> None:
        """Write every table anew, with the opposite sign for the triples in `flipped`."""
        for triple, name, stored in list(self._tables()):
            # A module on the meta device is given its tensors when it loads.
            if stored.is_meta:
                self._buffers[name] = _table(triple, stored, flipped)
            else:
                with torch.no_grad():
                    stored.copy_(_table(triple, stored, flipped))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # The product has taken the tables out; what is left has no place here.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, [], unexpected_keys, error_msgs
        )


def _table(triple: Triple, like: Tensor, flipped: frozenset[Triple]) -> Tensor:
    table = wigner_3j(*triple, dtype=like.dtype, device="cpu" if like.is_meta else like.device)
    return -table if triple in flipped else table


def table_name(triple: Triple) -> str:
    """What e3nn calls its table of these degrees."""
    return "_w3j_{}_{}_{}".format(*triple)


def table_triple(name: str) -> Triple | None:
    """The degrees of the table of that name; None if it names no table."""
    found = _TABLE.fullmatch(name)
    return None if found is None else tuple(map(int, found.groups()))


def degrees(plan: ProductPlan, path: Path) -> Triple:
    """(l1, l2, l3) of a path."""
    return tuple(block.ir.l for block in plan.blocks(path))


def _is_specialized(path: Path, triple: Triple, right: bool) -> bool:
    """Whether e3nn writes this path without a table of coefficients."""
    if triple == (1, 1, 1):
        return path.mode == "uuu" and not right
    if 0 not in triple:
        return False
    if path.mode == "uuw":
        return path.has_weight and not right
    if path.mode == "uvv":
        return path.has_weight or not right
    return path.mode in ("uvw", "uuu") or (path.mode == "uvu" and path.has_weight)


def is_constant(name: str) -> bool:
    """Whether `name`, relative to a product, is a constant of e3nn's code."""
    return _CONSTANT.fullmatch(name) is not None


def stored_triple(name: str) -> Triple | None:
    """The degrees of the table that `name`, relative to a product, stands for; None for another constant."""
    found = _CONSTANT.fullmatch(name)
    return tuple(map(int, found.groups())) if found and found.group(1) is not None else None


def relative_sign(stored: Any, triple: Triple) -> int:
    """+1 or -1 if `stored` is that sign times our coupling coefficients to its own precision, else 0."""
    l1, l2, l3 = triple
    if not abs(l1 - l2) <= l3 <= l1 + l2 or not isinstance(stored, Tensor) or not stored.is_floating_point():
        return 0
    ours = wigner_3j(l1, l2, l3, dtype=torch.float64, device="cpu")
    if stored.shape != ours.shape:
        return 0
    # A few roundings of the stored type, and not less than the 1e-7 with which older tables were computed.
    tolerance = max(4 * torch.finfo(stored.dtype).eps, 1e-6)
    stored = stored.detach().to(device="cpu", dtype=torch.float64)
    for sign in (1, -1):
        if (stored - sign * ours).abs().max() <= tolerance:
            return sign
    return 0


def flip(plan: ProductPlan, triples: Iterable[Triple]) -> ProductPlan:
    """The plan with the opposite sign of these couplings."""
    triples = frozenset(triples)
    if not triples:
        return plan
    return replace(
        plan,
        paths=tuple(
            replace(path, coefficient=-path.coefficient) if degrees(plan, path) in triples else path
            for path in plan.paths
        ),
    )
