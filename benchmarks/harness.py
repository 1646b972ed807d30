"""Timing by interleaving, and the row that a benchmark reports.

A shared machine changes speed from second to second, so two times taken minutes apart say little. Here every
round times each function once, in an order that rotates, and only numbers of one round are divided by each
other: what is reported is the median of the rounds' ratios, with the quartiles as its spread.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .device import Call, Cpu, Device


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `count` numbers."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        if len(ordered) == 1:
            return cls(ordered[0], ordered[0], ordered[0], 1)
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(median, low, high, len(ordered))


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds per sample at least, seconds in all about, fewest and most rounds."""

    sample: float = 0.010
    budget: float = 8.0
    rounds: tuple[int, int] = (7, 60)


@dataclass(frozen=True)
class Samples:
    """Seconds per call of each function, one number per round; what must be known of some of them."""

    seconds: Mapping[str, list[float]]
    remarks: Mapping[str, str] = field(default_factory=dict)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.seconds.items()}

    def ratio(self, numerator: str, denominator: str) -> Spread:
        return Spread.of(a / b for a, b in self._pairs(numerator, denominator))

    def difference(self, minuend: str, subtrahend: str) -> Spread:
        return Spread.of(a - b for a, b in self._pairs(minuend, subtrahend))

    def spread(self, name: str, scale: float = 1.0) -> Spread:
        return Spread.of(scale * value for value in self.seconds[name])

    def per(self, amounts: Mapping[str, float]) -> Samples:
        """Seconds for one unit of work, where a call of each function does `amounts` of them."""
        return Samples(
            {name: [s / amounts[name] for s in values] for name, values in self.seconds.items()}, self.remarks
        )

    def _pairs(self, first: str, second: str):
        return zip(self.seconds[first], self.seconds[second], strict=True)


def interleave(
    functions: Mapping[str, Callable[[], object]],
    effort: Effort | None = None,
    device: Device | None = None,
) -> Samples:
    """Time every function once per round, in rotating order.

    A function that returns within `effort.sample`, or a twentieth of the slowest one's time, is repeated to
    fill that time, as `device` repeats.
    """
    effort, device = effort or Effort(), device or Cpu()
    ready = {name: device.ready(function) for name, function in functions.items()}
    calls = {name: call for name, (call, _) in ready.items()}
    cost = {name: _warm_up(call, device) for name, call in calls.items()}
    fill = max(effort.sample, max(cost.values()) / 20)
    repeats = {name: max(1, math.ceil(fill / max(cost[name], 1e-9))) for name in functions}
    round_cost = sum(cost[name] * (repeats[name] + (repeats[name] > 1)) for name in functions)
    rounds = min(max(int(effort.budget / max(round_cost, 1e-9)), effort.rounds[0]), effort.rounds[1])
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(device.seconds(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return Samples(seconds, {name: remark for name, (_, remark) in ready.items() if remark})


def _warm_up(call: Call, device: Device) -> float:
    """Seconds of one call, once lazy set-up and compilation are done."""
    call()
    quickest = math.inf
    for _ in range(3):
        quickest = min(quickest, device.seconds(call))
        if quickest > 0.1:
            break
    return quickest


@dataclass(frozen=True)
class Floor:
    """The number that a row has to reach, `sense` being "at least" or "at most"."""

    value: float
    sense: str

    def met(self, value: float) -> bool:
        return value >= self.value if self.sense == "at least" else value <= self.value

    def missed_by(self, value: float) -> float:
        """Distance to the floor as a fraction of it; 0 where it is met."""
        return 0.0 if self.met(value) else abs(value / self.value - 1)


def at_least(value: float) -> Floor:
    return Floor(value, "at least")


def at_most(value: float) -> Floor:
    return Floor(value, "at most")


@dataclass(frozen=True)
class Row:
    """One line of a report: `quantity` (say "e3nn / clebsch") of the case `name`, held to `floor` if any."""

    name: str
    quantity: str
    spread: Spread
    unit: str = "x"
    floor: Floor | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    detail: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        floor = self.floor
        return {
            "name": self.name,
            "quantity": self.quantity,
            "unit": self.unit,
            "median": self.spread.median,
            "quartiles": [self.spread.low, self.spread.high],
            "rounds": self.spread.count,
            "floor": floor and {"value": floor.value, "sense": floor.sense},
            "met": floor and floor.met(self.spread.median),
            "missed_by": floor and floor.missed_by(self.spread.median),
            "seconds": dict(self.seconds),
            "detail": dict(self.detail),
        }
