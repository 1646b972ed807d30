"""Models of other packages, built as their users build them: one module for each package.

Each has CASES, name to `Case`, and build(name, dtype), which gives the `Problem` of a case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Case", "Problem", "copper"]


@dataclass(frozen=True)
class Case:
    """How many times the speed of the unmodified model is asked for, in float32, and of its extra memory."""

    energy_and_forces: float | None = None
    training_step: float | None = None
    memory: float | None = None
    atoms: int = 108


@dataclass(frozen=True)
class Problem:
    """model: unmodified. evaluate(model): energy, forces and what else its calculator asks for. step(model):
    a loss on energies and forces and its gradients of parameters. small: `evaluate` of a few atoms.
    to_compile(): the model as its package wants it for torch.compile, if not as it is."""

    model: Any
    evaluate: Callable[[Any], Any]
    step: Callable[[Any], Any]
    small: Callable[[Any], Any]
    edges: int
    to_compile: Callable[[], Any] | None = None


def copper(repeats: int = 3) -> Any:
    """108 atoms with 4,800 neighbours within 5 A, or fewer."""
    from ase.build import bulk

    atoms = bulk("Cu", "fcc", a=3.61, cubic=True) * (repeats, repeats, repeats)
    atoms.rattle(0.1, seed=1)
    return atoms
