"""How the cost grows: with threads, with the number of edges, with the multiplicity."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import cycle

import torch

from .convolution import ours
from .harness import Row, at_least, at_most
from .problems import DEGREE, Problem, local_edges, mace_medium, model, multiply_adds, operands, random_edges
from .session import Session
from .spherical_harmonics import implementations as harmonics
from .steps import BACKWARD, FORWARD, STEPS, Function

EDGES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
STREAMED = 200_000  # edges whose weights, 1 GB, no cache holds
MULTIPLICITIES = {8: 2, 16: 2, 31: 2, 33: 2, 100: 2, 1: 5, 3: 5}  # and the floor of each


def rows(session: Session) -> Iterator[Row]:
    yield from _memory_of_threads(session)
    for step in (FORWARD, BACKWARD):
        yield from _threads(session, step)
    for step in (FORWARD, BACKWARD):
        if session.wants(f"edges, {step}"):
            yield from _edges(session, f"edges, {step}", step)
    for step in (FORWARD, BACKWARD):
        if session.wants(f"multiplicity, {step}"):
            yield from _multiplicities(session, f"multiplicity, {step}", step)


def _memory_of_threads(session: Session) -> Iterator[Row]:
    """What two threads gain in plain reading, writing and copying of memory: a bound on all else."""
    if (os.cpu_count() or 1) < 2:
        return
    buffer = torch.ones(session.pick(1 << 28, 1 << 22))
    half = len(buffer) // 2
    calls = {
        "read": lambda: torch.sum(buffer),
        "write": lambda: buffer.fill_(1.0),
        "copy": lambda: buffer[:half].copy_(buffer[half:]),
    }
    for verb, call in calls.items():
        name = f"threads, memory, {verb}"
        if session.wants(name):
            samples = session.time(name, {"one": _with_threads(1, call), "two": _with_threads(2, call)})
            torch.set_num_threads(session.threads)
            yield Row(name, "one thread / two", samples.ratio("one", "two"), "x", None, samples.medians())


def _threads(session: Session, step: str) -> Iterator[Row]:
    if (os.cpu_count() or 1) < 2:
        session.say("one core: two threads are not measured")
        return
    nodes = session.pick(200, 20)
    for case in ("harmonics l_max 3", "mace-medium", "nequip-64", "nequip-32-both"):
        name = f"threads, {case}, {step}"
        if session.wants(name):
            call = _case(case, step, nodes)
            samples = session.time(name, {"one": _with_threads(1, call), "two": _with_threads(2, call)})
            torch.set_num_threads(session.threads)
            speedup = samples.ratio("one", "two")
            yield Row(name, "one thread / two", speedup, "x", at_least(1.8), samples.medians())


def _case(case: str, step: str, nodes: int) -> Callable[[], object]:
    if case.startswith("harmonics"):
        return STEPS[step](harmonics(3)["clebsch"], [torch.randn(500 * nodes, 3)])
    problem, edges = model(case), random_edges(nodes, DEGREE * nodes)
    return STEPS[step](ours(problem, edges), operands(problem, edges.num_nodes, edges.count))


def _with_threads(threads: int, call: Callable[[], object]) -> Callable[[], object]:
    def run():
        torch.set_num_threads(threads)
        return call()

    return run


def _edges(session: Session, name: str, step: str) -> Iterator[Row]:
    """Cost per edge of MACE-medium on local graphs, its weights streamed from memory at every size.

    All sizes take their weights from one pool, and a small graph takes another part of it at each call: else
    it would find its weights in a cache, where no model has them.
    """
    problem = model("mace-medium")
    wanted, most = session.pick(EDGES, EDGES[:2]), affordable(problem, step, session.memory)
    sizes = [size for size in wanted if size <= most]
    if len(sizes) < len(wanted):
        session.say(f"{name}: up to {sizes[-1]} edges in {session.memory:g} GiB (--memory)")
    pool = operands(problem, 1, max(sizes))[2]
    calls = {str(size): _stream(problem, step, pool, size) for size in sizes}
    samples = session.time(name, calls).per({key: int(key) for key in calls})
    costs = samples.medians()
    for key, cost in costs.items():
        ratio = samples.ratio(key, str(sizes[0]))
        quantity = f"cost per edge / at {sizes[0]:,} edges"
        yield Row(f"{name}, {int(key):,}", quantity, ratio, detail={"us per edge": 1e6 * cost})
    slowest, quickest = max(costs, key=costs.__getitem__), min(costs, key=costs.__getitem__)
    span = samples.ratio(slowest, quickest)
    detail = {"slowest": int(slowest), "quickest": int(quickest)}
    yield Row(name, "dearest size / cheapest", span, "x", at_most(1.15), detail=detail)


def affordable(problem: Problem, step: str, gib: float) -> int:
    """Edges whose tensors fit: weight and y (with their gradients), and 1/DEGREE of a row of x and out."""
    from .problems import dimension, weight_numel

    per_edge = weight_numel(problem) + dimension(problem.irreps_in2)
    per_node = dimension(problem.irreps_in1) + dimension(problem.irreps_out)
    floats = per_edge + per_node / DEGREE
    return int(gib * 2**30 / (4 * floats * (1 if step == FORWARD else 2)))


def _stream(problem: Problem, step: str, pool: torch.Tensor, size: int) -> Callable[[], object]:
    edges = local_edges(size // DEGREE)
    function: Function = ours(problem, edges)
    x, y, _ = operands(problem, edges.num_nodes, 1)
    y = y.repeat(edges.count, 1)
    parts = pool[: max(size, STREAMED)].split(edges.count)
    calls = cycle([STEPS[step](function, (x, y, part)) for part in parts if len(part) == edges.count])
    return lambda: next(calls)()


def _multiplicities(session: Session, name: str, step: str) -> Iterator[Row]:
    """Equally many weights at each multiplicity, but at most 64,000 edges."""
    channels = session.pick(8_000, 400) * 128
    calls, work = {}, {}
    for multiplicity in (128, *MULTIPLICITIES):
        problem = mace_medium(multiplicity)
        edges = local_edges(min(channels // multiplicity, 64_000) // DEGREE)
        inputs = operands(problem, edges.num_nodes, edges.count)
        calls[str(multiplicity)] = STEPS[step](ours(problem, edges), inputs)
        work[str(multiplicity)] = edges.count * multiply_adds(problem)
    samples = session.time(name, calls).per(work)
    for multiplicity, floor in MULTIPLICITIES.items():
        ratio = samples.ratio(str(multiplicity), "128")
        detail = {"ns per multiply-add": 1e9 * samples.medians()[str(multiplicity)]}
        quantity = "cost per multiply-add / at 128"
        yield Row(f"{name}, {multiplicity}", quantity, ratio, "x", at_most(floor), detail=detail)
