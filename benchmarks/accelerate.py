"""`clebsch.accelerate`: models of other packages against themselves, unmodified, in one process.

One package at a time, by the Python of an environment that has it:
    PYTHONPATH=.:python PYTHON -m benchmarks accelerate --client mace --threads 2
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from importlib import import_module

from .harness import Effort, Row, Spread, at_least, interleave
from .machine import fresh_python
from .memory import CLEAR, status
from .session import Session


def rows(session: Session) -> Iterator[Row]:
    module = import_module(f".clients.{session.client}", __package__)
    for name, case in module.CASES.items():
        for dtype in getattr(module, "DTYPES", ("float32", "float64")):
            if session.wants(f"{name}, {dtype}"):
                yield from _case(session, session.client, name, case, dtype)


def _case(session: Session, client: str, name: str, case, dtype: str) -> Iterator[Row]:
    import torch

    import clebsch

    module = import_module(f".clients.{client}", __package__)
    problem = module.build(name, getattr(torch, dtype))
    models = {"stock": problem.model, "clebsch": clebsch.accelerate(problem.model, strict=True)}
    peers = {}
    if dtype == "float32" and case.atoms > 9:
        if session.compile:
            models["torch.compile"] = torch.compile((problem.to_compile or (lambda: problem.model))())
        peers = getattr(module, "peers", lambda problem: {})(problem)
    part = 1 if dtype == "float32" else 0.5
    for quantity, function, floor in (
        ("energy and forces", problem.evaluate, case.energy_and_forces),
        ("training step", problem.step, case.training_step),
    ):
        calls = {
            who: (lambda model=model, function=function: function(model)) for who, model in models.items()
        }
        calls |= peers if function is problem.evaluate else {}
        failed: dict[str, str] = {}
        if len(calls) > 2:
            calls, failed = _that_run(session, calls)
        effort = Effort(budget=0.2, rounds=(2, 3)) if session.quick else Effort(budget=10, rounds=(3, 40))
        samples = interleave(calls, effort)
        medians = samples.medians()
        title = f"{name}, {dtype}: {quantity}"
        session.say(f"{title}: " + ", ".join(f"{who} {1e3 * s:.4g} ms" for who, s in medians.items()))
        for who in set(calls) - {"clebsch"}:
            asked = at_least(floor * part) if floor and who == "stock" else None
            ratio = samples.ratio(who, "clebsch")
            detail = {"edges": problem.edges, "atoms": case.atoms} | ({"failed": failed} if failed else {})
            yield Row(title, f"{who} / clebsch", ratio, "x", asked, medians, detail)
    if case.memory and dtype == "float32" and CLEAR.exists():
        yield _memory(session, client, name, dtype, case.memory)


def _that_run(session: Session, calls):
    """(the calls without those that fail, as compilers do with some models; {which: why} of the others)."""
    found, failed = {}, {}
    for who, call in calls.items():
        try:
            call()
        except Exception as error:
            if who in ("stock", "clebsch"):
                raise
            lines = str(error).splitlines() or [""]
            failed[who] = f"{type(error).__name__}: {lines[0]}"[:300]
            session.say(f"{who} fails: {failed[who]}")
        else:
            found[who] = call
    return found, failed


def _memory(session: Session, client: str, name: str, dtype: str, floor: float) -> Row:
    command = ("-m", "benchmarks.accelerate", client, name, dtype)
    peaks = {
        who: [fresh_python(*command, who) for _ in range(session.pick(2, 1))] for who in ("stock", "clebsch")
    }
    ratio = Spread.of(a / b for a, b in zip(peaks["stock"], peaks["clebsch"], strict=True))
    megabytes = {f"{who}, MB": max(peak) for who, peak in peaks.items()}
    session.say(f"{name}: extra memory {megabytes}")
    return Row(f"{name}: extra memory", "stock / clebsch", ratio, "x", at_least(floor), {}, megabytes)


def _peak(client: str, name: str, dtype: str, who: str) -> float:
    """Megabytes of a process beyond what it has before one evaluation."""
    import torch

    import clebsch

    problem = import_module(f"benchmarks.clients.{client}").build(name, getattr(torch, dtype))
    model = problem.model if who == "stock" else clebsch.accelerate(problem.model, inplace=True)
    problem.small(model)
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = status("VmRSS")
    problem.evaluate(model)
    return (status("VmHWM") - before) / 1e6


if __name__ == "__main__":
    print(json.dumps(_peak(*sys.argv[1:])))
