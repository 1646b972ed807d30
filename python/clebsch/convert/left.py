"""Left: a module whose class is known but which stays as it is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LEFT", "Left"]

# Where the reason is kept on the module, for `explain`.
LEFT = "_clebsch_left"


class Left(NamedTuple):
    """Why nothing is done: one sentence, without a full stop."""

    reason: str
