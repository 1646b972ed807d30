"""Left: a module whose class is known but which stays as it is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Left"]


class Left(NamedTuple):
    """Why nothing is done: one sentence, without a full stop."""

    reason: str
