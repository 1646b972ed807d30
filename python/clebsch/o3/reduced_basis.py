"""A basis of the tensors with a symmetry of their indices, in irreps.

Vectors of degree l are sums of coupled products, x_0 with x_1 into an intermediate irrep, that with x_2, and
so on; a `CoupledProduct` is one such path. The coupled products are orthonormal, so those sums that have the
symmetry are the space that a projector P leaves as it is, P the average over the group, and P falls into
small blocks: it mixes only products of the same copies in another order.

The basis is e3nn's (`e3nn.o3.ReducedTensorProducts`), whose construction is unique in spite of the freedom of
choice: it takes the rows of P in the order of the paths and makes them orthonormal one after the other, the
first coefficient positive. P does not depend on how a null space was found, so roundings apart (1e-15) every
machine and version gets the same vectors, but for the signs that come with the coupling coefficients. Only an
`eps` close to the norm of what remains of a row, which the default is far from, could decide otherwise.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from clebsch.o3.index_symmetry import IndexSymmetry
from clebsch.o3.irreps import Irrep, Irreps
from clebsch.o3.wigner import coupling_array

__all__ = ["BasisIrrep", "CoupledProduct", "ReducedBasis"]

Array = NDArray[numpy.float64]


class CoupledProduct(NamedTuple):
    """Copy copies[k] of input k, coupled from the left; irreps[k] is the irrep of the first k + 1 of them."""

    copies: tuple[int, ...]
    irreps: tuple[Irrep, ...]

    def first(self, k: int) -> CoupledProduct:
        """The product of the first k inputs, with which this one begins."""
        return CoupledProduct(self.copies[:k], self.irreps[:k])

    def extended(self, copy: int, ir: Irrep) -> CoupledProduct:
        """This product with one copy of the next input, in irrep `ir`."""
        return CoupledProduct((*self.copies, copy), (*self.irreps, ir))


class BasisIrrep(NamedTuple):
    """One irrep of the basis: a sum of coupled products, each with its coefficient."""

    ir: Irrep
    terms: tuple[tuple[float, CoupledProduct], ...]


class ReducedBasis:
    """The basis for inputs of `irreps`, one per index of `symmetry`.

    allowed_mid, allowed_out: the irreps that intermediate products (the last among them) and the output may
    have; all if None. eps: below it a number counts as zero.

    vectors: a list of `BasisIrrep`, in the order of irreps.
    """

    def __init__(
        self,
        symmetry: IndexSymmetry,
        irreps: Sequence[Irreps],
        allowed_mid: frozenset[Irrep] | None,
        allowed_out: frozenset[Irrep] | None,
        eps: float,
    ) -> None:
        self.symmetry, self.eps = symmetry, eps
        self.copies = [[ir for mul, ir in block for _ in range(mul)] for block in irreps]
        self._dense: dict[tuple[tuple[int, ...], tuple[int, ...]], Array] = {}
        self._solved: dict[tuple, list[tuple[int, Array]]] = {}
        products = _coupled_products(irreps, allowed_mid, allowed_out)
        self.vectors = [vector for group in products for vector in self._symmetric(group)]

    def tensor(self) -> Array:
        """All vectors, (sum of their dimensions, dim of input 0, dim of input 1, ...)."""
        starts = [numpy.cumsum([0, *(ir.dim for ir in copies)]).tolist() for copies in self.copies]
        rows = numpy.cumsum([0, *(vector.ir.dim for vector in self.vectors)]).tolist()
        out = numpy.zeros((rows[-1], *(ends[-1] for ends in starts)))
        for row, vector in zip(rows, self.vectors, strict=False):
            for coefficient, product in vector.terms:
                place = [slice(ends[c], ends[c + 1]) for ends, c in zip(starts, product.copies, strict=True)]
                out[(slice(row, row + vector.ir.dim), *place)] += coefficient * self._tensor_of(product)
        return out

    def _degrees(self, product: CoupledProduct) -> tuple[int, ...]:
        return tuple(copies[c].l for copies, c in zip(self.copies, product.copies, strict=True))

    def _tensor_of(self, product: CoupledProduct) -> Array:
        """The product as a tensor of its copies, (2l+1, 2l_0+1, 2l_1+1, ...), with orthonormal rows."""
        return self._coupled(self._degrees(product), tuple(ir.l for ir in product.irreps))

    def _coupled(self, degrees: tuple[int, ...], reached: tuple[int, ...]) -> Array:
        key = degrees, reached
        if key not in self._dense:
            if len(degrees) == 1:
                self._dense[key] = numpy.eye(2 * degrees[0] + 1)
            else:
                left = self._coupled(degrees[:-1], reached[:-1])
                last = coupling_array(reached[-1], reached[-2], degrees[-1]) * (2 * reached[-1] + 1) ** 0.5
                # (out, left, right), (left, ...) -> (out, ..., right)
                self._dense[key] = numpy.moveaxis(numpy.tensordot(last, left, axes=(1, 0)), 1, -1)
        return self._dense[key]

    def _symmetric(self, products: list[CoupledProduct]) -> list[BasisIrrep]:
        """The vectors of one irrep, from all coupled products of that irrep in their order."""
        orbits: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, product in enumerate(products):
            orbits[min(_permuted(product.copies, p) for _, p in self.symmetry.group)].append(i)
        found = []
        for members in orbits.values():
            for first, coefficients in self._solve([products[i] for i in members]):
                terms = [
                    (float(c), products[i])
                    for c, i in zip(coefficients, members, strict=True)
                    if abs(c) > self.eps
                ]
                found.append((members[first], BasisIrrep(products[0].irreps[-1], tuple(terms))))
        # each began from another row of the projector, and e3nn goes through these in order
        found.sort(key=lambda numbered: numbered[0])
        return [vector for _, vector in found]

    def _solve(self, products: list[CoupledProduct]) -> list[tuple[int, Array]]:
        """`_orthonormal_rows` of the projector among products of the same copies; products of other copies
        of the same degrees have the same.
        """
        labels: dict[int, int] = {}
        key = tuple(
            (
                tuple(labels.setdefault(c, len(labels)) for c in product.copies),
                self._degrees(product),
                tuple(ir.l for ir in product.irreps),
            )
            for product in products
        )
        if key not in self._solved:
            self._solved[key] = _orthonormal_rows(self._projector(products), self.eps)
        return self._solved[key]

    def _projector(self, products: list[CoupledProduct]) -> Array:
        """Onto the combinations of `products` that have the symmetry."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, product in enumerate(products):
            groups[product.copies].append(i)
        # one component tells all: the group commutes with rotations
        tensors = {
            copies: numpy.stack([self._tensor_of(products[i])[0] for i in members])
            for copies, members in groups.items()
        }
        average = numpy.zeros((len(products), len(products)))
        for copies, members in groups.items():
            for sign, p in self.symmetry.group:
                others = groups.get(_permuted(copies, p))
                if others is None:
                    continue
                # T[x_p[0], x_p[1], ...] as a tensor of (x_0, x_1, ...)
                turned = tensors[_permuted(copies, p)].transpose(0, *(1 + p.index(k) for k in range(len(p))))
                overlap = tensors[copies].reshape(len(members), -1) @ turned.reshape(len(others), -1).T
                average[numpy.ix_(members, others)] += sign / len(self.symmetry.group) * overlap
        # where intermediate irreps are left out, what the average does not leave as it is has to go
        eigenvalues, eigenvectors = numpy.linalg.eigh(average)
        kept = eigenvectors[:, eigenvalues > (1 - self.eps) ** 2]
        return kept @ kept.T


def _permuted(copies: tuple[int, ...], p: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(copies[i] for i in p)


def _coupled_products(
    irreps: Sequence[Irreps], allowed_mid: frozenset[Irrep] | None, allowed_out: frozenset[Irrep] | None
) -> Iterable[list[CoupledProduct]]:
    """Every coupled product with an allowed irrep, in one list per irrep, in e3nn's order: sorted by irrep
    after each input but the first.
    """
    products = [CoupledProduct((c,), (ir,)) for ir, copies in _numbered_copies(irreps[0]) for c in copies]
    for right in irreps[1:]:
        products = [
            left.extended(c, ir_out)
            for left in products
            for ir, copies in _numbered_copies(right)
            for ir_out in left.irreps[-1] * ir
            if allowed_mid is None or ir_out in allowed_mid
            for c in copies
        ]
        products.sort(key=lambda product: product.irreps[-1])
    by_irrep: dict[Irrep, list[CoupledProduct]] = defaultdict(list)
    for product in products:
        if allowed_out is None or product.irreps[-1] in allowed_out:
            by_irrep[product.irreps[-1]].append(product)
    return by_irrep.values()


def _numbered_copies(irreps: Irreps) -> list[tuple[Irrep, range]]:
    """For each block its irrep and the numbers of its copies."""
    starts = itertools.accumulate((mul for mul, _ in irreps), initial=0)
    return [(ir, range(start, start + mul)) for (mul, ir), start in zip(irreps, starts, strict=False)]


def _orthonormal_rows(projector: Array, eps: float) -> list[tuple[int, Array]]:
    """A basis of what `projector` keeps: its rows, made orthonormal one after the other, with the number of
    the row that each vector came from.

    The factor 1/2 and the thresholds decide which rows count, and are e3nn's.
    """
    found: list[tuple[int, Array]] = []
    for i, row in enumerate(projector / 2):
        for _, previous in found:
            row = row - (row @ previous) * previous
        norm = numpy.linalg.norm(row)
        if norm > 2 * eps:
            row = row / norm
            row[abs(row) < eps] = 0
            found.append((i, row * numpy.sign(row[row.nonzero()[0][0]])))
    return found
