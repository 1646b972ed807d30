"""Memory that operators take beyond their inputs and outputs: the peak of a fresh process over one call."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from .harness import Row, Spread, at_most
from .machine import fresh_python
from .session import Session

MEGABYTES = 10
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OPERATORS = ("convolution", "convolution_backward", "convolution_double_backward", "tensor_product")


def rows(session: Session) -> Iterator[Row]:
    if not CLEAR.exists():
        session.say("no /proc/self/clear_refs: peak memory is not measured")
        return
    for operator in OPERATORS:
        for edges in session.pick((8_000, 64_000, 256_000), (4_000,)):
            name = f"{operator}, {edges:,} edges"
            if session.wants(name):
                command = ("-m", "benchmarks.memory", operator, str(edges))
                peaks = [fresh_python(*command) for _ in range(session.pick(3, 1))]
                session.say(f"{name}: {max(peaks):.1f} MB")
                yield Row(name, "beyond inputs and outputs", Spread.of(peaks), "MB", at_most(MEGABYTES))


def peak_beyond_outputs(operator: str, num_edges: int) -> float:
    """Megabytes, for MACE-medium on a local graph.

    A small call goes first, so that libraries and thread pools do not count.
    """
    call = _operator(operator, num_edges)
    _operator(operator, 400)()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # makes the peak start again from here
    before = _status("VmRSS")
    outputs = call()
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    written = sum(output.numel() * output.element_size() for output in outputs)
    return (_status("VmHWM") - before - written) / 1e6


def _operator(operator: str, num_edges: int):
    import torch

    from clebsch import Graph
    from clebsch.algebra.plan import ProductPlan

    from .problems import DEGREE, local_edges, model, operands

    problem = model("mace-medium")
    plan = str(ProductPlan.from_instructions(*problem.arguments))
    edges = local_edges(num_edges // DEGREE)
    rows_x = num_edges if operator == "tensor_product" else edges.num_nodes
    inputs = operands(problem, rows_x, num_edges)
    function = getattr(torch.ops.clebsch, operator)
    if operator == "tensor_product":
        return lambda: function(*inputs, plan)
    order = Graph(edges.senders, edges.receivers, edges.num_nodes).order
    grad = torch.ones(edges.num_nodes, ProductPlan.parse(plan).irreps_out.dim)
    if operator == "convolution":
        return lambda: function(*inputs, order, plan)
    if operator == "convolution_backward":
        return lambda: function(grad, *inputs, order, plan, 0b111)
    tangents = [torch.ones_like(tensor) for tensor in inputs]
    return lambda: function(*tangents, grad, *inputs, order, plan, 0b1111)


def _status(field: str) -> int:
    """Bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(peak_beyond_outputs(sys.argv[1], int(sys.argv[2]))))
