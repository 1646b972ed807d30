"""What a user waits for around the kernels: import, constructing a product, a call on a small molecule."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .convolution import e3nns, ours
from .harness import Row, Spread, at_least, at_most
from .machine import fresh_python
from .problems import MODELS, Edges, Problem, channelwise, model, operands, random_edges
from .session import Session
from .steps import BACKWARD, FORWARD, STEPS, require_same

IMPORT_MS, CONSTRUCTION_MS, OVERHEAD_US, SMALL_CALL = 150, 2, 60, 10
WEIGHTS = {"shared_weights": False, "internal_weights": False}

# Run in a fresh process with torch already imported: milliseconds to import a package's layers, then to
# construct each product for the first time.
FRESH = """
import json, sys, time
import torch
package, problems = json.loads(sys.argv[1])
start = time.perf_counter()
exec(f"from {package} import o3, nn")
times = [time.perf_counter() - start]
for *irreps, paths in problems:
    paths = [tuple(path) for path in paths]  # lists in JSON; e3nn wants tuples
    start = time.perf_counter()
    o3.TensorProduct(*irreps, paths, shared_weights=False, internal_weights=False)
    times.append(time.perf_counter() - start)
print(json.dumps([1e3 * t for t in times]))
"""


def rows(session: Session) -> Iterator[Row]:
    if session.wants("import") or session.wants("construction, first"):
        yield from _fresh(session)
    for name in session.pick(tuple(MODELS), ("mace-medium",)):
        if session.wants(f"construction, {name}"):
            yield from _construction(session, f"construction, {name}", model(name))
    small = channelwise("16x l<=2", "small", "16x0e+16x1o+16x2e", "1x0e+1x1o+1x2e", "0e+1o+2e")
    for problem in (small, model("mace-medium"), model("nequip-64")):
        for step in (FORWARD, BACKWARD):
            name = f"21 atoms, 300 edges, {problem.name}, {step}"
            if session.wants(name):
                yield from _small_call(session, name, problem, step)


def _fresh(session: Session) -> Iterator[Row]:
    """One process per problem and package; the problem that comes first meets nothing cached."""
    names = session.pick(tuple(MODELS), ("mace-medium",))
    times: dict[str, list[list[float]]] = {"clebsch": [], "e3nn": []}
    for turn in range(len(names)):
        problems = [model(name).arguments for name in names[turn:] + names[:turn]]
        for package, values in times.items():
            values.append(fresh_python("-c", FRESH, json.dumps([package, problems])))
            session.say(f"{package} in a fresh process: {values[-1][0]:.0f} ms, {values[-1][1]:.2f} ms")
    cases = ((0, "import", IMPORT_MS), (1, "construction, first in a process", CONSTRUCTION_MS))
    for place, name, floor in cases:
        both = {package: Spread.of(value[place] for value in values) for package, values in times.items()}
        quantity = "over import torch" if place == 0 else "TensorProduct"
        seconds = {package: 1e-3 * spread.median for package, spread in both.items()}
        yield Row(name, quantity, both["clebsch"], "ms", at_most(floor), seconds)


def _construction(session: Session, name: str, problem: Problem) -> Iterator[Row]:
    from e3nn import o3 as e3nn_o3

    from clebsch import o3

    makers = {"clebsch": o3.TensorProduct, "e3nn": e3nn_o3.TensorProduct}
    calls = {key: lambda make=make: make(*problem.arguments, **WEIGHTS) for key, make in makers.items()}
    samples = session.time(name, calls)
    floor = at_most(CONSTRUCTION_MS)
    yield Row(name, "TensorProduct", samples.spread("clebsch", 1e3), "ms", floor, samples.medians())


def _small_call(session: Session, name: str, problem: Problem, step: str) -> Iterator[Row]:
    """A whole call against e3nn's, and what of it is not the kernel: the same call on a graph of one edge."""
    calls = {}
    for key, make, edges in (
        ("clebsch", ours, random_edges(21, 300)),
        ("e3nn", e3nns, random_edges(21, 300)),
        ("one edge", ours, random_edges(1, 1)),
    ):
        calls[key] = _call(make(problem, edges), problem, edges, step)
    functions = [make(problem, random_edges(21, 300)) for make in (ours, e3nns)]
    require_same(name, *(function(*operands(problem, 21, 300)) for function in functions))
    samples = session.time(name, calls)
    seconds = samples.medians()
    yield Row(name, "e3nn / clebsch", samples.ratio("e3nn", "clebsch"), "x", at_least(SMALL_CALL), seconds)
    # Held for one call; a backward is a second one, with autograd's bookkeeping between them.
    floor = at_most(OVERHEAD_US) if step == FORWARD else None
    yield Row(name, "time besides the kernel", samples.spread("one edge", 1e6), "us", floor, seconds)


def _call(function, problem: Problem, edges: Edges, step: str):
    return STEPS[step](function, operands(problem, edges.num_nodes, edges.count))
