"""The choices of one run, and what every benchmark asks of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TypeVar

from .device import Cpu, Device
from .harness import Effort, Floor, Samples, interleave

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Options of the command line; `memory` is the budget of the largest problems, in GiB; `notes` are what
    must be known beside the numbers."""

    quick: bool = False
    only: str = ""
    threads: int = 1
    isa: str = ""
    device: Device = field(default_factory=Cpu)
    compile: bool = False
    memory: float = 12.0
    client: str = ""
    quiet: bool = False
    notes: list[str] = field(default_factory=list, compare=False)

    @property
    def effort(self) -> Effort:
        sample = self.device.sample
        return Effort(sample, budget=0.2, rounds=(3, 5)) if self.quick else Effort(sample)

    def wants(self, name: str) -> bool:
        return not self.only or fnmatch(name, f"*{self.only}*")

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"  {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Said now, below the table and in the JSON."""
        self.say(text)
        self.notes.append(text)

    def put(self, *things: T) -> tuple[T, ...]:
        """Tensors, modules or edges, on the device."""
        return tuple(thing.to(self.device.name) for thing in things)

    def held(self, floor: Floor | None, isa: str = "avx512") -> Floor | None:
        """The floor where it was set for what runs; none otherwise."""
        return self.device.held(floor, isa)

    def time(self, name: str, functions: Mapping[str, Callable[[], object]]) -> Samples:
        samples = interleave(functions, self.effort, self.device)
        self.say(f"{name}: " + ", ".join(f"{k} {1e3 * v:.4g} ms" for k, v in samples.medians().items()))
        for who, remark in samples.remarks.items():
            self.note(f"{name}: {who} {remark}")
        return samples
