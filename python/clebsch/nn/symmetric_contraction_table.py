"""The arrays U of a symmetric contraction as the sparse table that its kernel runs.

For one irrep of the output the contraction is sum_k W_k sum_i U[M, i1, ..., inu, k] x_i1 ... x_inu. Since the
product of the x is symmetric, all U that agree in the sum over orders of (i1, ..., inu) are one:

1. Entries are added up over the orders of their indices: u[k, M, t] for the monomials t = x_i1 ... x_inu with
   i1 <= ... <= inu.
2. What couples along different paths k is often the same polynomial, or a sum of others: of the 86 paths of
   MACE to 0e + 1o (degrees to 3, correlation 3) 29 are independent. Per target and nu, u = T B with B as few
   rows r as u's rank, found by elimination among paths that share a monomial; the kernel contracts W with T
   once for every species, sum_k W_k T[k, r], and meets B alone.
3. A monomial of degree 3 is a pair times a component, of degree 4 a pair times a pair. Which pair is chosen
   so that the entries of one polynomial share few of them: they are summed before they are multiplied by it.

Entries that are rounding noise would each cost as much as one that counts. Arrays in float32 were seen to
hold noise below 1e-7 of the largest entry and true entries above 5e-3, those in float64 noise below 1e-15.
What is below `resolution`, 64 units in the last place of the largest, is dropped; a path is taken for a sum
of others if it is to that precision. What stays was computed in float64 from the numbers of the arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MAX_CORRELATION", "ContractionTable", "contraction_counts", "contraction_table"]

Array = NDArray[np.float64]
Monomial = tuple[int, ...]

MAX_CORRELATION = 4
_ROUNDINGS = 64
_FORMAT, _HEADER = 1, 10
# Entries this close to the largest are as good a pivot as it.
_PIVOT = 0.99


@dataclass(frozen=True)
class ContractionTable:
    """What `ops.symmetric_contraction` computes: immutable, hashable, compared by content.

    components: of x. weights: K, over the paths of all targets and nu. widths: components of each target.
    words: the table itself, as the kernel reads it (csrc/symmetric_contraction.h).
    """

    components: int
    weights: int
    widths: tuple[int, ...]
    words: bytes

    @cached_property
    def tensor(self) -> Tensor:
        """The table as the operators take it: a vector of int64, which no conversion of types touches."""
        return torch.frombuffer(bytearray(self.words), dtype=torch.int64)


def contraction_counts(table: Tensor) -> dict[str, int]:
    """What a table's kernel does for every channel, in numbers: pairs, groups, entries, terms, products."""
    _, _, _, pairs, _, targets, groups, entries, terms, _ = table[:_HEADER].tolist()
    widths, rows = table[_HEADER + 2 * pairs :][: 2 * targets].reshape(2, targets)
    products = int((widths * rows).sum())
    return {"pairs": pairs, "groups": groups, "entries": entries, "terms": terms, "products": products}


class Basis(NamedTuple):
    """u = T B of one target and nu: rows of B as {(M, monomial): value}, T as {(k, r): value}."""

    rows: list[dict[tuple[int, Monomial], float]]
    mix: dict[tuple[int, int], float]


def contraction_table(
    u_matrices: Sequence[Sequence[Tensor | Array]], resolution: float | None = None
) -> ContractionTable:
    """The table of a contraction from its arrays U.

    Args:
        u_matrices: for each target, in the order of the output, the arrays for nu = 1, 2, ... as MACE keeps
            them in ``U_matrix_1``, ``U_matrix_2``, ...: (2l+1, D, ..., D, paths) with nu axes of length D,
            the first axis absent where l = 0. The weights of the operator are the paths in this order.
        resolution: entries below this fraction of the largest of an array are dropped, paths that depend on
            others to this precision are joined; by default 64 units in the last place of the array's dtype.

    Raises:
        ValueError: no target, a correlation above 4, shapes that are none of these.
    """
    if not u_matrices or not all(len(target) for target in u_matrices):
        raise ValueError("contraction_table: u_matrices must hold an array or more for every target")
    components = _components(u_matrices)
    bases, widths, offset = [], [], 0
    mix: list[dict[int, float]] = []
    rows: list[dict[tuple[int, Monomial], float]] = []
    counts = []
    for number, target in enumerate(u_matrices):
        if len(target) > MAX_CORRELATION:
            raise ValueError(
                f"contraction_table: correlation must be 1 to {MAX_CORRELATION}, got {len(target)}"
            )
        width, before = _width(target[0], components, 1), len(rows)
        for nu, u in enumerate(target, start=1):
            values, eps = _canonical(u, components, nu, width, f"u_matrices[{number}][{nu - 1}]")
            basis = _basis(values, eps if resolution is None else resolution)
            bases.append(basis)
            mix += [{} for _ in basis.rows]
            for (k, r), value in sorted(basis.mix.items()):
                mix[len(rows) + r][offset + k] = value
            rows += basis.rows
            offset += values.shape[-1]
        widths.append(width)
        counts.append(len(rows) - before)
    words = _words(components, offset, widths, counts, rows, mix)
    return ContractionTable(components, offset, tuple(widths), words.tobytes())


def _components(u_matrices: Sequence[Sequence[Any]]) -> int:
    """D, from the array for nu = 1 of any target: (D, paths), or (2l+1, D, paths)."""
    shape = tuple(u_matrices[0][0].shape)
    if len(shape) not in (1, 2, 3):
        raise ValueError(
            f"contraction_table: u_matrices[0][0] must have shape (D, paths) or (2l+1, D, paths), got {shape}"
        )
    return shape[-2] if len(shape) > 1 else 1  # MACE drops every axis of length 1


def _width(u: Any, components: int, nu: int) -> int:
    numel = int(np.prod(u.shape))
    return max(1, numel // max(1, components**nu * u.shape[-1]))


def _canonical(u: Any, components: int, nu: int, width: int, name: str) -> tuple[Array, float]:
    """U as float64 (width, D, ..., D, paths), and the resolution of its dtype."""
    if isinstance(u, Tensor):
        eps = torch.finfo(u.dtype).eps
        values = u.detach().to(device="cpu", dtype=torch.float64).numpy()
    else:
        values = np.asarray(u)
        eps, values = float(np.finfo(values.dtype).eps), values.astype(np.float64)
    shape = (width, *[components] * nu, values.shape[-1] if values.ndim else 0)
    fits = [length for length in shape[:-1] if length != 1] == [
        length for length in values.shape[:-1] if length != 1
    ]
    if not fits:
        raise ValueError(f"contraction_table: {name} must have shape {shape}, got {tuple(values.shape)}")
    return values.reshape(shape), _ROUNDINGS * eps


def _basis(u: Array, resolution: float) -> Basis:
    columns = _polynomials(u, resolution)
    rows: list[dict[tuple[int, Monomial], float]] = []
    mix: dict[tuple[int, int], float] = {}
    for paths in _connected(columns):
        keys = sorted({key for k in paths for key in columns[k]})
        place = {key: i for i, key in enumerate(keys)}
        matrix = np.zeros((len(paths), len(keys)))
        for i, k in enumerate(paths):
            for key, value in columns[k].items():
                matrix[i, place[key]] = value
        t, b = _factors(matrix, resolution)
        for i, r in zip(*np.nonzero(t), strict=True):
            mix[paths[i], len(rows) + int(r)] = float(t[i, r])
        rows += [{keys[j]: float(row[j]) for j in np.flatnonzero(row)} for row in b]
    return Basis(rows, mix)


def _polynomials(u: Array, resolution: float) -> list[dict[tuple[int, Monomial], float]]:
    """For every path the coefficients of its monomials: entries added up over the orders of their indices."""
    where = np.nonzero(u)
    m, *indices, paths = where
    monomials = np.sort(np.stack(indices, axis=1), axis=1)
    keys = np.column_stack((paths, m, monomials))
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    sums = np.bincount(inverse.reshape(-1), weights=u[where], minlength=len(unique))
    threshold = resolution * np.abs(sums).max(initial=0.0)
    columns: list[dict[tuple[int, Monomial], float]] = [{} for _ in range(u.shape[-1])]
    for (path, component, *monomial), value in zip(unique.tolist(), sums.tolist(), strict=True):
        if abs(value) > threshold:
            columns[path][component, tuple(monomial)] = value
    return columns


def _connected(columns: Sequence[dict[tuple[int, Monomial], float]]) -> list[list[int]]:
    """Paths with entries, in groups that share no key."""
    owner: dict[Any, int] = {}
    parent = list(range(len(columns)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    for k, column in enumerate(columns):
        for key in column:
            parent[root(k)] = root(owner.setdefault(key, k))
    groups = defaultdict(list)
    for k, column in enumerate(columns):
        if column:
            groups[root(k)].append(k)
    return sorted(groups.values())


def _factors(matrix: Array, resolution: float) -> tuple[Array, Array]:
    """matrix = T B with as many rows in B as its rank, by elimination with complete pivoting.

    B is the identity at the pivots, which leaves it few entries, and T is matrix there.
    """
    scale = np.abs(matrix).max()
    left, pivots = matrix.copy(), []
    while len(pivots) < min(matrix.shape):
        size = np.abs(left)
        if size.max() <= resolution * scale:
            break
        i, j = _pivot(size > resolution * scale, size)
        pivots.append((i, j))
        left -= np.outer(left[:, j], left[i] / left[i, j])
        left[:, j] = 0
        left[i] = 0
    t = matrix[:, [j for _, j in pivots]]
    chosen = [i for i, _ in pivots]
    b = np.linalg.solve(t[chosen], matrix[chosen]) if len(pivots) else np.zeros((0, matrix.shape[1]))
    b[np.abs(b) <= resolution * np.abs(b).max(initial=0.0)] = 0
    t = np.where(np.abs(t) <= resolution * scale, 0, t)
    if len(pivots) == len(matrix) and np.count_nonzero(matrix) < np.count_nonzero(b) + np.count_nonzero(t):
        return np.eye(len(matrix)), matrix
    return t, b


def _pivot(present: NDArray[np.bool_], size: Array) -> tuple[int, int]:
    """One of the largest entries, of the path with the fewest, by a rule that rounding does not sway."""
    allowed = size >= _PIVOT * size.max()
    path = min(np.flatnonzero(allowed.any(axis=1)), key=lambda i: (present[i].sum(), i))
    return int(path), int(np.flatnonzero(allowed[path])[0])


# Factors: 0 is the number 1, 1 to D the components, then pairs of components.


def _splits(monomial: Monomial) -> set[tuple[Monomial, Monomial]]:
    """Every way to take a pair of a monomial: (pair, rest)."""
    n = len(monomial)
    return {
        ((monomial[i], monomial[j]), tuple(monomial[k] for k in range(n) if k not in (i, j)))
        for i in range(n)
        for j in range(i + 1, n)
    }


def _chosen_splits(
    products: Sequence[dict[Monomial, float]],
) -> dict[Monomial, tuple[Monomial, Monomial]]:
    """For monomials of degree 3 and 4 the pair that is split off: greedily the one that saves most."""
    users: dict[Monomial, list[int]] = defaultdict(list)
    for p, product in enumerate(products):
        for monomial in product:
            if len(monomial) > 2:
                users[monomial].append(p)
    splits = {monomial: dict(_splits(monomial)) for monomial in users}
    by_pair: dict[Monomial, set[Monomial]] = defaultdict(set)
    for monomial, ways in splits.items():
        for pair in ways:
            by_pair[pair].add(monomial)

    def saved(pair: Monomial) -> int:
        met = [p for monomial in by_pair[pair] for p in users[monomial]]
        return len(met) - len(set(met))

    savings = {pair: saved(pair) for pair in by_pair}
    chosen: dict[Monomial, tuple[Monomial, Monomial]] = {}
    while by_pair:
        best = max(sorted(by_pair), key=lambda pair: (savings[pair], len(by_pair[pair])))
        touched = set()
        for monomial in sorted(by_pair[best]):
            chosen[monomial] = best, splits[monomial][best]
            for pair in splits[monomial]:
                by_pair[pair].discard(monomial)
                touched.add(pair)
        for pair in touched:
            if by_pair[pair]:
                savings[pair] = saved(pair)
            else:
                del by_pair[pair]
    return chosen


class _Entry(NamedTuple):
    product: int
    first: int
    second: int
    value: float


def _entries(
    products: Sequence[dict[Monomial, float]], components: int
) -> tuple[list[Monomial], list[_Entry]]:
    """The pairs in use and all entries: product += value * factor first * factor second."""
    chosen = _chosen_splits(products)
    used = {part for split in chosen.values() for part in split if len(part) == 2}
    pairs = sorted(used)
    number = {pair: 1 + components + i for i, pair in enumerate(pairs)}

    def factors(monomial: Monomial) -> tuple[int, int]:
        if len(monomial) == 1:
            return 0, 1 + monomial[0]
        if len(monomial) == 2:
            return (0, number[monomial]) if monomial in number else (1 + monomial[0], 1 + monomial[1])
        pair, rest = chosen[monomial]
        return number[pair], number[rest] if len(rest) == 2 else 1 + rest[0]

    entries = [
        _Entry(p, *factors(monomial), value)
        for p, product in enumerate(products)
        for monomial, value in product.items()
    ]
    return pairs, sorted(entries)


def _words(
    components: int,
    weights: int,
    widths: Sequence[int],
    counts: Sequence[int],
    rows: Sequence[dict[tuple[int, Monomial], float]],
    mix: Sequence[dict[int, float]],
) -> NDArray[np.int64]:
    """The arrays that csrc/symmetric_contraction.h describes, one after the other."""
    products: list[dict[Monomial, float]] = []
    width_of = [width for width, count in zip(widths, counts, strict=True) for _ in range(count)]
    for row, width in zip(rows, width_of, strict=True):
        own: list[dict[Monomial, float]] = [{} for _ in range(width)]
        for (m, monomial), value in row.items():
            own[m][monomial] = value
        products += own
    pairs, entries = _entries(products, components)
    factors = 1 + components + len(pairs)
    groups = _runs((entry.product, entry.first) for entry in entries)
    terms_of = sorted(entries, key=lambda entry: (entry.first, entry.second, entry.product))
    terms = _runs((entry.first, entry.second) for entry in terms_of)
    reductions = [item for row in mix for item in sorted(row.items())]
    header = [_FORMAT, components, weights, len(pairs), len(rows), len(widths)]
    header += [len(groups), len(entries), len(terms), len(reductions)]
    integers: list[Sequence[int]] = [
        header,
        [factor for pair in pairs for factor in (1 + pair[0], 1 + pair[1])],
        widths,
        counts,
        _ends([product for (product, _), _ in groups], len(products)),
        [first for (_, first), _ in groups],
        [end for _, end in groups],
        [entry.second for entry in entries],
        _ends([first for (first, _), _ in terms], factors),
        [second for (_, second), _ in terms],
        [end for _, end in terms],
        [entry.product for entry in terms_of],
        np.cumsum([len(row) for row in mix]).tolist(),
        [k for k, _ in reductions],
    ]
    numbers = [entry.value for entry in entries]
    numbers += [entry.value for entry in terms_of] + [value for _, value in reductions]
    flat = np.array([word for part in integers for word in part], np.int64)
    return np.concatenate((flat, np.array(numbers, np.float64).view(np.int64)))


def _runs(keys: Iterable[Any]) -> list[tuple[Any, int]]:
    """Runs of equal keys: (key, where it ends)."""
    runs: list[tuple[Any, int]] = []
    for i, key in enumerate(keys):
        if runs and runs[-1][0] == key:
            runs.pop()
        runs.append((key, i + 1))
    return runs


def _ends(owners: Sequence[int], count: int) -> list[int]:
    """Where the items of each of `count` owners end, `owners` being sorted."""
    return np.searchsorted(np.asarray(owners, np.int64), np.arange(count), side="right").tolist()
