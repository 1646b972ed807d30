"""What this core, or this GPU, can do at best: write memory, read memory, multiply matrices.

Reading is the quickest of three plain reductions, since no one of them is the quickest on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch

from .harness import Row, Samples, Spread, interleave
from .session import Session

OPERATORS = ()  # of clebsch
READERS: dict[str, Callable[[torch.Tensor], object]] = {
    "sum": torch.sum,
    "dot": lambda buffer: torch.dot(buffer, buffer),
    "max": torch.max,
}
LARGE = 1 << 28  # floats: 1 GiB, beyond any cache
SMALL = 1 << 23  # 32 MiB: what the last cache of a server holds
SIDE = 2048


@cache
def quickest_reader(session: Session) -> Callable[[torch.Tensor], object]:
    (buffer,) = session.put(torch.ones(session.pick(LARGE // 4, LARGE // 16)))
    calls = {name: _bind(read, buffer) for name, read in READERS.items()}
    times = interleave(calls, session.effort, session.device).medians()
    return READERS[min(times, key=times.__getitem__)]


def _bind(function: Callable, *arguments) -> Callable[[], object]:
    return lambda: function(*arguments)


def rows(session: Session) -> Iterator[Row]:
    if session.wants("memory"):
        yield from _memory(session, "memory", session.pick(LARGE, LARGE // 16))
        yield from _memory(session, "memory, small buffer", session.pick(SMALL, SMALL // 16))
    if session.wants("matrix product"):
        side = session.pick(SIDE, SIDE // 4)
        a, b = session.put(torch.randn(side, side), torch.randn(side, side))
        samples = session.time("matrix product", {"mm": _bind(torch.mm, a, b)})
        rate = _rate(samples, "mm", 2 * side**3)
        yield Row("matrix product", "rate", rate, "GFLOP/s", None, samples.medians())


def _memory(session: Session, name: str, size: int) -> Iterator[Row]:
    (buffer,) = session.put(torch.ones(size))
    samples = session.time(
        name,
        {
            "write": lambda: buffer.fill_(1.0),
            "write new": lambda: torch.ones_like(buffer),
            "read": _bind(quickest_reader(session), buffer),
        },
    )
    for verb in samples.seconds:
        rate = _rate(samples, verb, 4 * size)
        yield Row(f"{name}, {verb}", "rate", rate, "GB/s", None, samples.medians(), {"bytes": 4 * size})


def _rate(samples: Samples, name: str, amount: float) -> Spread:
    return Spread.of(1e-9 * amount / seconds for seconds in samples.seconds[name])
