"""SevenNet's modules."""

from __future__ import annotations

from typing import Any

__all__ = ["RULES"]

RULES: dict[str, Any] = {}
