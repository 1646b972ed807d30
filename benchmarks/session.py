"""The choices of one run, and what every benchmark asks of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TypeVar

from .harness import Effort, Samples, interleave

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Options of the command line; `memory` is the budget of the largest problems, in GiB."""

    quick: bool = False
    only: str = ""
    threads: int = 1
    isa: str = ""
    device: str = "cpu"
    compile: bool = False
    memory: float = 12.0
    client: str = ""
    quiet: bool = False

    @property
    def effort(self) -> Effort:
        return Effort(budget=0.2, rounds=(3, 5)) if self.quick else Effort()

    def wants(self, name: str) -> bool:
        return not self.only or fnmatch(name, f"*{self.only}*")

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"  {text}", file=sys.stderr, flush=True)

    def time(self, name: str, functions: Mapping[str, Callable[[], object]]) -> Samples:
        samples = interleave(functions, self.effort)
        self.say(f"{name}: " + ", ".join(f"{k} {1e3 * v:.4g} ms" for k, v in samples.medians().items()))
        return samples
