"""Layers in the place of e3nn's: time of a call, time to construct them, memory of the largest."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import torch

from .harness import Row, Spread, at_least
from .machine import fresh_python
from .memory import CLEAR, status
from .problems import fully_connected, operands
from .session import Session
from .steps import BACKWARD, DOUBLE, FORWARD, STEPS, require_same

ELEMENTWISE, CONSTRUCTION, MEMORY, LAYER = 15, 20, 5, 3
ROWS = 1_000
WIDE, NODE = "64x0e+64x1o+64x2e+64x3o", "64x0e+64x1o+64x2e"
SMALL, EDGE = "16x0e+16x1o+16x2e", "1x0e+1x1o+1x2e"
DIFFDOCK = "48x0e+48x0o+10x1o+10x1e"
SILU, SIGMOID = torch.nn.functional.silu, torch.sigmoid


# From the modules o3 and nn of a package to a layer.
Make = Callable[[ModuleType, ModuleType], torch.nn.Module]
TIMED: dict[str, tuple[float, Make]] = {
    "ElementwiseTensorProduct": (ELEMENTWISE, lambda o3, nn: o3.ElementwiseTensorProduct(WIDE, WIDE)),
    "TensorSquare, no weights": (LAYER, lambda o3, nn: o3.TensorSquare(SMALL)),
    "TensorSquare into 16x0e+16x1o+16x2e": (LAYER, lambda o3, nn: o3.TensorSquare(SMALL, SMALL)),
    "Norm": (LAYER, lambda o3, nn: o3.Norm(WIDE)),
    "Gate": (LAYER, lambda o3, nn: nn.Gate("64x0e", [SILU], "192x0e", [SIGMOID], "64x1o+64x2e+64x3o")),
    "Gate of NequIP-L": (
        LAYER,
        lambda o3, nn: nn.Gate("128x0e", [SILU], "128x0e", [SILU], "64x1o+32x2e+32x3o"),
    ),
}
CONSTRUCTED: dict[str, Make] = {name: make for name, (_, make) in TIMED.items()} | {
    "FullyConnectedTensorProduct": lambda o3, nn: o3.FullyConnectedTensorProduct(NODE, EDGE, NODE),
    "FullTensorProduct": lambda o3, nn: o3.FullTensorProduct(SMALL, EDGE),
    "Linear": lambda o3, nn: o3.Linear(WIDE, WIDE),
    "SphericalHarmonics": lambda o3, nn: o3.SphericalHarmonics([0, 1, 2, 3], True),
    "ReducedTensorProducts": lambda o3, nn: o3.ReducedTensorProducts("ij=ji", i="1x0e+1x1o+1x2e"),
    "NormActivation": lambda o3, nn: nn.NormActivation(NODE, SIGMOID),
    "BatchNorm": lambda o3, nn: nn.BatchNorm(NODE),
    "FullyConnectedNet": lambda o3, nn: nn.FullyConnectedNet([8, 64, 64, 64], SILU),
}


def rows(session: Session) -> Iterator[Row]:
    packages = _packages()
    for layer, (floor, make) in TIMED.items():
        for step in STEPS:
            if session.wants(f"{layer}, {step}"):
                yield from _timed(session, f"{layer}, {step}", step, floor, make, packages)
    for layer, make in CONSTRUCTED.items():
        name = f"construction, {layer}"
        if session.wants(name):
            calls = {key: partial(make, *modules) for key, modules in packages.items()}
            samples = session.time(name, calls)
            ratio = samples.ratio("e3nn", "clebsch")
            yield Row(name, "e3nn / clebsch", ratio, floor=at_least(CONSTRUCTION), seconds=samples.medians())
    if session.wants("memory, diffdock") and CLEAR.exists():
        yield from _memory(session)


def _packages() -> dict[str, tuple[ModuleType, ModuleType]]:
    import e3nn.nn
    import e3nn.o3

    from clebsch import nn, o3

    return {"clebsch": (o3, nn), "e3nn": (e3nn.o3, e3nn.nn)}


def _timed(session: Session, name: str, step: str, floor: float, make: Make, packages) -> Iterator[Row]:
    layers = {}
    for key, modules in packages.items():
        torch.manual_seed(0)
        layers[key] = make(*modules)
    ours = layers["clebsch"]
    count = session.pick(ROWS, 100)
    irreps = [getattr(ours, f"irreps_in{i}", None) for i in (1, 2)] if hasattr(ours, "irreps_in1") else []
    generator = torch.Generator().manual_seed(0)
    wanted = irreps or [ours.irreps_in]
    inputs = [torch.randn(count, i.dim, generator=generator) for i in wanted]
    if isinstance(ours, packages["clebsch"][0].TensorSquare):
        inputs = inputs[:1]
    require_same(name, *(layer(*inputs) for layer in layers.values()))
    samples = session.time(name, {key: STEPS[step](layer, inputs) for key, layer in layers.items()})
    held_to = session.held(at_least(floor)) if step in (FORWARD, BACKWARD) else None
    yield Row(
        name, "e3nn / clebsch", samples.ratio("e3nn", "clebsch"), floor=held_to, seconds=samples.medians()
    )


def _memory(session: Session) -> Iterator[Row]:
    """Peak of a fresh process beyond operands and what a step returns, which are the same for both."""
    for step in STEPS:
        name = f"memory, diffdock, {step}"
        peaks = {
            package: [
                fresh_python("-m", "benchmarks.drop_in", package, step, str(session.pick(2_000, 200)))
                for _ in range(session.pick(3, 1))
            ]
            for package in ("clebsch", "e3nn")
        }
        session.say(f"{name}: " + ", ".join(f"{key} {max(values):.1f} MB" for key, values in peaks.items()))
        ratio = Spread.of(b / a for a, b in zip(peaks["clebsch"], peaks["e3nn"], strict=True))
        floor = at_least(MEMORY) if step != DOUBLE else None
        yield Row(name, "e3nn / clebsch", ratio, floor=floor, detail={"MB": peaks})


def peak(package: str, step: str, num_rows: int) -> float:
    """Megabytes that one step takes at its peak beyond its inputs and what it returns."""
    torch.set_num_threads(1)
    problem = fully_connected("diffdock", DIFFDOCK, EDGE, DIFFDOCK)
    layer = _packages()[package][0].TensorProduct(
        *problem.arguments, shared_weights=False, internal_weights=False
    )
    STEPS[step](layer, operands(problem, 20, 20))()  # libraries, code that is generated at the first call
    call = STEPS[step](layer, operands(problem, num_rows, num_rows))
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # makes the peak start again from here
    before = status("VmRSS")
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    written = sum(result.numel() * result.element_size() for result in results)
    return (status("VmHWM") - before - written) / 1e6


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
