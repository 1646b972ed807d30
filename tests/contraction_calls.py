"""Problems of symmetric contractions: operands, results of the operators, and how close they must be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clebsch import nn, reference
from clebsch.algebra.irreps import Irreps
from clebsch.nn.symmetric_contraction_basis import coupled_powers
from clebsch.testing import relative_error, tolerance
from product_calls import PROMISED

RESULTS = ("out", "grad_x", "grad_weight", "grad_grad", "second_x", "second_weight")
COUNTS = ("format", "components", "weights", "pairs", "rows", "targets")
COUNTS += ("groups", "entries", "terms", "reductions")


@dataclass(frozen=True)
class Decoded:
    """A table read on its own: counts, and T (paths, rows) and B as (row, component, monomial): value."""

    counts: dict[str, int]
    widths: list[int]
    rows_of_target: list[int]
    mix: np.ndarray
    basis: dict[tuple[int, int, tuple[int, ...]], float]
    again: dict[tuple[int, int, tuple[int, ...]], float]  # the same, as it stands by first factor


def decode(table: nn.ContractionTable) -> Decoded:
    words = np.frombuffer(table.words, np.int64)
    counts = dict(zip(COUNTS, words.tolist(), strict=False))
    at = len(COUNTS)

    def take(count: int) -> list[int]:
        nonlocal at
        at += count
        return words[at - count : at].tolist()

    pair_words = take(2 * counts["pairs"])
    widths, rows = take(counts["targets"]), take(counts["targets"])
    components = [
        (r, m)
        for r, width in enumerate(w for w, n in zip(widths, rows, strict=True) for _ in range(n))
        for m in range(width)
    ]
    factors: list[tuple[int, ...]] = [(), *((i,) for i in range(counts["components"]))]
    factors += [(pair_words[i] - 1, pair_words[i + 1] - 1) for i in range(0, len(pair_words), 2)]
    product_end, group_factor, group_end = take(len(components)), *(take(counts["groups"]) for _ in "ab")
    entry_factor = take(counts["entries"])
    factor_end, term_factor, term_end = take(len(factors)), *(take(counts["terms"]) for _ in "ab")
    term_product = take(counts["entries"])
    reduction_end, reduction_weight = take(sum(rows)), take(counts["reductions"])
    values = words[at:].view(np.float64)
    assert len(values) == 2 * counts["entries"] + counts["reductions"]

    def owners(ends: list[int]) -> list[int]:
        return np.repeat(np.arange(len(ends)), np.diff([0, *ends])).tolist()

    groups, terms = owners(group_end), owners(term_end)
    products, firsts = owners(product_end), owners(factor_end)
    basis = {
        (*components[products[group]], tuple(sorted(factors[group_factor[group]] + factors[b]))): value
        for group, b, value in zip(groups, entry_factor, values[: len(groups)].tolist(), strict=True)
    }
    again = {
        (*components[p], tuple(sorted(factors[firsts[term]] + factors[term_factor[term]]))): value
        for term, p, value in zip(
            terms, term_product, values[len(groups) : 2 * len(groups)].tolist(), strict=True
        )
    }
    mix = np.zeros((counts["weights"], sum(rows)))
    mix[reduction_weight, owners(reduction_end)] = values[2 * len(groups) :]
    return Decoded(counts, widths, rows, mix, basis, again)


def matrices(
    decoded: Decoded, path_counts: list[list[int]], absolute: bool = False
) -> list[list[np.ndarray]]:
    """U of a table, one entry for a monomial; of the absolute values of T and B if asked."""
    change = abs if absolute else lambda value: value
    found, start, first_row = [], 0, 0
    for width, rows, paths in zip(decoded.widths, decoded.rows_of_target, path_counts, strict=True):
        arrays = []
        for nu, count in enumerate(paths, start=1):
            u = np.zeros((width, *[decoded.counts["components"]] * nu, count))
            for (r, m, monomial), value in decoded.basis.items():
                if first_row <= r < first_row + rows and len(monomial) == nu:
                    u[(m, *monomial)] += change(decoded.mix[start : start + count, r]) * change(value)
            arrays.append(u)
            start += count
        first_row += rows
        found.append(arrays)
    return found


@dataclass(frozen=True)
class Problem:
    """Arrays U with operands, a cotangent and tangents, of numbers that float32 holds."""

    irreps: str
    targets: str
    correlation: int
    nodes: int = 5
    channels: int = 7
    species: int = 3
    dtype: torch.dtype = torch.float64

    @cached_property
    def u_matrices(self) -> list[list[np.ndarray]]:
        return [coupled_powers(Irreps(self.irreps), ir, self.correlation) for _, ir in Irreps(self.targets)]

    @cached_property
    def table(self) -> nn.ContractionTable:
        return nn.contraction_table(self.u_matrices)

    @cached_property
    def operands(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        x = (self.nodes, self.channels, self.table.components)
        weight = (self.species, self.table.weights, self.channels)
        shapes = {"x": x, "weight": weight, "ax": x, "aw": weight}
        shapes["grad"] = (self.nodes, self.channels * sum(self.table.widths))
        found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        found = {name: value.to(self.dtype) for name, value in found.items()}
        # the last species is absent
        index = torch.randint(0, max(1, self.species - 1), (self.nodes,), generator=generator)
        return {**found, "index": index}

    @property
    def constants(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        return self.operands["index"], self.table.tensor, self.table.widths

    def forward(self) -> Tensor:
        o = self.operands
        return torch.ops.clebsch.symmetric_contraction(o["x"], o["weight"], *self.constants)

    def backward(self, needs: int = 0b11) -> tuple[Tensor, ...]:
        o = self.operands
        return torch.ops.clebsch.symmetric_contraction_backward(
            o["grad"], o["x"], o["weight"], *self.constants, needs
        )

    def double_backward(self, needs: int = 0b111, ax: bool = True, aw: bool = True) -> tuple[Tensor, ...]:
        o = self.operands
        return torch.ops.clebsch.symmetric_contraction_double_backward(
            o["ax"] if ax else None,
            o["aw"] if aw else None,
            *(o["grad"], o["x"], o["weight"], *self.constants, needs),
        )

    def results(self) -> tuple[Tensor, ...]:
        return self.forward(), *self.backward(), *self.double_backward()

    def expected(self, ax: bool = True, aw: bool = True) -> tuple[np.ndarray, ...]:
        """All results by the reference, from U itself."""
        return self._evaluated(self.u_matrices, lambda value: value, ax, aw)

    def bounds(self, ax: bool = True, aw: bool = True) -> tuple[np.ndarray, ...]:
        """How far each number may be off.

        The same sums over absolute values, of T and B too, and how many roundings a term meets: U is T B, a
        value is a sum over a row's entries, over rows, and over the paths that are joined in a row, of
        products of four factors; gradients add up terms, that of weights nodes and components.
        """
        decoded = decode(self.table)
        paths = [[u.shape[-1] for u in target] for target in self.u_matrices]
        sizes = self._evaluated(matrices(decoded, paths, absolute=True), abs, ax, aw)
        entries = max(Counter(key[:2] for key in decoded.basis).values(), default=0)
        joined = np.count_nonzero(decoded.mix, axis=0).max(initial=0)
        value = entries + max(decoded.rows_of_target) + int(joined) + 12
        gradient = value + decoded.counts["terms"] + 2 * self.table.components
        of_weight = value + (self.nodes + 1) * max(self.table.widths)
        terms = (value, gradient, of_weight, 2 * value, 4 * gradient, 2 * of_weight)
        # The expected numbers are rounded too: couplings that cancel, not to zero.
        own = self._evaluated([[abs(u) for u in target] for target in self.u_matrices], abs, ax, aw)
        return tuple(
            tolerance(size, n, self.dtype) + tolerance(reference_size, 4 * n, torch.float64)
            for size, reference_size, n in zip(sizes, own, terms, strict=True)
        )

    def _evaluated(self, u_matrices, change, ax: bool, aw: bool) -> tuple[np.ndarray, ...]:
        o = {name: value.numpy() for name, value in self.operands.items()}
        o = {name: change(value) if name != "index" else value for name, value in o.items()}
        operands = u_matrices, o["x"], o["weight"], o["index"]
        return (
            reference.symmetric_contraction(*operands),
            *reference.symmetric_contraction_backward(o["grad"], *operands),
            *reference.symmetric_contraction_double_backward(
                o["ax"] * ax, o["aw"] * aw, o["grad"], *operands
            ),
        )


def assert_close(results, expected, bounds, label: str = "") -> None:
    """All results within their bounds; those that were not asked for, of shape (0,), are not compared."""
    for name, value, exact, bound in zip(RESULTS[-len(results) :], results, expected, bounds, strict=True):
        if value.shape == (0,) and exact.shape != (0,):
            continue
        assert value.shape == exact.shape, f"{label} {name}"
        error = abs(value.double().numpy() - exact)
        assert (error <= bound).all(), f"{label} {name}: {np.nanmax(error / np.maximum(bound, 1e-300))}"
        assert relative_error(value, exact) <= PROMISED[value.dtype], f"{label} {name}"
