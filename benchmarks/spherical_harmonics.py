"""Spherical harmonics of 100,000 points against e3nn, sphericart and writing the output once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .harness import Floor, Row, at_least, at_most
from .peers import SPHERICART, Call, unchanged
from .session import Session
from .steps import BACKWARD, DOUBLE, FORWARD, STEPS, require_same

OPERATORS = tuple("spherical_harmonics" + step for step in ("", "_backward", "_double_backward"))
DEGREES = (1, 2, 3, 4, 6, 10)


def implementations(l_max: int, device: str = "cpu") -> dict[str, Call]:
    """All degrees up to l_max at once; sphericart, where it is installed, orders axes its own way."""
    from e3nn import o3 as e3nn_o3

    from clebsch import o3

    arguments = {"irreps_out": list(range(l_max + 1)), "normalize": True, "normalization": "component"}
    functions = {
        name: Call(package.SphericalHarmonics(**arguments).to(device), (unchanged,))
        for name, package in (("clebsch", o3), ("e3nn", e3nn_o3))
    }
    if not SPHERICART.absent:
        functions[SPHERICART.name] = SPHERICART.spherical_harmonics(l_max, device)
    return functions


def rows(session: Session) -> Iterator[Row]:
    if SPHERICART.absent:
        session.note(SPHERICART.absent)
    points = torch.randn(session.pick(100_000, 10_000), 3, generator=torch.Generator().manual_seed(0))
    (points,) = session.put(points)
    for l_max in session.pick(DEGREES, (1, 3)):
        for step in STEPS:
            name = f"l_max {l_max}, {step}"
            if session.wants(name):
                yield from _compare(session, name, l_max, step, points)


def _compare(session: Session, name: str, l_max: int, step: str, points: torch.Tensor) -> Iterator[Row]:
    functions = implementations(l_max, session.device.name)
    ours = functions["clebsch"](points)
    for key in functions.keys() - {"clebsch"}:
        require_same(f"{name}, {key}", ours, functions[key](points))
    calls = {key: STEPS[step](call.function, call.operands((points,))) for key, call in functions.items()}
    if step == FORWARD:
        calls |= _writers(ours)
    samples = session.time(name, calls)
    for numerator, denominator, floor in _floors(l_max, step):
        if numerator not in calls:
            continue
        ratio = samples.ratio(numerator, denominator)
        quantity = f"{numerator} / {denominator}"
        yield Row(name, quantity, ratio, floor=session.held(floor), seconds=samples.medians())


def _writers(like: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The output written once: into memory that is there, and into a new tensor, as an operator has to."""
    out = torch.ones_like(like)
    return {"write": lambda: out.fill_(1.0), "write new": lambda: torch.ones_like(like)}


def _floors(l_max: int, step: str) -> list[tuple[str, str, Floor | None]]:
    """(numerator, denominator, floor) of each row; sphericart is held to a forward floor up to l_max 6."""
    forward = at_least(2) if l_max <= 6 else None
    return {
        FORWARD: [
            ("clebsch", "write", at_most(1.5)),
            ("clebsch", "write new", at_most(1.5)),
            ("e3nn", "clebsch", at_least(20)),
            (SPHERICART.name, "clebsch", forward),
        ],
        BACKWARD: [("e3nn", "clebsch", at_least(20)), (SPHERICART.name, "clebsch", at_least(15))],
        DOUBLE: [("e3nn", "clebsch", None), (SPHERICART.name, "clebsch", at_least(20))],
    }[step]
