"""The product over rows, no graph: o3.TensorProduct of clebsch and of e3nn, weights per row or shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .harness import Floor, Row, at_least
from .peers import e3nn_layer
from .problems import MODELS, Problem, fully_connected, model, operands
from .session import Session
from .steps import BACKWARD, DOUBLE, FORWARD, STEPS, Function, require_same

OPERATORS = ("tensor_product", "tensor_product_backward", "tensor_product_double_backward")
FLOORS = {FORWARD: at_least(10), BACKWARD: at_least(15)}

# The other modes: products of each channel with its own (uuu), a few paths, where memory decides, and all of
# them, where arithmetic does; and scalar outputs (uvw).
ELEMENTWISE = Problem(
    "elementwise uuu",
    "other",
    "64x0e+64x1o+64x2e",
    "64x0e+64x1o+64x2e",
    "64x0e+64x1o+64x2e",
    ((0, 0, 0, "uuu", True), (0, 1, 1, "uuu", True), (1, 1, 0, "uuu", True), (1, 1, 2, "uuu", True)),
)
DEGREES = range(4)
ELEMENTWISE_ALL = Problem(
    "elementwise uuu, all paths",
    "other",
    *(3 * ("64x0e+64x1o+64x2e+64x3o",)),
    tuple(
        (l1, l2, l3, "uuu", True)
        for l1, l2, l3 in product(DEGREES, repeat=3)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    ),
)
SCALAR_OUT = Problem(
    "scalar output uvw",
    "other",
    "16x0e+16x1o+16x2e",
    "8x0e+8x1o+8x2e",
    "16x0e",
    ((0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (2, 2, 0, "uvw", True)),
)


@dataclass(frozen=True)
class Case:
    problem: Problem
    rows: int
    shared_weights: bool = False
    floor: float | None = None  # forward and with backward; those of FLOORS for the products of models

    def held_to(self, step: str) -> Floor | None:
        if self.problem.family != "other":
            return FLOORS.get(step)
        return at_least(self.floor) if self.floor and step != DOUBLE else None


def cases() -> list[Case]:
    edge, wide = "1x0e+1x1o+1x2e", "16x0e+16x1o+16x2e"
    tall, diffdock = "64x0e+32x1o+16x2e", "48x0e+48x0o+10x1o+10x1e"
    # Every input channel meets every other in every output channel, weights shared as in a layer of a network
    # or for every edge as in DiffDock's.
    return [
        *(Case(model(name), 8_000) for name in MODELS),
        Case(ELEMENTWISE, 8_000, floor=15),
        Case(ELEMENTWISE_ALL, 8_000, floor=15),
        Case(SCALAR_OUT, 8_000),
        Case(fully_connected("fully connected squared", wide, wide, wide), 1_000, True, floor=5),
        Case(fully_connected("fully connected edge", tall, edge, tall), 1_000, True, floor=8),
        Case(fully_connected("diffdock", diffdock, edge, diffdock), 2_000, floor=4),
    ]


def ours(problem: Problem, shared_weights: bool, device: str, layout: str = "mul_ir") -> Function:
    from clebsch import o3

    weights = {"shared_weights": shared_weights, "internal_weights": False}
    return o3.TensorProduct(*problem.arguments, **weights, layout=layout).to(device)


def implementations(
    problem: Problem, with_compile: bool = False, shared_weights: bool = False, device: str = "cpu"
) -> dict[str, Function]:
    functions: dict[str, Function] = {
        "clebsch": ours(problem, shared_weights, device),
        "e3nn": e3nn_layer(problem, shared_weights, device),
    }
    if with_compile:
        import torch

        functions["e3nn compiled"] = torch.compile(functions["e3nn"])
    return functions


def rows(session: Session) -> Iterator[Row]:
    for case in cases():
        for step in STEPS:
            name = f"{case.problem.name}, {step}"
            if session.wants(name):
                yield from _compare(session, name, case, step)


def _compare(session: Session, name: str, case: Case, step: str) -> Iterator[Row]:
    # torch.compile of e3nn has no second derivative.
    functions = implementations(
        case.problem, session.compile and step != DOUBLE, case.shared_weights, session.device.name
    )
    count = session.pick(case.rows, 400)
    inputs = session.put(*operands(case.problem, count, count, case.shared_weights))
    require_same(name, functions["clebsch"](*inputs), functions["e3nn"](*inputs))
    samples = session.time(name, {key: STEPS[step](function, inputs) for key, function in functions.items()})
    for peer in functions:
        if peer != "clebsch":
            floor = case.held_to(step) if peer == "e3nn" else None
            ratio = samples.ratio(peer, "clebsch")
            yield Row(name, f"{peer} / clebsch", ratio, floor=session.held(floor), seconds=samples.medians())
