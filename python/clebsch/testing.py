"""For tests of anything that computes what `reference` does: how close is close, poisoned memory, random
problems.

Arrays may be numpy's or torch's. The generators of random problems need the package hypothesis when called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference
from .algebra.irreps import Irreps
from .algebra.plan import LAYOUTS, MODES, Path, ProductPlan

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

# The one constant: how many times the derived bound is forgiven, for roundings that the count below leaves
# out, such as those of a coefficient computed from others.
ALLOWANCE = 2.0

# Roundings of one term on its way into a sum: of the path's coefficient, of the coupling coefficient, of
# their product, and of the products with three operands.
_ROUNDINGS = 6

_UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
_SMALLEST = {"float32": 2.0**-126, "float64": 2.0**-1022}


def tolerance(magnitude: ArrayLike, terms: ArrayLike, dtype: Any) -> NDArray[np.float64]:
    """How far a sum computed in `dtype` may be from the exact one: an absolute bound for each number.

    magnitude: the sum over the absolute values of its terms; terms: how many these are; see
    `reference.magnitude` and `reference.term_counts`. With n = terms + the roundings of a term + one of the
    result, and u the unit roundoff, it is ALLOWANCE n u / (1 - n u) magnitude, plus what may be lost below
    the smallest normal number.
    """
    name = _dtype_name(dtype)
    terms = np.asarray(terms, np.float64)
    rounded = (terms + _ROUNDINGS + 1) * _UNIT[name]
    return ALLOWANCE * rounded / (1 - rounded) * np.asarray(magnitude) + terms * _SMALLEST[name]


def assert_close_to_reference(actual: Any, function: Callable[..., Any], *arguments: Any) -> float:
    """Assert that `actual` is ``function(*arguments)``, a function of `reference`, up to `tolerance`.

    actual: what was computed from the same arguments, one array or a tuple of them, float32 or float64; a
    part that is None, or empty where it should not be, was not asked for and is not compared. Returns the
    largest error in units of the tolerance; AssertionError where it is above 1 (or not a number).
    """
    arguments = tuple(_as_numpy(argument) for argument in arguments)
    names = f"{function.__name__}({arguments[0]})"
    results = [
        result if isinstance(result, tuple) else (result,)
        for result in (
            function(*arguments),
            reference.magnitude(function, *arguments),
            reference.term_counts(function, *arguments),
        )
    ]
    parts = actual if isinstance(actual, (tuple, list)) else (actual,)
    assert len(parts) == len(results[0]), f"{names}: {len(results[0])} results expected, got {len(parts)}"
    worst = 0.0
    for i, (part, expected, magnitude, terms) in enumerate(zip(parts, *results, strict=True)):
        if part is None or (part.shape == (0,) and expected.size > 0):
            continue
        bound = tolerance(magnitude, terms, part.dtype)
        worst = max(worst, _assert_within(f"{names}, result {i}", _as_numpy(part), expected, bound))
    return worst


def _assert_within(label: str, actual: NDArray, expected: NDArray, bound: NDArray) -> float:
    assert actual.shape == expected.shape, f"{label}: shape {expected.shape} expected, got {actual.shape}"
    if actual.size == 0:
        return 0.0
    error = np.abs(actual.astype(np.float64) - expected)
    # an error of 0 is 0 tolerances even where the tolerance is 0; NaN stays NaN, and is the largest
    units = np.divide(error, bound, out=np.where(error == 0, 0.0, np.inf), where=bound > 0)
    units = np.where(np.isnan(error), np.inf, units)
    where = np.unravel_index(np.argmax(units), units.shape)
    assert units[where] <= 1, (
        f"{label}: {np.count_nonzero(units > 1)} of {units.size} numbers are too far off; the worst, at "
        f"{tuple(map(int, where))}, is {actual[where]!r} for {expected[where]!r}: off by {error[where]:.3g}, "
        f"allowed {bound[where]:.3g}"
    )
    return float(units[where])


def relative_error(actual: Any, expected: Any) -> float:
    """Norm of actual - expected over the norm of expected, in float64; 0 for two zeros."""
    actual, expected = (np.asarray(_as_numpy(array), np.float64) for array in (actual, expected))
    error = float(np.linalg.norm(actual - expected))
    return error / float(np.linalg.norm(expected)) if error else 0.0


def poison(array: Any) -> Any:
    """Fill an array or a tensor with NaN, in place, so that what is not written is noticed; returns it."""
    array.fill_(float("nan")) if hasattr(array, "fill_") else array.fill(np.nan)
    return array


def _as_numpy(argument: Any) -> Any:
    """A tensor as the numpy array of the same numbers; anything else as it is."""
    return argument.detach().cpu().numpy() if hasattr(argument, "detach") else argument


def _dtype_name(dtype: Any) -> str:
    """ "float32" or "float64" for numpy's or torch's dtype."""
    name = str(dtype).rpartition(".")[2] if "torch" in str(dtype) else np.dtype(dtype).name
    if name not in _UNIT:
        raise ValueError(f"tolerance: dtype must be float32 or float64, got {dtype!r}")
    return name


# Random problems.


class RandomGraph(NamedTuple):
    """Edges from senders to receivers, int64 arrays (E,), among num_nodes nodes."""

    senders: NDArray[np.int64]
    receivers: NDArray[np.int64]
    num_nodes: int


def random_operands(
    plan: ProductPlan,
    rows: int,
    *,
    num_nodes: int | None = None,
    shared: bool = False,
    dtype: Any = np.float64,
    seed: int = 0,
) -> tuple[NDArray, NDArray, NDArray]:
    """Normally distributed x, y and weight for `rows` rows (edges, if num_nodes gives the rows of x)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows if num_nodes is None else num_nodes, plan.irreps_in1.dim))
    y = rng.standard_normal((rows, plan.irreps_in2.dim))
    weight = rng.standard_normal((plan.weight_numel,) if shared else (rows, plan.weight_numel))
    return x.astype(dtype), y.astype(dtype), weight.astype(dtype)


# Around the widths of vector registers, and zero: where kernels have their seams.
_MULTIPLICITIES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33)


def random_irreps(
    min_terms: int = 0, max_terms: int = 4, l_max: int = 8, multiplicities: Sequence[int] = _MULTIPLICITIES
) -> SearchStrategy[Irreps]:
    """Irreps of `min_terms` to `max_terms` terms, in no order and perhaps repeated."""
    from hypothesis import strategies as st

    term = st.tuples(
        st.sampled_from(multiplicities), st.tuples(st.integers(0, l_max), st.sampled_from((1, -1)))
    )
    return st.lists(term, min_size=min_terms, max_size=max_terms).map(Irreps)


def random_plans(
    modes: Sequence[str] = MODES,
    l_max: int = 8,
    max_paths: int = 6,
    layouts: Sequence[str] = LAYOUTS,
    multiplicities: Sequence[int] = _MULTIPLICITIES,
    max_terms: int = 20_000,
) -> SearchStrategy[ProductPlan]:
    """Valid plans with all that makes trouble: empty irreps, zero and prime multiplicities, blocks that no
    path uses, several paths into one block, output blocks in any order, paths without weights, all modes
    mixed.

    No path has more than `max_terms` terms per row, since the reference is slow.
    """
    from hypothesis import strategies as st

    @st.composite
    def draw_plan(draw: Callable[[Any], Any]) -> ProductPlan:
        # mostly few copies in y, so that products with many copies of x stay small enough to be kept
        few = [mul for mul in multiplicities if mul <= 3] or multiplicities
        in1, in2, blocks = (
            list(draw(random_irreps(1, 3, l_max, muls))) for muls in (multiplicities, few, multiplicities)
        )
        for irreps in (in1, in2, blocks):
            if draw(st.integers(0, 30)) == 13:
                irreps.clear()
        paths = []
        for _ in range(draw(st.integers(1, max_paths)) if in1 and in2 else 0):
            path = _draw_path(draw, in1, in2, blocks, modes, l_max, multiplicities)
            if path is not None and ProductPlan(in1, in2, blocks, (path,)).num_terms(path) <= max_terms:
                paths.append(path)
        order = draw(st.permutations(range(len(blocks))))
        out = [blocks[i] for i in order]
        moved = [replace(path, i_out=order.index(path.i_out)) for path in paths]
        return ProductPlan(in1, in2, out, tuple(moved), draw(st.sampled_from(layouts)))

    return draw_plan()


def _draw_path(
    draw: Callable[[Any], Any],
    in1: list[Any],
    in2: list[Any],
    blocks: list[Any],
    modes: Sequence[str],
    l_max: int,
    multiplicities: Sequence[int],
) -> Path | None:
    """A random path, between blocks that suit it or new ones, appended; None if they do not couple."""
    from hypothesis import strategies as st

    mode, i_in1 = draw(st.sampled_from(modes)), draw(st.integers(0, len(in1) - 1))
    mul1, ir1 = in1[i_in1]
    suitable = [i for i, (mul, _) in enumerate(in2) if mul == mul1 or mode in ("uvw", "uvu", "uvv", "uvuv")]
    if not suitable:
        suitable.append(len(in2))
        in2.append(Irreps([(mul1, in2[0].ir)])[0])
    i_in2 = draw(st.sampled_from(suitable))
    mul2, ir2 = in2[i_in2]
    candidates = [ir for ir in ir1 * ir2 if ir.l <= l_max]
    if not candidates:
        return None
    has_weight = mode in ("uvw", "u<vw") or draw(st.booleans())
    free = 1 if mode == "uuw" and not has_weight else draw(st.sampled_from(multiplicities))
    fixed = {"uvu": mul1, "uvv": mul2, "uuu": mul1, "uvuv": mul1 * mul2, "uvu<v": mul1 * (mul1 - 1) // 2}
    block = Irreps([(fixed.get(mode, free), draw(st.sampled_from(candidates)))])[0]
    if block not in blocks or draw(st.booleans()):
        blocks.append(block)
    i_out = draw(st.sampled_from([i for i, other in enumerate(blocks) if other == block]))
    coefficient = draw(st.sampled_from((1.0, 0.5773502691896258, -1.7, 0.0)))
    return Path(i_in1, i_in2, i_out, mode, has_weight, coefficient)


def random_linear_plans(
    multiplicities: Sequence[int] = _MULTIPLICITIES, l_max: int = 8, max_paths: int = 8
) -> SearchStrategy[tuple[ProductPlan, tuple[int, ...]]]:
    """Plans of linear layers (paths uvw, one scalar y), each with the blocks that have a bias.

    Several blocks of an irrep on both sides, blocks that no path uses or reaches, paths given twice, several
    into one block, multiplicities 0.
    """
    from hypothesis import strategies as st

    @st.composite
    def draw_plan(draw: Callable[[Any], Any]) -> tuple[ProductPlan, tuple[int, ...]]:
        # a few irreps that both sides choose from, so that most blocks find a partner
        degrees = st.integers(0, l_max) | st.just(l_max)
        shared = draw(st.lists(st.tuples(degrees, st.sampled_from((1, -1))), max_size=3))
        block = st.tuples(st.sampled_from(multiplicities), st.sampled_from([(0, 1), *shared]))
        in1, out = (list(Irreps(draw(st.lists(block, max_size=4)))) for _ in range(2))
        pairs = [(i, k) for i, k in np.ndindex(len(in1), len(out)) if in1[i].ir == out[k].ir]
        chosen = draw(st.lists(st.sampled_from(pairs), max_size=max_paths)) if pairs else []
        coefficients = st.sampled_from((1.0, 0.5773502691896258, -1.7, 0.0))
        paths = tuple(Path(i, 0, k, "uvw", True, draw(coefficients)) for i, k in chosen)
        plan = ProductPlan(in1, "1x0e", out, paths, draw(st.sampled_from(LAYOUTS)))
        scalars = [k for k, (_, ir) in enumerate(out) if ir.l == 0]
        biased = draw(st.permutations([k for k in scalars if draw(st.booleans())]))
        return plan, tuple(biased)

    return draw_plan()


def random_graphs(
    edges: Sequence[int] = (0, 1, 7, 40), max_nodes: int = 12, min_nodes: int = 1
) -> SearchStrategy[RandomGraph]:
    """Directed graphs with isolated nodes, self loops and repeated edges; not symmetric, not sorted."""
    from hypothesis import strategies as st

    def build(num_edges: int, num_nodes: int, seed: int) -> RandomGraph:
        if num_nodes == 0:
            num_edges = 0
        rng = np.random.default_rng(seed)
        # few distinct ends: the rest of the nodes are isolated, and edges repeat
        ends = rng.permutation(num_nodes)[: 1 + 2 * num_nodes // 3]
        senders, receivers = (rng.choice(ends, num_edges) if num_edges else ends[:0] for _ in range(2))
        return RandomGraph(senders.astype(np.int64), receivers.astype(np.int64), num_nodes)

    seeds = st.integers(0, 2**32 - 1)
    return st.builds(build, st.sampled_from(edges), st.integers(min_nodes, max_nodes), seeds)
