"""Irreducible representations of O(3), and direct sums of them: parse, print, order, count.

No numbers live here, only labels. An `Irrep` is a degree l with a parity p; an `Irreps` is a direct sum with
multiplicities. Names, grammar and order are e3nn 0.6's. Random tensors and rotation matrices are added by the
subclasses in `clebsch.o3.irreps`; every method here makes objects of its own class, so they inherit all of
it.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

__all__ = ["Irrep", "Irreps", "MulIr", "SortedIrreps"]

# [mul x] l p.  ASCII digits only: int() would also read "1_0" and digits of other alphabets.
_TERM = re.compile(r"\s*(?:([0-9]+)\s*x\s*)?([0-9]+)\s*([eoy])\s*")
_GRAMMAR = "expected [mul x] l p with p in e, o, y"


def _integer(value: Any) -> int | None:
    """`value` as an int if it is an integer of any kind (numpy's among them), None otherwise."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def _parse_term(text: str) -> tuple[int, int, int] | None:
    """(mul, l, p) of one term of the grammar, or None where `text` is not such a term."""
    match = _TERM.fullmatch(text)
    if match is None:
        return None
    mul, l, p = match.groups()
    return int(mul or 1), int(l), {"e": 1, "o": -1, "y": (-1) ** int(l)}[p]


class Irrep(tuple):
    """One irreducible representation of O(3): degree l >= 0 and parity p = +-1.

    Made from (l, p), from a string such as ``"1o"`` (``"1y"`` has the parity (-1)^l of the spherical
    harmonics), from another irrep, or from any object whose str() is such a string. ValueError otherwise.
    Compares, sorts and hashes as the tuple (l, p).
    """

    __slots__ = ()
    irreps_class: ClassVar[type[Irreps]]

    def __new__(cls, l: Any, p: Any = None) -> Irrep:
        if p is None:
            if type(l) is cls:
                return l
            l, p = cls._read(l)
        degree, parity = _integer(l), _integer(p)
        if degree is None or degree < 0:
            raise ValueError(f"Irrep: l must be an integer >= 0, got {l!r}")
        if parity not in (-1, 1):
            raise ValueError(f"Irrep: p must be 1 or -1, got {p!r}")
        return super().__new__(cls, (degree, parity))

    @staticmethod
    def _read(value: Any) -> tuple[Any, Any]:
        if isinstance(value, MulIr):
            return value.ir.l, value.ir.p
        if isinstance(value, tuple) and tuple.__len__(value) == 2:
            # not unpacked by iteration alone: another package's irrep is a tuple too, and may refuse len()
            l, p = tuple.__iter__(value)
            return l, p
        term = _parse_term(str(value))
        if term is None or "x" in str(value):
            raise ValueError(
                f"Irrep: cannot parse {str(value)!r}: expected l p with p in e, o, y, such as '1o'"
            )
        return term[1:]

    @property
    def l(self) -> int:
        """Degree."""
        return self[0]

    @property
    def p(self) -> int:
        """Parity, 1 (even) or -1 (odd)."""
        return self[1]

    @property
    def dim(self) -> int:
        """Number of components, 2l + 1."""
        return 2 * self[0] + 1

    def is_scalar(self) -> bool:
        """True for 0e only: the representation that neither rotation nor inversion changes."""
        return self[0] == 0 and self[1] == 1

    @classmethod
    def iterator(cls, lmax: int | None = None) -> Iterator[Irrep]:
        """All irreps up to degree `lmax` (without end if None), each degree's harmonic parity first.

        The order, 0e, 0o, 1o, 1e, 2e, 2o, ..., is not the one that sorting gives.
        """
        for l in itertools.count() if lmax is None else range(lmax + 1):
            yield cls(l, (-1) ** l)
            yield cls(l, -((-1) ** l))

    def __mul__(self, other: Any) -> Iterator[Irrep]:
        """The irreps that the product of the two contains, |l1 - l2| to l1 + l2, each of them once."""
        cls = type(self)
        other = cls(other)
        return (cls(l, self.p * other.p) for l in range(abs(self.l - other.l), self.l + other.l + 1))

    def __rmul__(self, mul: int) -> Irreps:
        if _integer(mul) is None:
            return NotImplemented
        return self.irreps_class([(mul, self)])

    def __add__(self, other: Any) -> Irreps:
        return self.irreps_class(self) + self.irreps_class(other)

    def __repr__(self) -> str:
        return f"{self[0]}{'e' if self[1] == 1 else 'o'}"

    __str__ = __repr__

    def _not_a_sequence(self, *_: Any) -> Any:
        raise NotImplementedError("an Irrep is one representation, not a sequence: use .l, .p and .dim")

    # tuple's own answers (len = 2, count of a number) would be mistaken for statements about representations
    count = index = __contains__ = __len__ = _not_a_sequence


class MulIr(tuple):
    """One term of an `Irreps`: a multiplicity and an irrep. Unpacks as ``mul, ir``."""

    __slots__ = ()

    def __new__(cls, mul: Any, ir: Any = None) -> MulIr:
        if ir is None:
            mul, ir = mul
        if not isinstance(ir, Irrep):
            ir = Irrep(ir)
        number = _integer(mul)
        if number is None or number < 0:
            raise ValueError(f"Irreps: a multiplicity must be an integer >= 0, got {mul!r} of {ir}")
        return super().__new__(cls, (number, ir))

    @property
    def mul(self) -> int:
        """Multiplicity: how many copies."""
        return self[0]

    @property
    def ir(self) -> Irrep:
        """The irrep that is copied."""
        return self[1]

    @property
    def dim(self) -> int:
        """Number of components of all copies, mul (2l + 1)."""
        return self[0] * self[1].dim

    def __repr__(self) -> str:
        return f"{self[0]}x{self[1]!r}"

    __str__ = __repr__

    def _not_a_sequence(self, *_: Any) -> Any:
        raise NotImplementedError("a term of an Irreps is not a sequence: use .mul, .ir and .dim")

    count = index = _not_a_sequence


class SortedIrreps(NamedTuple):
    """What `Irreps.sort` returns: old block i is new block p[i]; new block j was block inv[j]."""

    irreps: Irreps
    p: tuple[int, ...]
    inv: tuple[int, ...]


class Irreps(tuple):
    """A direct sum of irreps with multiplicities, such as ``"128x0e + 128x1o"``.

    Made from a string of that grammar (empty for no irreps; multiplicity 1 may be left out, 0 is allowed), an
    irrep, an iterable of terms, each a (mul, irrep) pair, an irrep or a string, or any object whose str()
    parses, such as other packages' irreps. ValueError otherwise. Behaves as a tuple of `MulIr`.
    """

    __slots__ = ()
    irrep_class: ClassVar[type[Irrep]] = Irrep

    def __new__(cls, irreps: Any = None) -> Irreps:
        if type(irreps) is cls:
            return irreps
        return super().__new__(cls, cls._terms(irreps))

    @classmethod
    def _terms(cls, irreps: Any) -> list[MulIr]:
        if irreps is None:
            return []
        if isinstance(irreps, str):
            return cls._parse(irreps)
        if type(irreps) not in (list, tuple):
            # An irrep, a term, or irreps of another class or package: what it prints says what it is.
            # Generators and other iterables print something that is not in the grammar, and are read term by
            # term below.
            try:
                return cls._parse(str(irreps))
            except ValueError:
                pass
        if not isinstance(irreps, Iterable):
            raise ValueError(f"Irreps: cannot read {irreps!r}: expected a string or an iterable of terms")
        return [cls._term(term) for term in irreps]

    @classmethod
    def _parse(cls, text: str) -> list[MulIr]:
        if not text.strip():
            return []
        out = []
        for part in text.split("+"):
            term = _parse_term(part)
            if term is None:
                raise ValueError(f"Irreps: cannot parse {part.strip()!r} in {text!r}: {_GRAMMAR}")
            mul, l, p = term
            out.append(MulIr(mul, cls.irrep_class(l, p)))
        return out

    @classmethod
    def _term(cls, term: Any) -> MulIr:
        if isinstance(term, (tuple, list)) and _parse_term(str(term)) is None:
            if len(term) != 2:
                raise ValueError(f"Irreps: cannot read the term {term!r}: expected a pair (mul, irrep)")
            mul, ir = term
            return MulIr(mul, cls.irrep_class(ir))
        parsed = _parse_term(str(term))
        if parsed is None:
            raise ValueError(f"Irreps: cannot parse {str(term)!r}: {_GRAMMAR}")
        mul, l, p = parsed
        return MulIr(mul, cls.irrep_class(l, p))

    @classmethod
    def spherical_harmonics(cls, lmax: int, p: int = -1) -> Irreps:
        """One irrep of every degree up to `lmax`, of parity p^l: p = -1 for harmonics of a vector."""
        return cls([(1, (l, p**l)) for l in range(lmax + 1)])

    @property
    def dim(self) -> int:
        """Number of components of the whole sum."""
        return sum(mul * ir.dim for mul, ir in self)

    @property
    def num_irreps(self) -> int:
        """Sum of the multiplicities."""
        return sum(mul for mul, _ in self)

    @property
    def ls(self) -> list[int]:
        """The degree of every copy, in order."""
        return [ir.l for mul, ir in self for _ in range(mul)]

    @property
    def lmax(self) -> int:
        """Largest degree that is present with multiplicity > 0; ValueError if there is none."""
        ls = [ir.l for mul, ir in self if mul > 0]
        if not ls:
            raise ValueError(f"Irreps: {str(self)!r} is empty and has no lmax")
        return max(ls)

    def slices(self) -> list[slice]:
        """For each term, where its components lie in the last axis of a tensor."""
        ends = list(itertools.accumulate((term.dim for term in self), initial=0))
        return [slice(start, stop) for start, stop in itertools.pairwise(ends)]

    def count(self, ir: Any) -> int:
        """Total multiplicity of irrep `ir`."""
        ir = self.irrep_class(ir)
        return sum(mul for mul, other in self if other == ir)

    def __contains__(self, ir: Any) -> bool:
        ir = self.irrep_class(ir)
        return any(other == ir for _, other in self)

    def index(self, *_: Any) -> int:
        """A tuple's index is no answer here: NotImplementedError."""
        raise NotImplementedError("Irreps has no index(): an irrep may occur in several terms")

    def simplify(self) -> Irreps:
        """Merge neighbours of the same irrep and drop zero multiplicities; the order stays."""
        terms = [(mul, ir) for mul, ir in self if mul > 0]
        groups = itertools.groupby(terms, key=operator.itemgetter(1))
        return type(self)([(sum(mul for mul, _ in group), ir) for ir, group in groups])

    def remove_zero_multiplicities(self) -> Irreps:
        """The same terms without those of multiplicity 0."""
        return type(self)([term for term in self if term.mul > 0])

    def sort(self) -> SortedIrreps:
        """Order by degree, then parity -1 before 1: 0o, 0e, 1o, 1e, ...; equal irreps keep their order."""
        inv = tuple(sorted(range(len(self)), key=lambda i: self[i].ir))
        p = [0] * len(inv)
        for new, old in enumerate(inv):
            p[old] = new
        return SortedIrreps(type(self)([self[i] for i in inv]), tuple(p), inv)

    def regroup(self) -> Irreps:
        """Sort, then merge: every irrep once."""
        return self.sort().irreps.simplify()

    def filter(self, keep: Any = None, *, drop: Any = None, lmax: int | None = None) -> Irreps:
        """The terms that `keep` selects, `drop` does not select, or whose degree is at most `lmax`.

        `keep` and `drop` are irreps in any form, a list of them (multiplicities are ignored), or a function
        of the term (`MulIr`) that says yes or no. At most one of the three may be given (ValueError).
        """
        given = [
            name for name, value in (("keep", keep), ("drop", drop), ("lmax", lmax)) if value is not None
        ]
        if len(given) > 1:
            raise ValueError(
                f"Irreps.filter: give only one of keep, drop and lmax, got {' and '.join(given)}"
            )
        if not given:
            return self
        if lmax is not None:
            return type(self)([term for term in self if term.ir.l <= lmax])
        selected = self._selector(keep if drop is None else drop)
        return type(self)([term for term in self if selected(term) == (drop is None)])

    def _selector(self, choice: Any) -> Any:
        if callable(choice):
            return lambda term: bool(choice(term))
        chosen = {term.ir for term in type(self)(choice)}
        return lambda term: term.ir in chosen

    @property
    def slice_by_mul(self) -> _SliceByMultiplicity:
        """Slices that count copies, not terms: ``Irreps("10x0e+4x1o").slice_by_mul[5:12]`` is 5x0e+2x1o."""
        return _SliceByMultiplicity(self)

    def __getitem__(self, i: Any) -> Any:
        item = super().__getitem__(i)
        return type(self)(item) if isinstance(i, slice) else item

    def __add__(self, other: Any) -> Irreps:
        return type(self)(tuple(self) + tuple(type(self)(other)))

    def __mul__(self, times: Any) -> Irreps:
        """The sum of `times` copies, one after the other."""
        if isinstance(times, Irreps):
            raise NotImplementedError("Irreps * Irreps is not defined: see o3.FullTensorProduct")
        return type(self)(super().__mul__(times))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return "+".join(map(repr, self))

    __str__ = __repr__


class _SliceByMultiplicity:
    """``[start:stop]`` over the copies of an `Irreps`."""

    def __init__(self, irreps: Irreps) -> None:
        self._irreps = irreps

    def __getitem__(self, index: slice) -> Irreps:
        if not isinstance(index, slice):
            raise IndexError(f"Irreps.slice_by_mul: expected a slice, got {index!r}")
        start, stop, step = index.indices(self._irreps.num_irreps)
        if step != 1:
            raise NotImplementedError(f"Irreps.slice_by_mul: the step must be 1, got {step}")
        stop = max(start, stop)
        out, begin = [], 0
        for mul, ir in self._irreps:
            end = begin + mul
            if start <= begin and end <= stop:
                out.append((mul, ir))
            elif start < end and begin < stop:
                out.append((min(stop, end) - max(start, begin), ir))
            begin = end
        return type(self._irreps)(out)


Irrep.irreps_class = Irreps
