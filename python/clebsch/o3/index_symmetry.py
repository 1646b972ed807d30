"""Formulas such as ``ij=-ji``: what permutations of its indices do to a tensor."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["IndexSymmetry"]

Permutation = tuple[int, ...]


class IndexSymmetry(NamedTuple):
    """The indices of a tensor and the group of its symmetries.

    group holds pairs (sign, p) with T[x_0, x_1, ...] = sign T[x_p[0], x_p[1], ...]; it is closed under
    composition. A group with both signs of one permutation leaves only T = 0.
    """

    indices: str
    group: tuple[tuple[int, Permutation], ...]

    @classmethod
    def parse(cls, formula: str) -> IndexSymmetry:
        """The symmetries that `formula` generates: permutations of one set of letters, each with a sign,
        joined by ``=``. ValueError for anything else, TypeError for no string.
        """
        if not isinstance(formula, str):
            raise TypeError(f"formula must be a str, got {type(formula).__name__}")
        terms = [term.strip() for term in formula.split("=")]
        indices = terms[0]
        signed = [(-1, term[1:].strip()) if term.startswith("-") else (1, term) for term in terms]
        if not indices.isalpha() or len(set(indices)) != len(indices):
            raise ValueError(
                f"formula must begin with its indices, different letters without a sign, got {formula!r}"
            )
        for _, term in signed:
            if sorted(term) != sorted(indices):
                raise ValueError(
                    f"formula must be permutations of {indices!r} joined by '=', got {term!r} in {formula!r}"
                )
        return cls(indices, _closure({(sign, tuple(map(term.index, indices))) for sign, term in signed}))

    def related(self, i: int) -> set[int]:
        """The indices that some symmetry puts in the place of index `i`."""
        return {p[i] for _, p in self.group}


def _closure(generators: set[tuple[int, Permutation]]) -> tuple[tuple[int, Permutation], ...]:
    """Everything that the generators compose to. In a finite group that contains the inverses."""
    group = set(generators)
    new = group
    while new:
        new = {(s * t, tuple(p[i] for i in q)) for s, p in new for t, q in generators} - group
        group |= new
    return tuple(sorted(group))
