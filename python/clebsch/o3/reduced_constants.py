"""What e3nn keeps in the state_dict of `ReducedTensorProducts` beside its basis: constants of its products.

e3nn couples two irreps at a time and has a `TensorProduct` for every such step, ``main.tp0``, ``main.tp1``,
with an empty weight, a mask of ones, and a table of coupling coefficients. Nothing here computes with them:
they are kept so that what is saved here loads there, and what was loaded is saved again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from clebsch.o3.coupling_tables import E3NN_DEGREES, relative_sign, table_name, table_triple
from clebsch.o3.irreps import Irrep
from clebsch.o3.reduced_basis import BasisIrrep
from clebsch.o3.wigner import wigner_3j

__all__ = ["Constants", "make_constants"]

_NAME = re.compile(r"tp\d+\.(?:weight|output_mask|_compiled_main_(?:left_right|right)\..+)")

# The irreps of one step: what was reached, what it meets, and into what.
Step = tuple[Irrep, Irrep, Irrep]


class Constants(torch.nn.Module):
    """Buffers and modules of buffers, none of which a checkpoint must have."""

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
        own = self.state_dict()
        # The caller's dictionary is untouched: torch hands every module a copy of its part.
        for name in [name for name in state_dict if name.startswith(prefix)]:
            local = name[len(prefix) :]
            if (local not in own and _NAME.fullmatch(local)) or not _is_alike(local, state_dict[name], own):
                del state_dict[name]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, [], unexpected_keys, error_msgs
        )


def _is_alike(name: str, stored: Any, own: dict[str, Tensor]) -> bool:
    """Whether a constant is ours up to the sign of a table. e3nn numbers its steps as Python orders a set,
    which may be another order elsewhere; what is not alike has no meaning here."""
    if name not in own:
        return True  # unexpected, which torch says
    if not isinstance(stored, Tensor) or stored.shape != own[name].shape:
        return False
    triple = table_triple(name.rpartition(".")[2])
    return triple is None or relative_sign(stored, triple) != 0


def make_constants(vectors: Iterable[BasisIrrep], copies: Sequence[Sequence[Irrep]]) -> Constants:
    """Those for a basis; copies: the irreps of every input, each copy on its own."""
    # A set, filled in e3nn's order and listed in Python's: so are its steps numbered.
    steps: set[Step] = set()
    for _, terms in vectors:
        for _, product in terms:
            for k in range(len(product.copies) - 1, 0, -1):
                ir = copies[k][product.copies[k]]
                steps.add((product.irreps[k - 1], ir, product.irreps[k]))
    main = Constants()
    for number, step in enumerate(steps):
        product = Constants()
        product.register_buffer("weight", torch.empty(0))
        product.register_buffer("output_mask", torch.ones(step[2].dim))
        triple = tuple(ir.l for ir in step)
        if 0 not in triple and triple != (1, 1, 1) and max(triple) <= E3NN_DEGREES:  # else written out there
            tables = Constants()
            tables.register_buffer(table_name(triple), wigner_3j(*triple))
            product.add_module("_compiled_main_left_right", tables)
        main.add_module(f"tp{number}", product)
    return main
