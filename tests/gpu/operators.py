"""Every operator with all its derivatives, as functions of tensors that lie on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import contraction_calls
import test_gate
import test_silu
import test_spherical_harmonics
from clebsch import reference
from clebsch.algebra.plan import ProductPlan
from clebsch.testing import RandomGraph, relative_error
from linear_calls import LinearProblem, mixing_plan, with_elements
from product_calls import PROMISED, EdgeProblem, Problem, RadialProblem, dense_plan, mixed_plan, wide_plan

__all__ = ["CALLS", "NARROW", "PROBLEMS", "PRODUCTS", "Call", "given_of", "given_to", "random_graph"]


@dataclass(frozen=True)
class Call:
    """run(*given): all results; check: of those on the CPU, by what the reference says."""

    run: Callable[..., Sequence[Tensor]]
    given: tuple[Tensor, ...]
    check: Callable[[tuple[Tensor, ...]], None]


def random_graph(nodes: int, edges: int) -> RandomGraph:
    senders, receivers = np.random.default_rng(edges).integers(nodes, size=(2, edges))
    return RandomGraph(senders, receivers, nodes)


GRAPH = random_graph(9, 70)
# One channel a thread and several, pairs that fan out, modes by turns.
PLANS = {
    "narrow": wide_plan(5),
    "wide": wide_plan(66, "ir_mul"),
    "dense": dense_plan(3, 2, 17),
    "mixed": mixed_plan(7),
}
KINDS: dict[str, Callable[[ProductPlan, torch.dtype], Problem]] = {
    "rows": lambda plan, dtype: Problem.random(plan, 40, dtype=dtype),
    "rows, shared": lambda plan, dtype: Problem.random(plan, 40, shared=True, dtype=dtype),
    "edges": lambda plan, dtype: Problem.random(plan, GRAPH, dtype=dtype),
    "edges, shared": lambda plan, dtype: Problem.random(plan, GRAPH, shared=True, dtype=dtype),
    "receivers": lambda plan, dtype: EdgeProblem.random(plan, GRAPH, dtype=dtype),
    "radial": lambda plan, dtype: RadialProblem.random(plan, GRAPH, 7, dtype=dtype),
}
PRODUCTS: dict[str, Callable[[torch.dtype], Problem]] = {
    f"{kind}, {name}": lambda dtype, make=make, plan=plan: make(plan, dtype)
    for kind, make in KINDS.items()
    for name, plan in PLANS.items()
}
PROBLEMS: dict[str, Callable[[torch.dtype], Any]] = PRODUCTS | {
    "contraction": lambda dtype: contraction_calls.Problem("0e+1o+2e", "0e+1o", 3, dtype=dtype),
    "contraction, columns in work space": lambda dtype: contraction_calls.Problem(
        "0e+1o+2e+3o", "0e+1o", 3, dtype=dtype
    ),
}
LINEAR = mixing_plan("17x0e+33x1o+0x2e", "5x0e+37x1o")
DEGREES = {"low": [0, 1, 2, 3], "high": [9, 4, 4]}
GATES = [(17, 3), (0, 5), (2, 15), (5, 1)]


def given_to(problem: Any, given: Sequence[Tensor]) -> Any:
    """A product or a contraction of other numbers, of the same graph, on their device."""
    if isinstance(problem, contraction_calls.Problem):
        other = replace(problem)
        other.__dict__.update(operands=dict(zip(problem.operands, given, strict=True)), table=problem.table)
        return other
    other = problem.with_given(given)
    if problem.graph is not None:
        orders, device = problem.__dict__.setdefault("orders", {}), given[0].device
        if device not in orders:
            ends = (torch.from_numpy(end).to(device) for end in problem.graph[:2])
            orders[device] = torch.ops.clebsch.graph_order(*ends, problem.graph.num_nodes)
        other.__dict__["order"] = orders[device]
    return other


def given_of(problem: Any) -> tuple[Tensor, ...]:
    contracts = isinstance(problem, contraction_calls.Problem)
    return tuple(problem.operands.values()) if contracts else problem.given


def of_problem(problem: Any) -> Call:
    def check(results: tuple[Tensor, ...]) -> None:
        if isinstance(problem, contraction_calls.Problem):
            contraction_calls.assert_close(results, problem.expected(), problem.bounds())
        else:
            problem.check(results)

    return Call(lambda *given: given_to(problem, given).results(), given_of(problem), check)


def of_linear(problem: LinearProblem) -> Call:
    def run(*given: Tensor) -> Sequence[Tensor]:
        *operands, index = given if problem.index is not None else (*given, None)
        return replace(problem.with_operands(*operands), index=index).results()

    index = () if problem.index is None else (problem.index,)
    return Call(run, (*problem.operands, *index), problem.check)


def of_functions(
    run: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], expected: Sequence[object]
) -> Call:
    def check(results: tuple[Tensor, ...]) -> None:
        for result, exact in zip(results, expected, strict=True):
            assert result.dtype == given[0].dtype and result.shape == exact.shape
            assert relative_error(result, exact) <= PROMISED[result.dtype]

    return Call(run, tuple(given), check)


def of_harmonics(ls: list[int], dtype: torch.dtype) -> Call:
    given = test_spherical_harmonics.random_problem(ls, 130, dtype)
    points, grad, tangent = (each.double().numpy() for each in given)
    fixed = True, "component"
    expected = (
        reference.spherical_harmonics(ls, points, *fixed),
        reference.spherical_harmonics_backward(ls, grad, points, *fixed),
        *reference.spherical_harmonics_double_backward(ls, tangent, grad, points, *fixed),
    )
    return of_functions(lambda *t: test_spherical_harmonics.results(*t, ls, *fixed), given, expected)


def of_gate(dtype: torch.dtype) -> Call:
    given = test_gate.operands(GATES, 61, 6, dtype)
    s, a, x, g = (each.double().numpy() for each in given)
    expected = reference.gate(s, a, x, GATES), *reference.gate_backward(g, a, x, GATES)
    return of_functions(lambda *t: test_gate.results(GATES, *t), given, expected)


def of_silu(dtype: torch.dtype) -> Call:
    x = test_silu.numbers(dtype)
    given = x, *torch.randn(2, len(x), dtype=dtype)
    exact, grad, tangent = (each.double().numpy() for each in given)
    expected = (
        reference.silu(exact),
        reference.silu_backward(grad, exact),
        *reference.silu_double_backward(tangent, grad, exact),
    )
    return of_functions(test_silu.results, given, expected)


CALLS: dict[str, Callable[[torch.dtype], Call]] = {
    **{name: lambda dtype, make=make: of_problem(make(dtype)) for name, make in PROBLEMS.items()},
    **{f"harmonics {name}": lambda dtype, ls=ls: of_harmonics(ls, dtype) for name, ls in DEGREES.items()},
    "linear": lambda dtype: of_linear(LinearProblem.random(LINEAR, 61, (0,), dtype=dtype)),
    "linear, elements": lambda dtype: of_linear(
        LinearProblem.random(with_elements(LINEAR, 5), 61, (0,), present=3, dtype=dtype)
    ),
    "gate": of_gate,
    "silu": of_silu,
}
# Those of numbers of 16 bits too.
NARROW = [name for name in CALLS if not name.startswith(("radial", "linear", "gate", "silu"))]
