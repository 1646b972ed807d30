"""Gather - product - scatter with per-edge weights: nn.TensorProductConv against e3nn's TensorProduct on
gathered rows and index_add, and against reading the operands from memory once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch

from . import problems
from .harness import Floor, Row, Spread, at_least
from .limits import quickest_reader
from .peers import e3nn_layer
from .problems import Edges, Problem, model, operands
from .session import Session
from .steps import BACKWARD, DOUBLE, FORWARD, STEPS, Function, require_same

OPERATORS = ("graph_order", "convolution", "convolution_backward", "convolution_double_backward")

# At least this many times e3nn's speed; AVX2 has a floor for one case only.
FLOORS = {
    "MACE": {FORWARD: 50, BACKWARD: 40, DOUBLE: 25},
    "NequIP": {FORWARD: 30, BACKWARD: 25, DOUBLE: 20},
}
MACE_FORWARD_AVX2 = 20
READ_SHARE = 0.60


def ours(problem: Problem, edges: Edges, layout: str = "mul_ir") -> Function:
    """(x, y, weight) -> out on one graph, whose orders are made here, outside of all timing."""
    from clebsch import Graph, nn

    graph = Graph(edges.senders, edges.receivers, edges.num_nodes)
    layer = nn.TensorProductConv(*problem.arguments, layout=layout)
    _ = graph.order
    return lambda x, y, weight: layer(x, y, weight, graph)


def e3nns(problem: Problem, edges: Edges) -> Function:
    """What models do with e3nn."""
    layer = e3nn_layer(problem, False, str(edges.senders.device))
    dim, senders, receivers = layer.irreps_out.dim, edges.senders, edges.receivers

    def convolution(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        messages = layer(x[senders], y, weight)
        return x.new_zeros(edges.num_nodes, dim).index_add(0, receivers, messages)

    return convolution


def rows(session: Session) -> Iterator[Row]:
    num_nodes = session.pick(200, 20)
    graphs = {
        "": problems.random_edges(num_nodes, problems.DEGREE * num_nodes),
        ", local": problems.local_edges(num_nodes),
    }
    graphs = dict(zip(graphs, session.put(*graphs.values()), strict=True))
    for name in session.pick(tuple(problems.MODELS), ("mace-medium", "nequip-32-both")):
        for suffix, edges in graphs.items():
            for step in STEPS:
                case = f"{name}{suffix}, {step}"
                # The floors are those of random senders; one local graph shows that they matter little.
                if session.wants(case) and (not suffix or name == "mace-medium"):
                    yield from _compare(session, case, model(name), edges, step, bool(suffix))
    case = "mace-medium, bytes read"
    if session.wants(case):
        yield from _bandwidth(session, case, model("mace-medium"), graphs[""])


def _compare(
    session: Session, name: str, problem: Problem, edges: Edges, step: str, informative: bool
) -> Iterator[Row]:
    inputs = session.put(*operands(problem, edges.num_nodes, edges.count))
    functions = {"clebsch": ours(problem, edges), "e3nn": e3nns(problem, edges)}
    require_same(name, functions["clebsch"](*inputs), functions["e3nn"](*inputs))
    functions["clebsch ir_mul"] = ours(problem, edges, "ir_mul")
    if session.compile and step != DOUBLE:  # torch.compile of e3nn has no second derivative
        functions["e3nn compiled"] = torch.compile(functions["e3nn"])
    samples = session.time(name, {key: STEPS[step](function, inputs) for key, function in functions.items()})
    seconds = samples.medians()["clebsch"]
    detail = {"edges": edges.count, "us per edge": 1e6 * seconds / edges.count}
    if step == FORWARD:
        detail["GFLOP/s"] = 2e-9 * edges.count * problems.multiply_adds(problem) / seconds
    for peer in functions:
        if not peer.startswith("clebsch"):
            floor = None if informative or peer != "e3nn" else _floor(session, problem.family, step)
            ratio = samples.ratio(peer, "clebsch")
            yield Row(name, f"{peer} / clebsch", ratio, "x", floor, samples.medians(), detail)


def _floor(session: Session, family: str, step: str) -> Floor | None:
    floor = session.held(at_least(FLOORS[family][step]))
    if (family, step) == ("MACE", FORWARD):
        floor = floor or session.held(at_least(MACE_FORWARD_AVX2), "avx2")
    return floor


def _bandwidth(session: Session, name: str, problem: Problem, edges: Edges) -> Iterator[Row]:
    """x, y, w and out of one forward, against reading as many bytes in the quickest plain way.

    Once with the operands where the call before left them (a large cache may hold them), once with weights
    that come from memory: both then go through a pool that no cache holds.
    """
    function, read = ours(problem, edges), quickest_reader(session)
    x, y, weight = session.put(*operands(problem, edges.num_nodes, edges.count))
    floats = x.numel() + y.numel() + weight.numel() + function(x, y, weight).numel()
    (pool,) = session.put(torch.ones(session.pick(24, 2) * edges.count, weight.shape[1]))
    weights = rotating(pool.split(edges.count))
    reads = rotating(pool.flatten().split(floats)[:-1])
    (buffer,) = session.put(torch.ones(floats))
    places = {
        "from cache where it fits": (lambda: function(x, y, weight), lambda: read(buffer)),
        "from memory": (lambda: function(x, y, weights()), lambda: read(reads())),
    }
    if session.device.is_cold:
        del places["from cache where it fits"]
    for place, (call, reader) in places.items():
        samples = session.time(f"{name} {place}", {"clebsch": call, "read": reader})
        median = samples.medians()
        detail = {
            "bytes": 4 * floats,
            "GB/s": 4e-9 * floats / median["clebsch"],
            "GB/s of reading": 4e-9 * floats / median["read"],
            "GFLOP/s": 2e-9 * edges.count * problems.multiply_adds(problem) / median["clebsch"],
        }
        share = samples.ratio("read", "clebsch")
        floor = session.held(at_least(READ_SHARE), isa="")
        yield Row(f"{name} {place}", "share of the read rate", share, "x", floor, median, detail)
        yield Row(f"{name} {place}", "arithmetic", _scaled(detail["GFLOP/s"], share), "GFLOP/s", None, median)


def _scaled(middle: float, like: Spread) -> Spread:
    """`middle` with the relative spread of another number of the same rounds."""
    return Spread(middle, middle * like.low / like.median, middle * like.high / like.median, like.count)


def rotating(parts: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Each call gives the next part, round and round."""
    turn = count()
    return lambda: parts[next(turn) % len(parts)]
