"""Spherical harmonics of 100,000 points against e3nn, sphericart and writing the output once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .harness import Floor, Row, at_least, at_most
from .machine import held
from .session import Session
from .steps import BACKWARD, DOUBLE, FORWARD, STEPS, Function, require_same

DEGREES = (1, 2, 3, 4, 6, 10)
SPHERICART = "sphericart"


def implementations(l_max: int) -> dict[str, Function]:
    """All degrees up to l_max at once; sphericart orders components and axes its own way, at equal cost."""
    from e3nn import o3 as e3nn_o3
    from sphericart.torch import SphericalHarmonics as Sphericart

    from clebsch import o3

    arguments = {"irreps_out": list(range(l_max + 1)), "normalize": True, "normalization": "component"}
    return {
        "clebsch": o3.SphericalHarmonics(**arguments),
        "e3nn": e3nn_o3.SphericalHarmonics(**arguments),
        SPHERICART: Sphericart(l_max),
    }


def rows(session: Session) -> Iterator[Row]:
    points = torch.randn(session.pick(100_000, 10_000), 3, generator=torch.Generator().manual_seed(0))
    for l_max in session.pick(DEGREES, (1, 3)):
        for step in STEPS:
            name = f"l_max {l_max}, {step}"
            if session.wants(name):
                yield from _compare(session, name, l_max, step, points)


def _compare(session: Session, name: str, l_max: int, step: str, points: torch.Tensor) -> Iterator[Row]:
    functions = implementations(l_max)
    require_same(name, functions["clebsch"](points), functions["e3nn"](points))
    calls = {key: STEPS[step](function, [points]) for key, function in functions.items()}
    if step == FORWARD:
        calls |= _writers(len(points), (l_max + 1) ** 2)
    samples = session.time(name, calls)
    for numerator, denominator, floor in _floors(l_max, step):
        ratio = samples.ratio(numerator, denominator)
        quantity = f"{numerator} / {denominator}"
        yield Row(name, quantity, ratio, floor=held(floor), seconds=samples.medians())


def _writers(rows: int, columns: int) -> dict[str, Callable[[], object]]:
    """The output written once: into memory that is there, and into a new tensor, as an operator has to."""
    out = torch.ones(rows, columns)
    return {"write": lambda: out.fill_(1.0), "write new": lambda: torch.ones(rows, columns)}


def _floors(l_max: int, step: str) -> list[tuple[str, str, Floor | None]]:
    """(numerator, denominator, floor) of each row; sphericart is held to a forward floor up to l_max 6."""
    forward = at_least(2) if l_max <= 6 else None
    return {
        FORWARD: [
            ("clebsch", "write", at_most(1.5)),
            ("clebsch", "write new", at_most(1.5)),
            ("e3nn", "clebsch", at_least(20)),
            (SPHERICART, "clebsch", forward),
        ],
        BACKWARD: [("e3nn", "clebsch", at_least(20)), (SPHERICART, "clebsch", at_least(15))],
        DOUBLE: [("e3nn", "clebsch", None), (SPHERICART, "clebsch", at_least(20))],
    }[step]
