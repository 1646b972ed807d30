"""Symmetric contraction: powers of a node's features coupled to irreps, with weights of its species."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra.irreps import Irrep, Irreps
from clebsch.nn.symmetric_contraction_basis import coupled_powers
from clebsch.nn.symmetric_contraction_table import MAX_CORRELATION, contraction_table
from clebsch.ops.dispatch import call, may_look
from clebsch.ops.symmetric_contraction import symmetric_contraction

__all__ = ["Contraction", "SymmetricContraction", "contract", "species_of"]

# Above this size of all weights it pays to pick those of the species at hand before they are joined.
_LARGE_WEIGHTS = 1 << 18


class SymmetricContraction(torch.nn.Module):
    """Powers of x up to `correlation`, coupled to irreps_out, channel by channel (MACE, eq. 10).

    Signature, parameters, state_dict and numbers of MACE's ``SymmetricContraction``: models trained there
    load, with ``strict=True``, and ours load there. The kernel runs a table made of the buffers
    ``U_matrix_*``, and of what a state_dict brings in their place.

    Args:
        irreps_in: one block for every irrep, of the same multiplicity, the number of channels.
        irreps_out: what to couple to; multiplicities do not matter.
        correlation: the highest power, 1 to 4.
        num_elements: number of species.
        irrep_normalization, path_normalization, shared_weights: as MACE has them; they change nothing.
        use_reduced_cg: only False: what cuequivariance reduces, the table reduces on its own.
        internal_weights: only True.

    Raises:
        ValueError: irreps of different multiplicities or none; no scalars in irreps_in, which MACE counts the
            channels by; a correlation or a num_elements that is not positive, or a correlation above 4;
            weights from outside, or reduced couplings.
    """

    def __init__(
        self,
        irreps_in: Any,
        irreps_out: Any,
        correlation: int,
        irrep_normalization: str | None = "component",
        path_normalization: str | None = "element",
        use_reduced_cg: bool | None = False,
        internal_weights: bool | None = None,
        shared_weights: Any = None,
        num_elements: int | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(correlation, num_elements, use_reduced_cg, internal_weights)
        self.irreps_in, self.irreps_out = Irreps(str(irreps_in)), Irreps(str(irreps_out))
        self.correlation = correlation
        self.num_channels = _channels(self.irreps_in)
        if not len(self.irreps_out):
            raise ValueError("SymmetricContraction: irreps_out must have an irrep, got ''")
        coupling = Irreps([(1, ir) for _, ir in self.irreps_in])
        self._dim = coupling.dim
        self.internal_weights, self.shared_weights = True, shared_weights
        self.contractions = torch.nn.ModuleList(
            Contraction(coupling, ir, correlation, self.num_channels, num_elements)
            for _, ir in self.irreps_out
        )
        self._build_table()
        self.register_load_state_dict_post_hook(_rebuild_table)

    def _build_table(self) -> None:
        """The table of the buffers as they are now; on the device "meta" an empty one.

        No buffer: it stays on the CPU, where operators read it whatever the device of x.
        """
        self._widths = tuple(ir.dim for _, ir in self.irreps_out)
        u_matrices = [c.u_matrices() for c in self.contractions]
        made = u_matrices[0][0].device.type != "meta"
        self._table = (
            contraction_table(u_matrices).tensor if made else torch.empty(0, dtype=torch.int64, device="cpu")
        )

    def _apply(self, fn: Any, recurse: bool = True) -> SymmetricContraction:
        """Couplings that were rounded, or carry their rounding to a finer type, make another table."""
        before = self.contractions[0].U_matrix_1.dtype
        super()._apply(fn, recurse)
        if self.contractions[0].U_matrix_1.dtype != before:
            self._build_table()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._table.device.type != "cpu":  # torch.load(map_location=...) moves whatever is a tensor
            self._build_table()

    def forward(self, x: Tensor, node_attrs: Tensor) -> Tensor:
        """Features of every node.

        Args:
            x: (nodes, channels, components), components being one copy of every irrep of irreps_in.
            node_attrs: (nodes, num_elements); rows with a single 1 are recognised and cost no product, but
                in compiled graphs, which cannot look at numbers and then hold weights for every node. Or
                the species themselves, (nodes,) int64.

        Returns:
            (nodes, irreps_out.dim for multiplicities of channels): a block (channels, 2l+1) for every irrep.

        Raises:
            ValueError: shapes that do not fit.
        """
        if x.dim() != 3 or x.shape[1:] != (self.num_channels, self._dim):
            raise ValueError(
                f"SymmetricContraction: x must have shape (nodes, {self.num_channels}, {self._dim}), "
                f"got {tuple(x.shape)}"
            )
        weights = [weight for c in self.contractions for weight in c.ascending_weights()]
        return contract(x, node_attrs, weights, self._table, self._widths)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | correlation {self.correlation}, "
            f"{sum(parameter.numel() for parameter in self.parameters())} weights)"
        )


class Contraction(torch.nn.Module):
    """The weights and couplings of one irrep of the output, as MACE keeps them in a state_dict.

    ``weights_max`` (species, paths, channels) belongs to the highest power, ``weights`` to the others in
    descending order, ``U_matrix_1``, ``U_matrix_2``, ... to the powers in ascending order.
    """

    def __init__(
        self, coupling: Irreps, ir_out: Irrep, correlation: int, channels: int, num_elements: int
    ) -> None:
        super().__init__()
        self.correlation = correlation
        empty = []
        for nu, u in enumerate(coupled_powers(coupling, ir_out, correlation), start=1):
            # MACE keeps no axis of length 1 but the last one.
            shape = [length for length in u.shape[:-1] if length > 1]
            value = torch.tensor(u, dtype=torch.get_default_dtype()).reshape(*shape, u.shape[-1])
            empty.append(not u.any())
            self.register_buffer(f"U_matrix_{nu}", value)
        paths = [u.shape[-1] for u in self.u_matrices()]
        self.weights_max = _initial(num_elements, paths[-1], channels)
        self.weights = torch.nn.ParameterList(
            _initial(num_elements, count, channels) for count in reversed(paths[:-1])
        )
        self._switch_off(empty)

    def _switch_off(self, empty: Sequence[bool]) -> None:
        """Weights of powers without couplings: zero, and not trained.

        MACE looks them up with the powers in ascending order in the list that descends, so that for a power
        below the highest other weights may be meant. Training goes on here as it would there: the same.
        """
        for i, is_empty in enumerate(empty):
            last = i == self.correlation - 1
            if is_empty and last:
                self.weights_max = _zeroed(self.weights_max)
            elif is_empty:
                self.weights[i] = _zeroed(self.weights[i])
            name = "weights_max_zeroed" if last else f"weights_{i}_zeroed"
            self.register_buffer(name, torch.tensor(is_empty))

    def u_matrices(self) -> list[Tensor]:
        """The buffers ``U_matrix_nu`` for nu = 1, 2, ..."""
        return [getattr(self, f"U_matrix_{nu}") for nu in range(1, self.correlation + 1)]

    def ascending_weights(self) -> list[Tensor]:
        """The weights for nu = 1, 2, ..."""
        return [*reversed(list(self.weights)), self.weights_max]


def contract(
    x: Tensor, node_attrs: Tensor, weights: Sequence[Tensor], table: Tensor, widths: Sequence[int]
) -> Tensor:
    """`ops.symmetric_contraction` with weights in parts and species in any form.

    Args:
        x: (nodes, channels, components).
        node_attrs: (nodes, species), on the CPU in eager mode recognised if every row is a single 1; or
            (nodes,) int64, which on a GPU spares weights of every node.
        weights: (species, paths, channels) each, paths adding up to those of the table.
        table, widths: those of a `ContractionTable`.

    Returns:
        (nodes, channels * sum of widths).
    """
    num_elements, channels = weights[0].shape[0], weights[0].shape[2]
    expected = (x.shape[0], num_elements)
    if node_attrs.dim() != 1 and node_attrs.shape != expected:
        raise ValueError(
            f"SymmetricContraction: node_attrs must have shape {expected}, got {tuple(node_attrs.shape)}"
        )
    index = node_attrs if node_attrs.dim() == 1 else species_of(node_attrs)
    if index is not None:
        if num_elements > 1 and may_look(index):
            size = num_elements * channels * sum(weight.shape[1] for weight in weights)
            if size > _LARGE_WEIGHTS:
                present, index = _present(index, num_elements)
                weights = [weight.index_select(0, present) for weight in weights]
        return symmetric_contraction(x, torch.cat(tuple(weights), dim=1), index, table, widths)
    joined = torch.cat(tuple(weights), dim=1)
    of_nodes = (node_attrs.to(joined.dtype) @ joined.flatten(1)).unflatten(1, joined.shape[1:])
    return symmetric_contraction(x, of_nodes, torch.arange(x.shape[0], device=x.device), table, widths)


def species_of(node_attrs: Tensor) -> Tensor | None:
    """The place of the 1 in every row of node_attrs (nodes, species), int64; None if a row is anything else.

    None as well where a gradient with respect to node_attrs is recorded, and where numbers may not be looked
    at: torch's compiler traces without them, and a GPU would have to be waited for.
    """
    if not may_look(node_attrs) or node_attrs.dim() != 2 or node_attrs.shape[1] == 0:
        return None
    if node_attrs.requires_grad and torch.is_grad_enabled():
        return None
    if node_attrs.dtype not in (torch.float32, torch.float64):
        node_attrs = node_attrs.float()
    index = call(torch.ops.clebsch.one_hot_index, node_attrs)
    return index if index.shape[0] == node_attrs.shape[0] else None


def _present(index: Tensor, num_elements: int) -> tuple[Tensor, Tensor]:
    """The species that occur, and index among them; as it is if it names one that does not exist."""
    present, inverse = index.unique(return_inverse=True)
    if len(present) and (present[0] < 0 or present[-1] >= num_elements):
        return torch.arange(num_elements, device=index.device), index
    return present, inverse


def _check_arguments(
    correlation: Any, num_elements: Any, use_reduced_cg: Any, internal_weights: bool | None
) -> None:
    if not isinstance(correlation, int) or not 1 <= correlation <= MAX_CORRELATION:
        raise ValueError(
            f"SymmetricContraction: correlation must be 1 to {MAX_CORRELATION}, got {correlation!r}"
        )
    if not isinstance(num_elements, int) or num_elements < 1:
        raise ValueError(f"SymmetricContraction: num_elements must be 1 or more, got {num_elements!r}")
    if use_reduced_cg:
        raise ValueError("SymmetricContraction: use_reduced_cg must be False, got True")
    if internal_weights is not None and not internal_weights:
        raise ValueError("SymmetricContraction: internal_weights must be True, got False")


def _channels(irreps_in: Irreps) -> int:
    multiplicities = {mul for mul, _ in irreps_in}
    if len(multiplicities) != 1 or irreps_in.count("0e") == 0:
        raise ValueError(
            "SymmetricContraction: irreps_in must have scalars 0e and one multiplicity for all irreps, got "
            f"'{irreps_in}'"
        )
    return multiplicities.pop()


def _initial(num_elements: int, paths: int, channels: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn((num_elements, paths, channels)) / paths)


def _zeroed(weight: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros_like(weight), requires_grad=False)


def _rebuild_table(module: SymmetricContraction, incompatible_keys: Any) -> None:
    module._build_table()
