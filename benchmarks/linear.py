"""Mixing the copies of each irrep, weights shared by all rows: o3.Linear of clebsch and of e3nn, and the rate
at which the machine multiplies matrices; and with weights of each species: the fully connected product with
one-hot rows of clebsch, that of e3nn, and clebsch's kernels of products for rows that are anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .harness import Row, at_least
from .limits import SIDE
from .problems import dimension, model
from .session import Session
from .steps import DOUBLE, FORWARD, STEPS, Function, require_same

E3NN, SHARE = 2, 0.70  # of e3nn's speed forward, and of the rate of a matrix product, at least


OPERATORS = ("linear", "linear_grad_x", "linear_grad_weight")


@dataclass(frozen=True)
class Case:
    name: str
    irreps_in: str
    irreps_out: str
    rows: int = 1_000
    is_held: bool = False


EVERY = "128x0e+128x1o+128x2e+128x3o"
NEQUIP_L, NARROW = "128x0e+64x1o+32x2e+32x3o", "16x0e+16x1o+16x2e"


def cases() -> list[Case]:
    return [
        Case("128x l<=3", EVERY, EVERY, is_held=True),
        Case("nequip-L", NEQUIP_L, NEQUIP_L),
        # ten blocks into four: the sorted output of a product, as MACE mixes it
        Case("mace-medium's product", model("mace-medium").irreps_out, EVERY),
        Case("16x l<=2", NARROW, NARROW),
        Case("16x l<=2, 21 rows", NARROW, NARROW, 21),
    ]


SPECIES, OF_SPECIES = 10, "128x0e+128x1o"


def cases_of_species() -> list[Case]:
    return [
        Case(f"{SPECIES} species, 128x l<=1, {count:,} rows", OF_SPECIES, OF_SPECIES, count)
        for count in (108, 2_000)
    ]


def implementations(case: Case, with_compile: bool = False, device: str = "cpu") -> dict[str, Function]:
    """(x, weight) -> out."""
    from e3nn import o3 as e3nn_o3

    from clebsch import o3

    functions: dict[str, Function] = {
        name: package.Linear(case.irreps_in, case.irreps_out, internal_weights=False).to(device)
        for name, package in (("clebsch", o3), ("e3nn", e3nn_o3))
    }
    if with_compile:
        functions["e3nn compiled"] = torch.compile(functions["e3nn"])
    return functions


def rows(session: Session) -> Iterator[Row]:
    for case in cases():
        for step in STEPS:
            name = f"{case.name}, {step}"
            if session.wants(name):
                yield from _compare(session, name, case, step)
    for case in cases_of_species():
        for step in STEPS:
            name = f"{case.name}, {step}"
            if session.wants(name):
                yield from _compare_species(session, name, case, step)
    name = "128x l<=3, rate"
    if session.wants(name):
        yield from _share(session, name, cases()[0])


def _operands(session: Session, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (rows, in), weight (numel,) and a cotangent (rows, out)."""
    generator = torch.Generator().manual_seed(0)
    count = session.pick(case.rows, min(case.rows, 100))
    numel = sum(weights for _, _, weights, _ in _matrices(case))
    shapes = (count, dimension(case.irreps_in)), (numel,), (count, dimension(case.irreps_out))
    return session.put(*(torch.randn(shape, generator=generator) for shape in shapes))


def _matrices(case: Case) -> list[tuple[int, int, int, int]]:
    """Of every path the blocks that it connects, the number of its weights, and of components."""
    from clebsch.algebra.irreps import Irreps

    return [
        (i, k, mul_in * mul_out, ir.dim)
        for i, (mul_in, ir) in enumerate(Irreps(case.irreps_in))
        for k, (mul_out, ir_out) in enumerate(Irreps(case.irreps_out))
        if ir == ir_out
    ]


def _flops(case: Case, count: int) -> int:
    """Of each of forward, grad_x and grad_weight."""
    return 2 * count * sum(weights * dim for _, _, weights, dim in _matrices(case))


def _compare(session: Session, name: str, case: Case, step: str) -> Iterator[Row]:
    # torch.compile of e3nn has no second derivative.
    functions = implementations(case, session.compile and step != DOUBLE, session.device.name)
    x, weight, _ = _operands(session, case)
    require_same(name, functions["clebsch"](x, weight), functions["e3nn"](x, weight))
    samples = session.time(
        name, {key: STEPS[step](function, (x, weight)) for key, function in functions.items()}
    )
    detail = {"rows": len(x)}
    if step == FORWARD:
        detail["GFLOP/s"] = 1e-9 * _flops(case, len(x)) / samples.medians()["clebsch"]
    for peer in functions:
        if peer != "clebsch":
            is_held = case.is_held and (step, peer) == (FORWARD, "e3nn")
            floor = session.held(at_least(E3NN)) if is_held else None
            ratio = samples.ratio(peer, "clebsch")
            yield Row(name, f"{peer} / clebsch", ratio, "x", floor, samples.medians(), detail)


def _compare_species(session: Session, name: str, case: Case, step: str) -> Iterator[Row]:
    """(x, weight) -> out with y one-hot; "product" is what runs a y that is not."""
    from e3nn import o3 as e3nn_o3

    from clebsch import o3, ops

    generator = torch.Generator().manual_seed(0)
    count = session.pick(case.rows, min(case.rows, 100))
    irreps = case.irreps_in, f"{SPECIES}x0e", case.irreps_out
    ours, theirs = session.put(
        *(package.FullyConnectedTensorProduct(*irreps, internal_weights=False) for package in (o3, e3nn_o3))
    )
    y = torch.eye(SPECIES)[torch.randint(0, SPECIES, (count,), generator=generator)]
    x = torch.randn(count, dimension(case.irreps_in), generator=generator)
    x, y, weight = session.put(x, y, torch.randn(ours.weight_numel, generator=generator))
    plan = str(ours.plan)
    functions: dict[str, Function] = {
        "clebsch": lambda x, weight: ours(x, y, weight),
        "e3nn": lambda x, weight: theirs(x, y, weight),
        "product": lambda x, weight: ops.tensor_product(x, y, weight, plan),
    }
    require_same(name, functions["clebsch"](x, weight), functions["e3nn"](x, weight))
    samples = session.time(
        name, {key: STEPS[step](function, (x, weight)) for key, function in functions.items()}
    )
    for peer in ("e3nn", "product"):
        ratio = samples.ratio(peer, "clebsch")
        yield Row(name, f"{peer} / clebsch", ratio, "x", None, samples.medians(), {"rows": count})


def _share(session: Session, name: str, case: Case) -> Iterator[Row]:
    """Flops per second of the three operators over those of torch.mm of large square matrices."""
    from clebsch import o3
    from clebsch.algebra.plan import ProductPlan

    (layer,) = session.put(o3.Linear(case.irreps_in, case.irreps_out, internal_weights=False))
    paths = [(i, 0, k, "uvw", True) for i, k, *_ in _matrices(case)]
    plan = str(ProductPlan.from_instructions(case.irreps_in, "1x0e", case.irreps_out, paths))
    x, weight, grad = _operands(session, case)
    side = session.pick(SIDE, SIDE // 4)
    a, b = session.put(torch.randn(side, side), torch.randn(side, side))
    functions = {
        "matrix product": lambda: torch.mm(a, b),
        "forward": lambda: layer(x, weight),
        "grad_x": lambda: torch.ops.clebsch.linear_grad_x(grad, weight, plan),
        "grad_weight": lambda: torch.ops.clebsch.linear_grad_weight(x, grad, plan),
    }
    samples = session.time(name, functions)
    amounts = dict.fromkeys(functions, _flops(case, len(x))) | {"matrix product": 2 * side**3}
    seconds = samples.medians()
    for operator in ("forward", "grad_x", "grad_weight"):
        ratio = samples.per(amounts).ratio("matrix product", operator)
        detail = {key: 1e-9 * amounts[key] / seconds[key] for key in ("matrix product", operator)}
        quantity = "share of the matrix-product rate"
        yield Row(f"{name}, {operator}", quantity, ratio, "x", session.held(at_least(SHARE)), seconds, detail)
