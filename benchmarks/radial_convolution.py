"""Weights that are hidden @ matrix: ops.radial_convolution, which makes them where they are used, against
torch.mm and a convolution with the weights that it wrote, and against e3nn with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .convolution import e3nns, ours
from .harness import Row, Spread, at_least
from .problems import DEGREE, HIDDEN, Edges, Problem, model, operands, random_edges, weight_numel
from .session import Session
from .steps import FORWARD, STEPS, Function, require_same

OPERATORS = (
    "graph_order",
    *(
        noun + step
        for noun in ("radial_convolution", "convolution")
        for step in ("", "_backward", "_double_backward")
    ),
)
MODELS = ("mace-medium", "nequip-M")
FLOOR = 1.0  # of the speed of the two calls, forward
RATE = 1.0  # of the rate of torch.mm
NUM_NODES = 120


def rows(session: Session) -> Iterator[Row]:
    num_nodes = session.pick(NUM_NODES, 8)
    (edges,) = session.put(random_edges(num_nodes, DEGREE * num_nodes))
    for name in MODELS:
        for step in STEPS:
            if session.wants(f"{name}, {step}"):
                yield from _compare(session, f"{name}, {step}", model(name), edges, step)
        if session.wants(f"{name}, rate"):
            yield from _rates(session, f"{name}, rate", model(name), edges)


def with_matrix(convolution: Function) -> Function:
    """(x, y, hidden, matrix) -> out of a convolution with whole weights."""
    return lambda x, y, hidden, matrix: convolution(x, y, torch.mm(hidden, matrix))


def radial(problem: Problem, edges: Edges) -> Function:
    """(x, y, hidden, matrix) -> out, the order of the graph made outside of all timing."""
    from clebsch import Graph, ops
    from clebsch.algebra.plan import ProductPlan

    graph = Graph(edges.senders, edges.receivers, edges.num_nodes)
    plan = ProductPlan.from_instructions(*problem.arguments)
    _ = graph.order
    return lambda *given: ops.radial_convolution(*given, graph, plan)


def _operands(problem: Problem, edges: Edges) -> tuple[torch.Tensor, ...]:
    """x, y, hidden and matrix; weights of the size of 1."""
    x, y, _ = operands(problem, edges.num_nodes, edges.count, shared_weights=True)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(edges.count, HIDDEN, generator=generator) / HIDDEN**0.5
    matrix = torch.randn(HIDDEN, weight_numel(problem), generator=generator)
    return tuple(operand.to(edges.senders.device) for operand in (x, y, hidden, matrix))


def _flops(problem: Problem, edges: Edges) -> int:
    """Of one product of hidden and matrix."""
    return 2 * edges.count * HIDDEN * weight_numel(problem)


def _compare(session: Session, name: str, problem: Problem, edges: Edges, step: str) -> Iterator[Row]:
    functions = {
        "clebsch": radial(problem, edges),
        "two calls": with_matrix(ours(problem, edges)),
        "e3nn": with_matrix(e3nns(problem, edges)),
    }
    inputs = _operands(problem, edges)
    expected = functions["e3nn"](*inputs)
    for key in ("clebsch", "two calls"):
        require_same(name, functions[key](*inputs), expected)
    samples = session.time(name, {key: STEPS[step](function, inputs) for key, function in functions.items()})
    seconds = samples.medians()
    detail = {"edges": edges.count, "us per edge": 1e6 * seconds["clebsch"] / edges.count}
    for peer in ("two calls", "e3nn"):
        floor = session.held(at_least(FLOOR)) if (peer, step) == ("two calls", FORWARD) else None
        yield Row(name, f"{peer} / clebsch", samples.ratio(peer, "clebsch"), "x", floor, seconds, detail)


def _rates(session: Session, name: str, problem: Problem, edges: Edges) -> Iterator[Row]:
    """Flops per second of the matrix part, the time of the convolution alone taken off, over those of
    torch.mm: forward one product, backward three, that of hidden once more among them.
    """
    from clebsch import Graph
    from clebsch.algebra.plan import ProductPlan

    x, y, hidden, matrix = _operands(problem, edges)
    order = Graph(edges.senders, edges.receivers, edges.num_nodes).order
    plan = ProductPlan.from_instructions(*problem.arguments)
    weight, grad = torch.mm(hidden, matrix), x.new_ones(edges.num_nodes, plan.irreps_out.dim)
    given, fixed = (x, y, hidden, matrix), (order, str(plan))
    call = torch.ops.clebsch
    samples = session.time(
        name,
        {
            "mm": lambda: torch.mm(hidden, matrix),
            "forward": lambda: call.radial_convolution(*given, *fixed),
            "of weights": lambda: call.convolution(x, y, weight, *fixed),
            "backward": lambda: call.radial_convolution_backward(grad, *given, *fixed, 15),
            "backward of weights": lambda: call.convolution_backward(grad, x, y, weight, *fixed, 7),
        },
    )
    flops = _flops(problem, edges)
    for step, rest, products in (("forward", "of weights", 1), ("backward", "backward of weights", 3)):
        extra = samples.difference(step, rest)
        rate = Spread.of(
            products * mm / max(whole - part, 1e-9)
            for mm, whole, part in zip(*(samples.seconds[key] for key in ("mm", step, rest)), strict=True)
        )
        detail = {"GFLOP/s": 1e-9 * products * flops / max(extra.median, 1e-9)}
        detail["GFLOP/s of mm"] = 1e-9 * flops / samples.medians()["mm"]
        floor = session.held(at_least(RATE))
        yield Row(f"{name}, {step}", "of the rate of mm", rate, "x", floor, samples.medians(), detail)
