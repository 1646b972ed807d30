"""The product operators with all their derivatives, called in every way, next to what the reference says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import emulation
import interpretation
import sizes
from clebsch import backend, ops, reference  # noqa: F401  ops loads the operators
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.testing import RandomGraph, poison, random_operands, tolerance

__all__ = [
    "PROMISED",
    "RESULTS",
    "EdgeProblem",
    "Problem",
    "RadialProblem",
    "assert_result",
    "broadcast",
    "channelwise_plan",
    "dense_plan",
    "elementwise_plan",
    "instruction_sets",
    "kernel",
    "meets_shared_weights",
    "mixed_plan",
    "moved",
    "outputs_in_lanes",
    "plan_of_mode",
    "plan_of_orders",
    "poisoned_memory",
    "same_bits",
    "views",
    "wide_plan",
]

# What the project promises, relative to the norm of a result.
PROMISED = {torch.float32: 1e-5, torch.float64: 1e-13}
RESULTS = ("out", "grad_x", "grad_y", "grad_weight", "grad_grad", "second_x", "second_y", "second_weight")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors and the kernels' work space are full of NaN, so that what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    backend.native().poison_new_memory(True)
    try:
        assert torch.ones(2).new_empty(3).isnan().all()
        # all of the memory of interpreted kernels is torch's; 500 edges would take them half a minute
        assert interpretation.enabled() or _unwritten_row().isnan().all()
        yield
    finally:
        backend.native().poison_new_memory(False)
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def _unwritten_row() -> Tensor:
    """A row that no kernel writes, of a result that is not torch's memory: above 1 MiB."""
    problem, edge = _problem_without_an_edge()
    grad_weight = problem.backward(0b100)[2]
    assert grad_weight.nbytes > 2**20
    return grad_weight[edge]


@cache
def _problem_without_an_edge() -> tuple[Problem, int]:
    """A convolution whose order lists one edge twice and another, the returned one, never."""
    edges = np.arange(500)
    problem = Problem.random(
        wide_plan(128), RandomGraph(edges % 7, np.zeros_like(edges), 7), dtype=torch.float32
    )
    first = 2 + 3 * (7 + 1)  # after two counts and three tables of nodes, as graph.h says
    order = problem.order.clone()
    edge = int(order[first])
    order[first] = order[first + 1]
    problem.__dict__["order"] = order
    return problem, edge


def instruction_sets() -> Iterator[str]:
    """Every instruction set that this machine runs, each in use while it is the current one; on the emulator
    every order of threads."""
    if emulation.enabled():
        yield from emulation.thread_orders()
        return
    if interpretation.enabled():
        yield "interpreted"
        return
    before = backend.instruction_set()
    try:
        for name in backend.usable_instruction_sets():
            backend.select_instruction_set(name)
            assert backend.instruction_set() == name
            yield name
    finally:
        backend.select_instruction_set(before)


@dataclass(frozen=True)
class Problem:
    """A plan with operands, a cotangent and tangents; with a graph, x and the cotangent belong to nodes."""

    plan: ProductPlan
    operands: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None]
    graph: RandomGraph | None = None

    @classmethod
    def random(
        cls,
        plan: ProductPlan,
        rows: int | RandomGraph,
        *,
        shared: bool = False,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Problem:
        """`rows` rows (`sizes.rows`), or a graph; numbers that both dtypes hold, so that one reference serves
        both."""
        graph = None if isinstance(rows, int) else rows
        count, nodes = (sizes.rows(rows), None) if graph is None else (len(graph.senders), graph.num_nodes)
        draws = [
            random_operands(plan, count, num_nodes=nodes, shared=shared, dtype=np.float32, seed=2 * seed + i)
            for i in range(2)
        ]
        rng = np.random.default_rng(seed)
        grad = rng.standard_normal((count if nodes is None else nodes, plan.irreps_out.dim), np.float32)
        operands, tangents = (tuple(torch.from_numpy(a).to(dtype) for a in arrays) for arrays in draws)
        return cls(plan, operands, torch.from_numpy(grad).to(dtype), tangents, graph)

    @property
    def noun(self) -> str:
        return "tensor_product" if self.graph is None else "convolution"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the results."""
        return RESULTS

    @property
    def dtype(self) -> torch.dtype:
        return self.grad.dtype

    @property
    def given(self) -> tuple[Tensor | None, ...]:
        """Operands, cotangent, tangents."""
        return *self.operands, self.grad, *self.tangents

    def with_given(self, given: Sequence[Tensor | None]) -> Problem:
        """The same with others."""
        count = len(self.operands)
        return replace(
            self, operands=tuple(given[:count]), grad=given[count], tangents=tuple(given[count + 1 :])
        )

    def to(self, dtype: torch.dtype) -> Problem:
        operands, tangents = (
            tuple(None if t is None else t.to(dtype) for t in tensors)
            for tensors in (self.operands, self.tangents)
        )
        other = replace(self, operands=operands, grad=self.grad.to(dtype), tangents=tangents)
        if "expected" in self.__dict__:
            other.__dict__["expected"] = self.expected
        return other

    def part(self, begin: int, end: int) -> Problem:
        """Rows [begin, end) of a problem without a graph whose rows have weights of their own."""
        operands, tangents = (tuple(t[begin:end] for t in all) for all in (self.operands, self.tangents))
        return replace(self, operands=operands, grad=self.grad[begin:end], tangents=tangents)

    @cached_property
    def order(self) -> Tensor:
        return torch.ops.clebsch.graph_order(
            torch.from_numpy(self.graph.senders), torch.from_numpy(self.graph.receivers), self.graph.num_nodes
        )

    @property
    def fixed(self) -> tuple[Any, ...]:
        """What follows the operands in a call, the bits of `needs` aside."""
        backend.register_couplings(self.plan)
        return (str(self.plan),) if self.graph is None else (self.order, str(self.plan))

    def operator(self, suffix: str) -> Any:
        return getattr(torch.ops.clebsch, self.noun + suffix)

    def forward(self) -> Tensor:
        return self.operator("")(*self.operands, *self.fixed)

    def backward(self, needs: int = -1) -> tuple[Tensor, ...]:
        return self.operator("_backward")(self.grad, *self.operands, *self.fixed, needs)

    def double_backward(self, needs: int = -1) -> tuple[Tensor, ...]:
        operator = self.operator("_double_backward")
        return operator(*self.tangents, self.grad, *self.operands, *self.fixed, needs)

    def results(self) -> tuple[Tensor, ...]:
        """All of `names`."""
        return (self.forward(), *self.backward(), *self.double_backward())

    @property
    def ends(self) -> tuple[NDArray, ...]:
        """Those of the edges that the reference is told."""
        return () if self.graph is None else (self.graph.senders, self.graph.receivers)

    @cached_property
    def expected(self) -> list[tuple[NDArray, NDArray, NDArray]]:
        """For each of `names` what the reference says, its magnitude, and the number of its terms."""
        grad, operands, tangents = (
            [None if t is None else t.double().numpy() for t in tensors]
            for tensors in ([self.grad], self.operands, self.tangents)
        )
        found: list[tuple[NDArray, NDArray, NDArray]] = []
        for suffix, given in (
            ("", operands),
            ("_backward", grad + operands),
            ("_double_backward", tangents + grad + operands),
        ):
            function = getattr(reference, self.noun + suffix)
            arguments = (self.plan, *given, *self.ends)
            parts = [
                value if isinstance(value, tuple) else (value,)
                for value in (
                    function(*arguments),
                    reference.magnitude(function, *arguments),
                    reference.term_counts(function, *arguments),
                )
            ]
            found += zip(*parts, strict=True)
        return found

    def check(self, results: tuple[Tensor, ...] | None = None) -> None:
        """Assert that the operators give what the reference gives: each number within the derived tolerance,
        and each result within what is promised for its norm."""
        results = self.results() if results is None else results
        for name, actual, expected in zip(self.names, results, self.expected, strict=True):
            assert_result(f"{name} of {self.plan}", actual, *expected, self.dtype)

    def check_everywhere(self) -> None:
        """`check` under every instruction set and in both dtypes, on poisoned memory."""
        for _ in instruction_sets():
            for dtype in PROMISED:
                with poisoned_memory():
                    self.expected  # noqa: B018  once for all
                    self.to(dtype).check()


@dataclass(frozen=True)
class EdgeProblem(Problem):
    """The same where x and the cotangent belong to edges and y to their receivers."""

    @classmethod
    def random(
        cls,
        plan: ProductPlan,
        rows: RandomGraph,
        *,
        shared: bool = False,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> EdgeProblem:
        """As `Problem`'s."""
        rows, graph = len(rows.senders), rows
        edges = Problem.random(plan, rows, shared=shared, dtype=dtype, seed=seed)
        nodes = Problem.random(plan, graph.num_nodes, dtype=dtype, seed=seed + 1)
        operands, tangents = (
            (of_edges[0], of_nodes[1], of_edges[2])
            for of_edges, of_nodes in ((edges.operands, nodes.operands), (edges.tangents, nodes.tangents))
        )
        return cls(plan, operands, edges.grad, tangents, graph)

    @property
    def noun(self) -> str:
        return "edge_product"

    @property
    def ends(self) -> tuple[NDArray, ...]:
        return (self.graph.receivers,)


@dataclass(frozen=True)
class RadialProblem(Problem):
    """The same with hidden (edges, H) and matrix (H, weight_numel) in place of the weights."""

    @classmethod
    def random(
        cls,
        plan: ProductPlan,
        graph: RandomGraph,
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> RadialProblem:
        """`size` columns of hidden."""
        whole = Problem.random(plan, graph, dtype=dtype, seed=seed)
        rng = np.random.default_rng(seed + 1)
        shapes = (len(graph.senders), size), (size, plan.weight_numel)

        def with_factors(operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            drawn = (rng.standard_normal(shape, np.float32) for shape in shapes)
            return (*operands[:2], *(torch.from_numpy(factor).to(dtype) for factor in drawn))

        operands, tangents = with_factors(whole.operands), with_factors(whole.tangents)
        return cls(plan, operands, whole.grad, tangents, graph)

    @property
    def noun(self) -> str:
        return "radial_convolution"

    @property
    def names(self) -> tuple[str, ...]:
        first = ("out", "grad_x", "grad_y", "grad_hidden", "grad_matrix")
        return (*first, "grad_grad", "second_x", "second_y", "second_hidden", "second_matrix")


def assert_result(
    name: str, actual: Tensor, expected: NDArray, magnitude: NDArray, terms: NDArray, dtype: torch.dtype
) -> None:
    """Assert that each number is within the derived tolerance, and the norm within what is promised."""
    label = f"{name}, {backend.instruction_set()}, {dtype}"
    assert actual.dtype == dtype and actual.is_contiguous(), label
    assert tuple(actual.shape) == expected.shape, f"{label}: {expected.shape}, got {actual.shape}"
    error = np.abs(actual.double().numpy() - expected)
    wrong = ~(error <= tolerance(magnitude, terms, dtype))
    assert not wrong.any(), (
        f"{label}: {wrong.sum()} of {wrong.size} numbers are too far off, the first at "
        f"{tuple(map(int, np.argwhere(wrong)[0]))}: {actual.numpy()[wrong][0]!r} for "
        f"{expected[wrong][0]!r}, magnitude {magnitude[wrong][0]:.3g}"
    )
    # Where terms cancel, the norm of a result says nothing of the roundings in it.
    norm = max(np.linalg.norm(expected), 0.1 * np.linalg.norm(magnitude))
    assert np.linalg.norm(error) <= PROMISED[dtype] * norm, label


def same_bits(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    """Whether two lists of tensors hold the same bits, signs of zeros and kinds of NaN included."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(left, right, strict=True)
    )


def views(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors with the same values that lie otherwise in memory, NaN around them."""
    shape = tuple(tensor.shape)
    wide = poison(torch.empty(*(2 * size + 3 for size in shape), dtype=tensor.dtype))
    yield "part", wide[tuple(slice(1, 1 + size) for size in shape)].copy_(tensor)
    wide = poison(torch.empty_like(wide))
    yield "every other", wide[tuple(slice(1, 1 + 2 * size, 2) for size in shape)].copy_(tensor)
    if len(shape) == 2:
        yield "column by column", tensor.t().contiguous().t()
        tall = poison(torch.empty(3 * shape[0], shape[1], dtype=tensor.dtype))
        yield "every third row", tall[1::3].copy_(tensor)
    if tensor.dtype in PROMISED:  # of 16 bits there are no such complex numbers
        negated = torch.complex(tensor, -tensor).conj().imag
        assert negated.is_neg()
        yield "sign to be flipped when read", negated


def moved(given: Sequence[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """Tensors of which each in its turn is one of its `views`; where kernels are interpreted all of them are
    at a time, each in its turn every one of its own."""
    views_of = [dict(views(tensor)) for tensor in given]
    if interpretation.enabled():
        for turn in range(max(map(len, views_of))):
            names = [list(each)[(i + turn) % len(each)] for i, each in enumerate(views_of)]
            yield ", ".join(names), [each[name] for each, name in zip(views_of, names, strict=True)]
        return
    for i, each in enumerate(views_of):
        for name, view in each.items():
            yield f"{i}: {name}", [*given[:i], view, *given[i + 1 :]]


def broadcast(tensor: Tensor) -> Tensor:
    """One row for all, repeated by a stride of 0."""
    return tensor[:1].expand(tensor.shape) if tensor.dim() == 2 and len(tensor) else tensor


def kernel(plan: ProductPlan, step: str = "derivatives") -> str:
    """What lies in the lanes of a vector, "channels" or "rows", in the step "forward" or "derivatives"."""
    return backend.describe_plan(plan)[step]


def outputs_in_lanes(plan: ProductPlan) -> list[bool]:
    """For each path whether weights meet output channels in the lanes of a vector."""
    return [path["outputs_in_lanes"] for path in backend.describe_plan(plan)["paths"]]


def meets_shared_weights(plan: ProductPlan) -> set[str | None]:
    """What meets weights that all rows share, on any path: "pairs", "x", "y"."""
    paths = backend.describe_plan(plan)["paths"]
    return {meets for path in paths for meets in path["shared_weights_meet"]}


def graph(senders: Sequence[int], receivers: Sequence[int], num_nodes: int) -> RandomGraph:
    return RandomGraph(np.array(senders, np.int64), np.array(receivers, np.int64), num_nodes)


def random_graph(num_nodes: int, num_edges: int, seed: int = 0) -> RandomGraph:
    """With `sizes.edges(num_edges)` edges."""
    rng, num_edges = np.random.default_rng(seed), sizes.edges(num_edges)
    return graph(rng.integers(num_nodes, size=num_edges), rng.integers(num_nodes, size=num_edges), num_nodes)


def dense_plan(mul1: int, mul2: int, mul_out: int, layout: str = "mul_ir") -> ProductPlan:
    """Every pair meets every output channel, two paths into each block; degrees 0 to 2, then 4 and 5.
    `sizes.copies` of each."""
    mul1, mul2, mul_out = map(sizes.copies, (mul1, mul2, mul_out))
    instructions = [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (1, 0, 1, "uvw", True)]
    instructions += [(0, 1, 1, "uvw", True, 0.3), (1, 1, 2, "uvw", True), (2, 1, 3, "uvw", True)]
    return ProductPlan.from_instructions(
        f"{mul1}x0e+{mul1}x1o+1x4e",
        f"{mul2}x0e+{mul2}x1o",
        f"{mul_out}x0e+{mul_out}x1o+{mul_out}x2e+{mul_out}x5o",
        instructions,
        layout=layout,
    )


def channelwise_plan(
    irreps_in1: str, irreps_in2: str, l_max: int, layout: str = "mul_ir", unweighted: int = 0
) -> ProductPlan:
    """Every "uvu" path of the two to degrees up to `l_max` (`sizes.out_degree`) into a block of its own, the
    first `unweighted` of them without weights.

    Blocks are sorted, as layers have them: paths do not meet them in order.
    """
    in1, in2, l_max = Irreps(irreps_in1), Irreps(irreps_in2), sizes.out_degree(l_max)
    out, paths = [], []
    for i, (mul, ir1) in enumerate(in1):
        for j, (_, ir2) in enumerate(in2):
            for ir in ir1 * ir2:
                if ir.l <= l_max:
                    paths.append((i, j, len(out), "uvu", len(out) >= unweighted))
                    out.append((mul, ir))
    sorted_out, place, _ = Irreps(out).sort()
    moved = [(i, j, place[k], *rest) for i, j, k, *rest in paths]
    return ProductPlan.from_instructions(in1, in2, sorted_out, moved, layout=layout)


def wide_plan(mul: int, layout: str = "mul_ir") -> ProductPlan:
    """`mul` scalars and vectors with harmonics, as messages are made; several paths into a block."""
    irreps = f"{mul}x0e+{mul}x1o"
    instructions = [
        (0, 0, 0, "uvu", True),
        (1, 1, 0, "uvu", True),
        (0, 1, 1, "uvu", True),
        (1, 0, 1, "uvu", False),
        (1, 2, 1, "uvu", True),
        (1, 1, 2, "uvu", True),
    ]
    return ProductPlan.from_instructions(
        irreps, "1x0e+1x1o+1x2e", irreps + f"+{mul}x2e", instructions, layout=layout
    )


def elementwise_plan(mul: int, degrees: tuple[int, ...] = (0, 1, 2), layout: str = "mul_ir") -> ProductPlan:
    """ "uuu" paths of degrees one after another and of each with itself, two into each block, some without
    weights, one a vanishing coefficient; a block of x, y and the output each that no path uses."""
    irreps = [(mul, (l, (-1) ** l)) for l in degrees] + [(3, (1, 1))]
    paths = [
        (i, j, k, "uuu", (i + j + k) % 3 != 1, 0.5 + k)
        for i, l1 in enumerate(degrees)
        for j, l2 in enumerate(degrees)
        for k, l3 in enumerate(degrees)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0 and (i <= j or i == k)
    ]
    return ProductPlan.from_instructions(
        irreps, irreps, irreps, [*paths, paths[-1][:5] + (0.0,)], layout=layout
    )


def mixed_plan(mul: int, layout: str = "mul_ir") -> ProductPlan:
    """ "uvu" and "uuu" paths by turns, into the same blocks; one copy of y before and after many."""
    instructions = [
        (0, 1, 1, "uuu", True),
        (0, 0, 0, "uvu", True),
        (1, 1, 0, "uuu", False),
        (1, 3, 1, "uvu", True),
        (1, 1, 2, "uuu", True),
        (1, 3, 1, "uvu", False),
        (0, 1, 1, "uuu", True, 0.3),
    ]
    return ProductPlan.from_instructions(
        f"{mul}x0e+{mul}x1o+3x2e",
        f"1x0e+{mul}x1o+2x1e+1x2e",
        f"{mul}x0e+{mul}x1o+{mul}x2e+1x3o",
        instructions,
        layout=layout,
    )


# Irreps for each mode, with multiplicities that tell all indices apart and exceed the blocks of kernels.
_OF_MODE = {
    "uvw": ("17x1o", "5x1o", "31x2e"),
    "uvu": ("33x1o", "7x1o", "33x2e"),
    "uvv": ("7x1o", "33x1o", "33x2e"),
    "uuw": ("31x1o", "31x1o", "37x2e"),
    "uuu": ("67x1o", "67x1o", "67x2e"),
    "uvuv": ("11x1o", "13x1o", "143x2e"),
    "uvu<v": ("19x1o", "19x1o", "171x1e"),
    "u<vw": ("13x1o", "13x1o", "17x1e"),
}

if interpretation.enabled():
    _OF_MODE |= {
        "uvw": ("2x1o", "3x1o", "9x2e"),
        "uvu": ("3x1o", "2x1o", "3x2e"),
        "uvv": ("2x1o", "3x1o", "3x2e"),
        "uuw": ("3x1o", "3x1o", "9x2e"),
        "uvuv": ("2x1o", "3x1o", "6x2e"),
        "uvu<v": ("4x1o", "4x1o", "6x1e"),
        "u<vw": ("4x1o", "4x1o", "9x1e"),
    }


def plan_of_mode(mode: str, layout: str = "mul_ir") -> ProductPlan:
    """One large path of the mode, with weights; where it can do without, another one into the same block."""
    in1, in2, out = _OF_MODE[mode]
    paths = [(0, 0, 0, mode, True)]
    if mode not in ("uvw", "u<vw", "uuw"):
        paths.append((0, 0, 0, mode, False, 0.3))
    return ProductPlan.from_instructions(in1, in2, out, paths, layout=layout)


def plan_of_orders(mul1: int, mul2: int, mul_out: int, layout: str = "mul_ir") -> ProductPlan:
    """Fully connected, degrees to 3: coupled pairs, x and y each meet shared weights first on some path.
    `sizes.copies` of each."""
    mul1, mul2, mul_out = map(sizes.copies, (mul1, mul2, mul_out))
    degrees = (
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
        (1, 1, 2),
        (2, 1, 1),
        (2, 2, 2),
        (3, 1, 2),
        (0, 3, 3),
        (3, 3, 1),
    )
    parities = "eoeo"
    blocks = ["+".join(f"{mul}x{l}{parities[l]}" for l in range(4)) for mul in (mul1, mul2, mul_out)]
    paths = [(*triple, "uvw", True, 0.5 + i) for i, triple in enumerate(degrees) if sum(triple) % 2 == 0]
    return ProductPlan.from_instructions(*blocks, paths, layout=layout)
