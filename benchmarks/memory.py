"""Memory that operators take beyond their inputs and outputs: the peak of a fresh process over one call."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .harness import Row, Spread, at_most
from .machine import fresh_python
from .session import Session

MEGABYTES = 10
RADIAL_MEGABYTES = 16  # the matrix, packed for each of its products, and private sums of its gradient
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
NOUNS = ("spherical_harmonics", "tensor_product", "convolution", "radial_convolution")
OPERATORS = (
    *(noun + step for noun in NOUNS for step in ("", "_backward", "_double_backward")),
    *("linear", "linear_grad_x", "linear_grad_weight"),
)
DEGREES = list(range(11))  # of harmonics: 121 columns, and 363 in the Jacobian that is never stored
# A row of the product without a graph and of all its gradients is 60 kB.
LARGEST = dict.fromkeys(("tensor_product_backward", "tensor_product_double_backward"), 64_000)
LARGEST |= dict.fromkeys(OPERATORS[-3:], 64_000)  # 16 kB


def rows(session: Session) -> Iterator[Row]:
    if not CLEAR.exists():
        session.say("no /proc/self/clear_refs: peak memory is not measured")
        return
    for operator in OPERATORS:
        for edges in session.pick((8_000, 64_000, 256_000), (4_000,)):
            name = f"{operator}, {edges:,} edges"
            if session.wants(name) and edges <= LARGEST.get(operator, edges):
                command = ("-m", "benchmarks.memory", operator, str(edges))
                peaks = [fresh_python(*command) for _ in range(session.pick(3, 1))]
                session.say(f"{name}: {max(peaks):.1f} MB")
                most = at_most(RADIAL_MEGABYTES if operator.startswith("radial") else MEGABYTES)
                yield Row(name, "beyond inputs and outputs", Spread.of(peaks), "MB", most)


def peak_beyond_outputs(operator: str, num_edges: int) -> float:
    """Megabytes, for MACE-medium on a local graph, and for harmonics of `DEGREES` of as many points as edges.

    A small call goes first, so that libraries and thread pools do not count.
    """
    call = _operator(operator, num_edges)
    _operator(operator, 400)()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # makes the peak start again from here
    before = status("VmRSS")
    outputs = call()
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    written = sum(output.numel() * output.element_size() for output in outputs)
    return (status("VmHWM") - before - written) / 1e6


def _operator(operator: str, num_edges: int) -> Callable[[], object]:
    import torch

    from clebsch import backend

    backend.load()
    if operator.startswith("linear"):
        return _linear(operator, num_edges)
    harmonics = operator.startswith("spherical_harmonics")
    inputs, columns, fixed = _harmonics(num_edges) if harmonics else _product(operator, num_edges)
    function = getattr(torch.ops.clebsch, operator)
    if "backward" not in operator:
        return lambda: function(*inputs, *fixed)
    needs = () if harmonics else (0b11111,)
    grad = torch.ones(len(inputs[0]), columns)
    tangents = [torch.ones_like(tensor) for tensor in inputs] if "double" in operator else []
    return lambda: function(*tangents, grad, *inputs, *fixed, *needs)


def _harmonics(num_points: int) -> tuple[Sequence, int, tuple]:
    """Differentiable operands, columns of the result, and what else the operators take."""
    import torch

    return [torch.randn(num_points, 3)], sum(2 * l + 1 for l in DEGREES), (DEGREES, True, "component")


def _product(operator: str, num_edges: int) -> tuple[Sequence, int, tuple]:
    import torch

    from clebsch import Graph
    from clebsch.algebra.plan import ProductPlan

    from .problems import DEGREE, HIDDEN, local_edges, model, operands

    problem = model("mace-medium")
    plan = ProductPlan.from_instructions(*problem.arguments)
    if operator.startswith("tensor_product"):
        return operands(problem, num_edges, num_edges), plan.irreps_out.dim, (str(plan),)
    edges = local_edges(num_edges // DEGREE)
    order = Graph(edges.senders, edges.receivers, edges.num_nodes).order
    if operator.startswith("radial"):
        x, y, _ = operands(problem, edges.num_nodes, num_edges, shared_weights=True)
        factors = torch.randn(num_edges, HIDDEN), torch.randn(HIDDEN, plan.weight_numel)
        return (x, y, *factors), plan.irreps_out.dim, (order, str(plan))
    return operands(problem, edges.num_nodes, num_edges), plan.irreps_out.dim, (order, str(plan))


def _linear(operator: str, rows: int) -> Callable[[], object]:
    """128 copies of four degrees to the same: a copy of x or of the cotangent would be 8 kB a row."""
    import torch

    from clebsch.algebra.plan import ProductPlan

    irreps = "128x0e+128x1o+128x2e+128x3o"
    plan = ProductPlan.from_instructions(irreps, "1x0e", irreps, [(i, 0, i, "uvw", True) for i in range(4)])
    features, weight = torch.ones(rows, plan.irreps_in1.dim), torch.ones(plan.weight_numel)
    operands = {
        "linear": (features, weight, weight[:0], str(plan), []),
        "linear_grad_x": (features, weight, str(plan)),
        "linear_grad_weight": (features, torch.ones_like(features), str(plan)),
    }
    return lambda: getattr(torch.ops.clebsch, operator)(*operands[operator])


def status(field: str) -> int:
    """Bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(peak_beyond_outputs(sys.argv[1], int(sys.argv[2]))))
